"""What is wrong with an inventory, before any host is touched."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.constants import DEFAULT_FORCE_HANDLERS, VARIABLE_PRECEDENCE
from ansible.errors import AnsibleError

DOCUMENTATION = """
name: inventory_problems
short_description: Say what is wrong with the testbed's inventory
description: One text for each mistake, naming the host or file and the remedy; an empty list if all is well.
options:
  _input:
    description: The groups, as in C(groups).
    type: dict
    required: true
  hostvars:
    description: >-
      The hosts' variables, each with C(testbed_address) and, for a learner's host, C(node_id), C(node_ids)
      or C(learners).
    type: dict
    required: true
  sources:
    description: The inventory's files, as in C(ansible_inventory_sources).
    type: list
    default: []
"""

PROJECT = Path(__file__).resolve().parents[2]
CONTROLLER = ("localhost", "127.0.0.1", "::1")
"""Names by which Ansible means the machine that it runs on."""
GROUPS = {"all", "ungrouped", "testbed", "headers", "learners"}
PRECEDENCE = [
    *("all_plugins_play", "all_inventory", "groups_inventory"),
    *("all_plugins_inventory", "groups_plugins_inventory", "groups_plugins_play"),
]
"""The playbooks' defaults come first, so that whatever an inventory says overrides them; as in ``ansible.cfg``."""
_LONGEST = 63
"""The most characters of a part of a host name."""
_USER = re.compile(r"[^\s\x00-\x1f\x7f-]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def configuration_problems(used: str | None) -> list[str]:
    """Say why Ansible does not use the project's configuration; the argument is the file that it uses.

    Of a site that uses the collection, only the settings count on which the playbooks depend.
    """
    wanted = PROJECT / "ansible.cfg"
    if not wanted.exists():
        return _missing_settings(used)
    if used and Path(used).resolve() == wanted:
        return []
    if not os.environ.get("ANSIBLE_CONFIG") and _directory() == PROJECT and PROJECT.stat().st_mode & stat.S_IWOTH:
        return [
            f"Ansible ignores {wanted}, because every user may write to {PROJECT}: "
            f"chmod o-w '{PROJECT}', or export ANSIBLE_CONFIG='{wanted}'"
        ]
    instead = f"{used} instead of {wanted}" if used else f"no configuration; the testbed's is {wanted}"
    return [f"Ansible has read {instead}: cd '{PROJECT}', or export ANSIBLE_CONFIG='{wanted}'"]


def _missing_settings(used: str | None) -> list[str]:
    """Say which settings the playbooks of the collection need."""
    missing = []
    if list(VARIABLE_PRECEDENCE) != PRECEDENCE:
        missing.append(f"precedence = {', '.join(PRECEDENCE)}")
    if not DEFAULT_FORCE_HANDLERS:
        missing.append("force_handlers = true")
    where = used or f"ansible.cfg, in {_directory()}"
    return [f"{where} should have in [defaults]: {line}" for line in missing]


def inventory_problems(
    groups: Mapping[str, list[str]], hostvars: Mapping[str, Mapping[str, Any]], sources: Sequence[str] = ()
) -> list[str]:
    """Return one text for each mistake in the inventory.

    Parameters
    ----------
    groups
        Names of hosts by group; `testbed`, `headers` and `learners` are the ones that count.
    hostvars
        The variables of each host: `testbed_address`, and `node_id`, `node_ids` or `learners` of a learner's.
    sources
        The inventory's files. Ansible ignores one that it can't read, so they are looked at as well.
    """
    problems = [problem for source in sources for problem in _source(source)]
    if problems:
        return problems
    if not groups.get("testbed"):
        return ["no group testbed: the groups headers and learners should be its children"]
    headers, learners = groups.get("headers", []), groups.get("learners", [])
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
    for host in groups["testbed"]:
        if host not in hosts:
            strange = [name for name in groups if name not in GROUPS and host in groups[name]]
            where = f" (it is in {' and '.join(strange)})" if strange else ""
            problems.append(f"{host} is in testbed, but neither in headers nor in learners{where}")
    problems += [
        f"{host} is in {'headers' if host in headers else 'learners'}, but not in testbed: "
        "headers and learners should be children of the group testbed"
        for host in hosts
        if host not in groups["testbed"]
    ]
    problems += _names(hosts)
    problems += _addresses(hosts, hostvars) + _numbers(learners, hostvars)
    problems += [problem for host in hosts for problem in _connection(hostvars, host)]
    return problems + _keys(hosts, hostvars)


# Files


def _source(source: str) -> list[str]:
    """Say why a file of the inventory can't be read, or what it says twice."""
    path = Path(source)
    if "," in source or (path.is_file() and os.access(path, os.X_OK)):
        return []  # a list of hosts, or a program that prints an inventory
    if not path.exists():
        return [f"{source}: there is no such file"]
    if path.is_dir():
        return _shadowed(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        return [f"{source} can't be read: {error.strerror}"]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return [f"{source} is UTF-16: save it as UTF-8"]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return [f"{source}, line {line}: byte {content[error.start]:#04x} is not UTF-8: save the file as UTF-8"]
    if not text.strip():
        return [f"{source} is empty"]
    if path.suffix not in (".yml", ".yaml", ".json") or text.startswith("$ANSIBLE_VAULT"):
        return _shadowed(path.parent)
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        lines = text.splitlines()
        if line <= len(lines) and re.match(r"\s*\t", lines[line - 1]):
            return [f"{source}, line {line} is indented by a tab: YAML wants spaces"]
        return [f"{source}, line {line} is not YAML: {error.problem or error.context}"]
    except yaml.YAMLError as error:
        return [f"{source} is not YAML: {' '.join(str(error).split())}"]
    except RecursionError:
        return [f"{source} is nested too deeply: it should be groups with hosts, vars and children"]
    if not isinstance(tree, yaml.MappingNode):
        return [f"{source} is not a tree of groups: it should begin with testbed: (see inventory/ssh.example.yml)"]
    return [f"{source}, line {line}: {what}" for line, what in _strange(tree)] + _shadowed(path.parent)


def _strange(tree: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    """Give what Ansible overrides or ignores: keys that are there twice, groups with words it does not know."""
    nodes: list[yaml.Node] = [tree]
    seen: set[int] = set()  # of nodes with an alias, which may even contain themselves
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield line, "a list or a mapping is no name"
            elif key.value in lines and key.value != "<<":
                yield (
                    line,
                    f"{key.value!r} stands in line {lines[key.value]} already, and Ansible takes the last",
                )
            else:
                lines[key.value] = line
            nodes.append(value)
    yield from _unknown_words(tree, ())


def _unknown_words(groups: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> Iterator[tuple[int, str]]:
    for name, group in groups.value:
        if group in above:
            yield name.start_mark.line + 1, f"group {name.value} contains itself"
            continue
        if not isinstance(group, yaml.MappingNode):
            if group.value:
                yield name.start_mark.line + 1, f"group {name.value} should have hosts, vars or children"
            continue
        for key, value in group.value:
            line = key.start_mark.line + 1
            if key.value not in ("hosts", "vars", "children"):
                yield line, f"group {name.value} has {key.value!r}, it should have hosts, vars or children"
            elif not isinstance(value, yaml.MappingNode) and value.value:
                yield line, f"{key.value} of group {name.value} should be a mapping, each line a name and a colon"
            elif key.value == "hosts" and isinstance(value, yaml.MappingNode):
                for host, _ in value.value:
                    if isinstance(host, yaml.ScalarNode) and host.tag != "tag:yaml.org,2002:str":
                        yield host.start_mark.line + 1, f"host {host.value} should be a text: put it in quotes"
            elif key.value == "children" and isinstance(value, yaml.MappingNode):
                yield from _unknown_words(value, (*above, groups, group))


def _shadowed(folder: Path) -> list[str]:
    """Name the files of variables that Ansible ignores, since a folder of the same name is beside them."""
    return [
        f"{file} is ignored, because Ansible reads the folder {file.with_suffix('')} instead: move the file into it"
        for kind in ("group_vars", "host_vars")
        for file in sorted((folder / kind).glob("*.y*ml"))
        if file.with_suffix("").is_dir()
    ]


# Hosts


def _names(hosts: list[str]) -> list[str]:
    problems = []
    for host in hosts:
        if host in CONTROLLER:
            problems.append(f"a host is named {host}, by which Ansible means this machine: give it another name")
        elif host in GROUPS:
            problems.append(f"a host is named {host}, which is the name of a group: give it another name")
        elif not _NAME.fullmatch(host):
            problems.append(f"{host!r} is not a host name: it should have letters, digits, hyphens and dots")
        elif not all(0 < len(part) <= _LONGEST for part in host.split(".")):
            problems.append(
                f"{host!r} is not a host name: each part between dots should have 1 to {_LONGEST} characters"
            )
    by_lower: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        by_lower[host.lower()].append(host)
    return problems + [
        f"{' and '.join(alike)} differ in nothing but upper case: give them other names"
        for alike in by_lower.values()
        if len(alike) > 1
    ]


def _value(hostvars: Mapping[str, Mapping[str, Any]], host: str, name: str) -> Any:
    """Return a variable of a host, or the error that its template gives."""
    try:
        return hostvars[host].get(name)
    except AnsibleError as error:
        return error


_NO_HOST = [ipaddress.ip_network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")]
"""No network, loopback, link-local (chosen anew at each start), and multicast with what is reserved above it."""


def _addresses(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    owners: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        own, address = (_value(hostvars, host, name) for name in ("ansible_host", "testbed_address"))
        if errors := [value for value in (own, address) if isinstance(value, AnsibleError)]:
            problems.append(f"{host}: its address can't be worked out: {_line(errors[0])}")
            continue
        address = address or own
        found = str(address or "")
        if not found or (found == host and not re.fullmatch(r"[\d.]+", found)):
            problems.append(f"{host} has no address: give it ansible_host or testbed_address, such as 192.168.56.10")
            continue
        try:
            parsed = ipaddress.ip_address(found)
        except ValueError:
            parsed = None
        if not isinstance(parsed, ipaddress.IPv4Address):
            what = "IPv6" if parsed else "not IPv4"
            problems.append(
                f"{host} has the address {found!r}, which is {what}: give it ansible_host or testbed_address, "
                "such as 192.168.56.10"
            )
            continue
        if any(parsed in network for network in _NO_HOST):
            problems.append(
                f"{host} has the address {found}, by which other hosts can't reach it: give it an address of its "
                "network, such as 192.168.56.10"
            )
        owners[found].append(host)
    problems += [
        f"{' and '.join(sharing)} have one address, {address}: each host needs its own"
        for address, sharing in owners.items()
        if len(sharing) > 1
    ]
    return problems


MOST_LEARNERS = 1000
"""The most learners of a run, as in the contract."""
_NUMBERED = "learners are numbered 1, 2, 3 …"


def learner_ids(learners: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the nodeIds of each host's learners, in ascending order.

    A host names them by `node_id` or `node_ids`. One that has `learners` gets as many of the numbers that no host
    names, the lowest first, in the order of the inventory.

    Parameters
    ----------
    learners
        The hosts of the group `learners`.
    hostvars
        The variables of each host.
    """
    named = {host: _named_ids(hostvars, host) for host in learners}
    taken = {node_id for ids in named.values() for node_id in ids}
    free = (number for number in itertools.count(1) if number not in taken)
    return {
        host: sorted(ids) or list(itertools.islice(free, min(_wanted(hostvars, host), MOST_LEARNERS + 1)))
        for host, ids in named.items()
    }


def role_units(ids: Sequence[int], role: str) -> list[str]:
    """Return the units of a host's role: of several learners one each, named by nodeId.

    Parameters
    ----------
    ids
        The nodeIds of the host's learners; empty for the header.
    role
        `header` or `learner`.
    """
    return [f"fl-{role}@{node_id}.service" for node_id in ids] if len(ids) > 1 else [f"fl-{role}.service"]


def _named_ids(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> list[int]:
    one, several = (_value(hostvars, host, name) for name in ("node_id", "node_ids"))
    return [one] if _count(one) else [each for each in several if _count(each)] if isinstance(several, list) else []


def _wanted(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> int:
    return _count(_value(hostvars, host, "learners")) or 0


def _count(value: Any) -> int | None:
    """Return a whole number from 1; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _numbers(learners: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = [problem for host in learners for problem in _number_problems(hostvars, host)]
    owners: dict[int, list[str]] = defaultdict(list)
    for host, ids in learner_ids(learners, hostvars).items():
        for node_id in ids:
            owners[node_id].append(host)
    problems += [
        f"{' and '.join(dict.fromkeys(sharing))} have one node_id, {node_id}: each learner needs its own"
        if len(set(sharing)) > 1
        else f"{sharing[0]} has node_id {node_id} twice: each learner needs its own"
        for node_id, sharing in owners.items()
        if len(sharing) > 1
    ]
    if not problems and (missing := [n for n in range(1, len(owners) + 1) if n not in owners]):
        (highest,) = owners[max(owners)]
        problems.append(
            f"node_id {missing[0]} is nobody's, {highest} has {max(owners)}: learners are numbered without a gap"
        )
    if len(owners) > MOST_LEARNERS:
        problems.append(f"the hosts have {len(owners)} learners: a run has at most {MOST_LEARNERS}")
    return problems


def _number_problems(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> Iterator[str]:
    """Say what is wrong with the variables by which one host says which learners it has."""
    found = {name: _value(hostvars, host, name) for name in ("node_id", "node_ids", "learners")}
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, AnsibleError):
            yield f"{host}: its {name} can't be worked out: {_line(value)}"
            return
    if len(given) > 1:
        yield f"{host} has {' and '.join(given)}: it should have one of them"
        return
    if not given:
        yield f"{host} has no node_id: {_NUMBERED}; for several learners on a host, node_ids or learners"
        return
    ((name, value),) = given.items()
    quotes = ", without quotes" if isinstance(value, str) and value.strip().isdigit() else ""
    if name == "node_id" and not _count(value):
        yield f"{host} has node_id {value!r}: {_NUMBERED}{quotes}"
    elif name == "learners" and not (_count(value) or 0) <= MOST_LEARNERS:
        yield f"{host} has {value} learners: a run has at most {MOST_LEARNERS}"
    elif name == "learners" and not _count(value):
        yield f"{host} has learners {value!r}: it should be the number of its learners, such as 10{quotes}"
    elif name == "node_ids" and (not isinstance(value, list) or not value):
        yield f"{host} has node_ids {value!r}: it should be a list, such as [1, 2, 3]"
    elif name == "node_ids" and (wrong := [each for each in value if not _count(each)]):
        yield f"{host} has {wrong[0]!r} in node_ids: {_NUMBERED}"


def _connection(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> Iterator[str]:
    """Say what is wrong with the port and the user by which Ansible reaches a host."""
    for name in ("ansible_port", "ansible_user"):
        value = _value(hostvars, host, name)
        if value is None:
            continue
        if isinstance(value, AnsibleError):
            yield f"{host}: its {name} can't be worked out: {_line(value)}"
        elif name == "ansible_user":
            if isinstance(value, str) and not _USER.fullmatch(value):
                yield f"{host} has ansible_user {value!r}: it should be the name of a user on the host"
        elif not re.fullmatch(r"[0-9]{1,5}", str(value), re.ASCII) or not 0 < int(str(value)) < 65536:
            yield f"{host} has ansible_port {value!r}: it should be a whole number from 1 to 65535"


def _keys(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the files of SSH keys that are not there, once for all hosts that have them."""
    problems: dict[str, None] = {}
    for host in hosts:
        key = _value(hostvars, host, "ansible_ssh_private_key_file")
        if isinstance(key, str) and key and not Path(key).expanduser().is_file():
            made = " (vagrant up makes it)" if key.endswith("/.vagrant/testbed_key") else ""
            problems[f"ansible_ssh_private_key_file is {os.path.normpath(key)}: there is no such file{made}"] = None
    return list(problems)


def _line(error: AnsibleError) -> str:
    return " ".join(str(error).split())


def _directory() -> Path | None:
    try:
        return Path.cwd().resolve()
    except FileNotFoundError:
        return None


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {
            "configuration_problems": configuration_problems,
            "inventory_problems": inventory_problems,
            "learner_ids": learner_ids,
            "role_units": role_units,
        }
