"""What is wrong with an inventory, before any host is touched."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

DOCUMENTATION = """
name: inventory_problems
short_description: Say what is wrong with the testbed's inventory
description: One text for each mistake, naming the hosts; an empty list if all is well.
options:
  _input:
    description: The groups, as in C(groups).
    type: dict
    required: true
  hostvars:
    description: The hosts' variables, each with C(testbed_address) and, for a learner, C(node_id).
    type: dict
    required: true
"""


def inventory_problems(groups: Mapping[str, list[str]], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one text for each mistake in the inventory.

    Parameters
    ----------
    groups
        Names of hosts by group; `headers` and `learners` are the ones that count.
    hostvars
        The variables of each host: `testbed_address`, and `node_id` of a learner.
    """
    headers, learners = groups.get("headers", []), groups.get("learners", [])
    problems = []
    if not headers:
        problems.append("no header: the group headers should hold one host, it holds none")
    if len(headers) > 1:
        problems.append(f"{len(headers)} headers ({', '.join(headers)}): the group headers should hold one host")
    if not learners:
        problems.append("no learner: the group learners should hold a host or more")
    problems += [
        f"{host} is in headers and in learners: it can be one of them" for host in headers if host in learners
    ]
    hosts = list(dict.fromkeys([*headers, *learners]))
    problems += [
        f"{host} is in testbed, but neither in headers nor in learners"
        for host in groups.get("testbed", [])
        if host not in hosts
    ]
    return problems + _addresses(hosts, hostvars) + _numbers(learners, hostvars)


def _addresses(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    owners: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        found = str(hostvars[host].get("testbed_address") or hostvars[host].get("ansible_host") or "")
        try:
            address = ipaddress.IPv4Address(found)
        except ValueError:
            said = f"has the address {found!r}, which is not IPv4" if found else "has no address"
            problems.append(f"{host} {said}: give it ansible_host or testbed_address, such as 192.168.56.10")
            continue
        if address.is_loopback or address.is_unspecified or address.is_multicast:
            problems.append(f"{host} has the address {found}, by which other hosts can't reach it")
        owners[found].append(host)
    problems += [
        f"{' and '.join(sharing)} have one address, {address}"
        for address, sharing in owners.items()
        if len(sharing) > 1
    ]
    return problems


def _numbers(learners: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    owners: dict[int, list[str]] = defaultdict(list)
    for host in learners:
        node_id = hostvars[host].get("node_id")
        if isinstance(node_id, bool) or not isinstance(node_id, int) or node_id < 1:
            problems.append(
                f"{host} has {f'node_id {node_id!r}' if node_id is not None else 'no node_id'}: "
                "learners are numbered 1, 2, 3 …"
            )
            continue
        owners[node_id].append(host)
    problems += [
        f"{' and '.join(sharing)} have one node_id, {node_id}"
        for node_id, sharing in owners.items()
        if len(sharing) > 1
    ]
    if not problems and (missing := [n for n in range(1, len(learners) + 1) if n not in owners]):
        (highest,) = owners[max(owners)]
        problems.append(
            f"node_id {missing[0]} is nobody's, {highest} has {max(owners)}: learners are numbered without a gap"
        )
    return problems


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"inventory_problems": inventory_problems}
