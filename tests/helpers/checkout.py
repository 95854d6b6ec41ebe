"""The checkout: its root, its pages and their site, its Python files outside the package, and a copy of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "vagrant/README.md", "roles/*/README.md")
    for path in ROOT.glob(pattern)
)
"""The documentation's pages."""
OLD = 1_600_000_000
"""A time before any environment was created."""


def load(path: str) -> Any:
    """Return the module in a file of the checkout that is not part of a package, such as a plugin of Ansible."""
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build_site(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build the documentation's site of a checkout, as `make docs` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def copy(target: Path) -> None:
    """Copy the files that are or would be under version control, in their present state; link this environment."""
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
    # Old timestamps, so that `make` does not install the copy into this environment.
    for path in [target / "pyproject.toml", *(target / "requirements").glob("*.txt")]:
        os.utime(path, (OLD, OLD))
