"""The command line that runs a playbook, for hints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DOCUMENTATION = """
name: playbook_command
short_description: Say what a person types to run a playbook
description: Where the header is the controller, that is a command for the machine that has Vagrant.
options:
  _input:
    description: The playbook's name and arguments, such as C(train -e fl_replace=true).
    type: str
    required: true
  groups:
    description: The inventory's groups, which name the header.
    type: dict
    required: true
"""


def playbook_command(playbook: str, groups: Mapping[str, Sequence[str]]) -> str:
    """Return the command line for this controller."""
    if os.environ.get("FL_TESTBED_CONTROLLER") == "guest":
        # Double quotes: Ansible's YAML output would double single ones.
        return f'vagrant ssh {groups["headers"][0]} -c "testbed {playbook}"'
    name, _, arguments = playbook.partition(" ")
    return f"ansible-playbook ansible/{name}.yml {arguments}".rstrip()


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"playbook_command": playbook_command}
