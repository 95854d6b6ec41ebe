"""Fetch the locked wheels for the hosts' platform and Python into one archive, whatever the controller is.

The archive holds the wheels and a requirements.txt that names each with its version and hash, without markers, so
that a host needs nothing else to install them. An archive that is there already is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
NEWEST_GLIBC = 31
"""Minor version of the oldest glibc of a host: Ubuntu 20.04's and Debian 11's."""


def main() -> None:
    """Print the path of the archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--platform", choices=MACHINES, required=True)
    parser.add_argument("--python", required=True, help="such as 3.11")
    parser.add_argument("--requirements", type=Path, required=True, help="the lock file of the package")
    parser.add_argument("--tools", type=Path, required=True, help="the lock file that has uv")
    parser.add_argument("--folder", type=Path, required=True, help="where archives are kept")
    parser.add_argument("--wheelhouse", type=Path, help="a folder with all wheels; no index is asked then")
    parser.add_argument("--index", help="URL of the index to ask")
    options = parser.parse_args()
    machine = MACHINES[options.platform]
    wanted = entries(options.requirements, machine, options.python)
    wanted += [entry for entry in entries(options.tools, machine, options.python) if entry.startswith("uv==")]
    text = "\n".join(wanted) + "\n"
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    archive = options.folder / f"linux-{options.platform}-py{options.python}-{key}.tar"
    if not archive.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            fetch(Path(name), text, machine, options)
            pack(Path(name) / "wheels", archive)
    print(archive)


def entries(lock: Path, machine: str, python: str) -> list[str]:
    """Return the entries of a lock file that hold on the hosts, each with its hashes and without its marker."""
    environment = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    lines = re.sub(r"\\\n", " ", lock.read_text())
    found = []
    for line in lines.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        specification, *hashes = re.split(r"\s+(?=--hash=)", line.strip())
        requirement = Requirement(specification)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found.append(" ".join([f"{requirement.name}{requirement.specifier}", *(h.strip() for h in hashes)]))
    return found


def fetch(folder: Path, requirements: str, machine: str, options: argparse.Namespace) -> None:
    """Fetch all wheels into ``folder/wheels``; make wheels of what is published as source alone."""
    (folder / "requirements.txt").write_text(requirements)
    wheels = folder / "wheels"
    source = ["--no-index", "--find-links", str(options.wheelhouse)] if options.wheelhouse else []
    source += ["--index-url", options.index] if options.index else []
    names = [f"manylinux_2_{minor}" for minor in range(NEWEST_GLIBC, 4, -1)] + [
        "manylinux2014",
        "manylinux2010",
        "manylinux1",
    ]
    platforms = [argument for name in names for argument in ("--platform", f"{name}_{machine}")]
    pip(
        "download",
        "--no-deps",
        "--require-hashes",
        "--dest",
        str(wheels),
        "--requirement",
        str(folder / "requirements.txt"),
        "--implementation",
        "cp",
        "--python-version",
        options.python,
        *platforms,
        *source,
    )
    for path in [path for path in wheels.iterdir() if path.suffix != ".whl"]:
        pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(wheels), str(path))
        path.unlink()
    lines = []
    for path in sorted(wheels.iterdir()):
        name, version, _, tags = parse_wheel_filename(path.name)
        if any(tag.platform.startswith("linux_") for tag in tags):
            sys.exit(f"{name} {version} has no wheel for the hosts, and its source makes one for this machine alone")
        lines.append(
            f"{canonicalize_name(name)}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        )
    (wheels / "requirements.txt").write_text("".join(lines))


def pip(*arguments: str) -> None:
    """Run pip; its last line is the error."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
        sys.exit(f"pip {arguments[0]}: {errors[-1]}")


def pack(folder: Path, archive: Path) -> None:
    """Write a folder's files as an archive, whole or not at all."""
    partial = folder.parent / "archive.tar"
    with tarfile.open(partial, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    partial.replace(archive)


if __name__ == "__main__":
    main()
