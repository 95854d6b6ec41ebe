"""Write everything that a bring-up needs into one archive, with a checksum of each file."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fl_node.nodes import binaries


def main() -> None:
    """Write the archive, whole or not at all, and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="the controller's cache")
    parser.add_argument("--output", type=Path, required=True, help="the archive")
    parser.add_argument("--controller", type=Path, required=True, help="the lock file of the controller's own tools")
    parser.add_argument("--platform", action="append", default=[], help="of the hosts, such as linux-amd64")
    parser.add_argument("--image", action="append", default=[], help="of the docker provider's hosts, if it is there")
    parser.add_argument("files", type=Path, nargs="*", help="archives of wheels in the cache; files of the data set")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.output.parent) as name:
        scratch = Path(name)
        members = dict(collect(options, scratch))
        partial = scratch / "bundle.tar"
        write(members, partial)
        for folder in dict.fromkeys(member.split("/")[0] for member in members):
            sizes = [path.stat().st_size for member, path in members.items() if member.split("/")[0] == folder]
            print(f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB")
        partial.replace(options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.0f} MB")
    print(f"testbed_bundle_sha256={binaries.digest(options.output)}")
    print("Keep this digest apart from the file: site.yml uses the bundle with it alone.")


def collect(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yield the archive's members, each with the file that it is."""
    for folder in (*(f"bin/{platform}" for platform in options.platform), "packages", "python"):
        for path in sorted((options.cache / folder).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(options.cache)), path
    (scratch / "pins.json").write_text(json.dumps(pins(options.platform), indent=2, sort_keys=True) + "\n")
    yield "bin/pins.json", scratch / "pins.json"
    for path in options.files:
        yield (f"wheels/{path.name}" if path.suffix == ".tar" else f"mnist/{path.name}"), path
    pip = [sys.executable, "-P", "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    pip += ["--require-hashes", "--dest", str(scratch / "controller"), "--requirement", str(options.controller)]
    if (ended := subprocess.run(pip, capture_output=True, text=True, check=False)).returncode != 0:
        sys.exit(f"the controller's own wheels: {ended.stderr.strip().splitlines()[-1]}")
    for path in sorted((scratch / "controller").iterdir()):
        yield f"controller/{path.name}", path
    yield from images(options.image, scratch)


def pins(platforms: list[str]) -> dict[str, dict[str, str]]:
    """Return from which pin each program was made, by platform; `fl-node binaries` has just put them there."""
    programs = (binaries.pin("geth"), binaries.pin("kubo"))
    return {platform: {binary.command: binary.file_name for binary in programs} for platform in platforms}


def images(wanted: list[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yield one file with those of the images that exist."""
    if shutil.which("docker") is None:
        return
    inspect = ["docker", "image", "inspect"]
    names = [
        name for name in wanted if subprocess.run([*inspect, name], capture_output=True, check=False).returncode == 0
    ]
    if names:
        path = scratch / "image.tar"
        subprocess.run(["docker", "save", "--output", str(path), *names], check=True)
        yield "image/image.tar", path


def write(members: dict[str, Path], archive: Path) -> None:
    """Write the archive; its last member says the checksum of each other."""
    sums = []
    with tarfile.open(archive, "w") as tar:
        for member, path in members.items():
            with path.open("rb") as file:
                sums.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {member}\n")
            tar.add(path, member)
        content = "".join(sums).encode()
        info = tarfile.TarInfo("SHA256SUMS")
        info.size = len(content)
        info.mode = 0o644
        tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()
