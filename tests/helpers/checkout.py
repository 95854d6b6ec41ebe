"""A copy of the checkout, as a fresh clone would be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "vagrant/README.md", "roles/*/README.md")
    for path in ROOT.glob(pattern)
)
"""The documentation's pages."""
OLD = 1_600_000_000
"""A time before any environment was made."""


def copy(target: Path) -> None:
    """Copy what is under version control, or would be, as it is now; the environment is this one."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_symlink() and not (target / name).is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    if not (target / ".venv").exists():
        (target / ".venv").symlink_to(ROOT / ".venv")
    # So old that no `make` in the copy finds the environment out of date and installs the copy into it.
    for path in [target / "pyproject.toml", *(target / "requirements").glob("*.txt")]:
        os.utime(path, (OLD, OLD))
