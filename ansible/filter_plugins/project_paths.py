"""Where a path that a person wrote lies on the controller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCUMENTATION = """
name: project_path
short_description: Make a path on the controller absolute
description:
  - A relative path is looked for in the working directory, then in the project's folder.
  - Where it is in neither, it is the one in the working directory. Nothing and URLs stay as they are.
options:
  _input:
    description: The path.
    type: str
    required: true
"""

PROJECT = Path(__file__).resolve().parents[2]


def project_path(path: str) -> str:
    """Return where the path is: itself, from the working directory, or from the project's folder."""
    if not path or "://" in path:
        return path
    wanted = Path(path).expanduser()
    found = [folder / wanted for folder in (_working_directory(), PROJECT) if (folder / wanted).exists()]
    return str(found[0] if found else _working_directory() / wanted)


def _working_directory() -> Path:
    """Return the process's own directory; a variable such as PWD may be another one's, or not set."""
    try:
        return Path.cwd()
    except FileNotFoundError:  # it was removed
        return PROJECT


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"project_path": project_path}
