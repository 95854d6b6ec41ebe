"""Until when the hosts' systems get security updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

DOCUMENTATION = """
name: system_support
short_description: Say until when the systems of hosts are supported
description: A list of lines, one for each system in use.
options:
  _input:
    description: What was found out about each host, with C(id) and C(version) of its system.
    type: list
    required: true
  releases:
    description: The known releases by system, each with C(supported_until).
    type: dict
    required: true
  today:
    description: The date, as YYYY-MM-DD.
    type: str
    required: true
"""


def system_support(found: Sequence[Mapping[str, Any]], releases: Mapping[str, Any], today: str) -> list[str]:
    """Return a line for each system, with the end of its security updates."""
    return [_line(system, version, releases, today) for system, version in sorted(_systems(found))]


def _systems(found: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    return {(str(host["id"]), str(host["version"])) for host in found}


def _line(system: str, version: str, releases: Mapping[str, Any], today: str) -> str:
    name = f"{system.capitalize()} {version}"
    release = releases.get(system, {}).get(version)
    if release is None:
        return f"{name}, which docs/support.md does not list"
    end = release["supported_until"]
    if date.fromisoformat(end) < date.fromisoformat(today):
        return f"{name}, without security updates since {end}: for a closed lab only"
    return f"{name}, with security updates until {end}"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"system_support": system_support}
