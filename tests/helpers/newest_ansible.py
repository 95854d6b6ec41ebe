"""The newest ansible-core that the playbooks work with, in an environment of its own beside the locked one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.checkout import ROOT

REQUIREMENTS = (ROOT / "requirements" / "controller.in").read_text()
PYTHONS = ("3.13", "3.12")
"""What it needs on the controller, as far as fl-node has it too."""


class NoPython(Exception):
    """This machine has no Python that the newest ansible-core runs with."""


def series() -> tuple[str, str]:
    """Return the oldest and the newest series of the range, such as 2.19 and 2.21."""
    bounds = re.search(r"^ansible-core>=2\.(\d+),<2\.(\d+)$", REQUIREMENTS, re.MULTILINE)
    assert bounds is not None
    return f"2.{bounds[1]}", f"2.{int(bounds[2]) - 1}"


def pythons() -> Iterator[Path]:
    """Yield the programs on this machine that may be such a Python; pyenv's are not always in PATH."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in PYTHONS:
        if found := shutil.which(f"python{version}"):
            yield Path(found)
        yield from sorted(versions.glob(f"{version}.*/bin/python{version}"), reverse=True)


def create(folder: Path) -> Path:
    """Create the environment; return the folder of its programs."""
    works = (
        python
        for python in pythons()
        if subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0
    )
    python = next(works, None)
    if python is None:
        raise NoPython(f"ansible-core {series()[1]} needs Python {' or '.join(reversed(PYTHONS))} on this machine")
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", python, folder], check=True)
    wanted = [line for line in REQUIREMENTS.splitlines() if line and not line.startswith(("#", "-c", "ansible-core"))]
    # All else as it is locked, so that the same source is the same package for the hosts.
    locked = (ROOT / "requirements" / "controller.txt").read_text()
    pins = [
        pin for pin in re.findall(r"^[\w.-]+==[^\\\n]+", locked, re.MULTILINE) if not pin.startswith("ansible-core=")
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    install = [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    subprocess.run([*install, "--constraints", constraints, *wanted, f"ansible-core=={series()[1]}.*"], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", "--editable", ROOT], check=True)
    return folder / "bin"
