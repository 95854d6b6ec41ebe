"""The plans and examples of the package: package data in a wheel, folders beside the package in a checkout."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fl_node.errors import ConfigError
from fl_node.plan import loading
from fl_node.plan.sections import NAME_PATTERN
from fl_node.runtime import files

_PACKAGE = Path(__file__).parents[1]
_PACKAGED = _PACKAGE / "examples"
"""A wheel's copy of the examples; ``pyproject.toml`` lists the files."""
PLANS = ("async", "demo", "ensemble", "inversion", "membership", "paper", "private", "scenario", "sweep")
"""Plan files of a checkout's ``plans/``."""
FOLDERS = ("tabular",)
"""Folders of a checkout's ``examples/``, each with a plan and a module."""


def names() -> list[str]:
    """Return the names of all examples."""
    return [*PLANS, *FOLDERS]


def path(name: str) -> Path:
    """Return the plan file of an example.

    Raises
    ------
    ConfigError
        There is no such example.
    """
    if name not in names():
        raise ConfigError(f"no example {name!r}; should be one of {', '.join(names())}")
    root = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent
    return root / "plans" / f"{name}.toml" if name in PLANS else root / "examples" / name / "plan.toml"


def create(target: Path, name: str) -> list[Path]:
    """Write a new plan file from an example, and its module if it has one, and return the paths.

    Parameters
    ----------
    target
        The plan file to write; its name without suffix becomes the plan's name.
    name
        The example.

    Raises
    ------
    ConfigError
        There is no such example, the file's name is not valid for a plan, or a file exists or can't be written.
    """
    example = path(name)
    module = loading.module_file(example)
    copies = {target: example} | ({target.parent / module.name: module} if module else {})
    if target.suffix != ".toml" or not re.fullmatch(NAME_PATTERN, target.stem):
        raise ConfigError(
            f"{target.name!r} is not a valid file name for a plan; should be up to 63 lower-case letters, digits, "
            "'.', '_' or '-', then .toml, such as mine.toml"
        )
    for copy in copies:
        if os.path.lexists(copy):
            raise ConfigError(f"{copy} exists; choose another name or folder")
    with files.output_file(target, "the new plan"), files.together(target.parent) as new:
        text = re.sub(r"^#:schema .*\n", "", example.read_text())  # the schema's path is not valid here
        text = re.sub(r"^name = .*", f'name = "{target.stem}"', text, count=1, flags=re.MULTILINE)
        files.write(new / target.name, text)
        if module:
            files.write(new / module.name, module.read_bytes())
    return list(copies)
