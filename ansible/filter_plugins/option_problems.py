"""Which variables given by -e the playbooks don't know."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
name: option_problems
short_description: Say which variables given by -e the playbooks don't know
description: One text for each, naming it and what would be right; an empty list if all are known.
options:
  _input:
    description: The folder of the project, with the roles and the playbooks' defaults.
    type: str
    required: true
"""

OPTIONS = {
    "fl_allow_attacks",
    "fl_anchor",
    "fl_attest",
    "fl_auditor",
    "fl_backup",
    "fl_bundle",
    "fl_confirm",
    "fl_contract",
    "fl_data",
    "fl_during_run",
    "fl_hold",
    "fl_jobs",
    "fl_move",
    "fl_patience",
    "fl_plan",
    "fl_remove",
    "fl_rejecting",
    "fl_replace",
    "fl_rotate",
    "fl_run",
    "fl_scenario",
    "fl_settings",
    "fl_sweep",
    "fl_to",
    "fl_until",
}
"""What a person says by -e for one command."""
SITE = ("ansible_", "site_", "vm_")
"""Variables of Ansible, of a site's own inventory, and of the machines begin with these."""


def option_problems(project: str, given: Iterable[str] | None = None) -> list[str]:
    """Return one text for each unknown variable.

    Parameters
    ----------
    project
        The folder of the project.
    given
        The names of the variables; by default those that this command was given by ``-e``.
    """
    names = load_extra_vars(DataLoader()) if given is None else given
    known = _known(Path(project))
    return [_problem(name, known) for name in sorted(names) if name not in known and not name.startswith(SITE)]


def _known(project: Path) -> set[str]:
    """Return the options, the roles' arguments, and the variables with a default for all hosts."""
    known = OPTIONS | {"learners", "node_id", "node_ids"}
    playbooks = next(folder for name in ("ansible", "playbooks") if (folder := project / name).is_dir())
    known |= _read(playbooks / "group_vars" / "all.yml").keys()
    for path in project.glob("roles/*/meta/argument_specs.yml"):
        for entry in _read(path)["argument_specs"].values():
            known |= entry["options"].keys()
    return known


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _problem(name: str, known: set[str]) -> str:
    short = {option.removeprefix("fl_"): option for option in OPTIONS}
    alike = [short[found] for found in difflib.get_close_matches(name, sorted(short), 1, 0.75)]
    alike = alike or difflib.get_close_matches(name, sorted(known), 1, 0.8)
    if alike:
        return f"-e {name}: there is no such variable; should it be {alike[0]}?"
    options = ", ".join(sorted(OPTIONS))
    return (
        f"-e {name}: there is no such variable; there are {options}, and those in docs/testbed.md. "
        "A variable of your own inventory should begin with site_"
    )


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"option_problems": option_problems}
