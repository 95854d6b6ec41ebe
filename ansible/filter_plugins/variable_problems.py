"""What is wrong with the values of variables that reach configuration files and commands."""

from __future__ import annotations

import ipaddress
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleError
from jinja2.exceptions import UndefinedError

DOCUMENTATION = """
name: variable_problems
short_description: Say which of the testbed's variables have values that can't be used
description: One text for each mistake, naming variable and hosts; an empty list if all is well. It shows no secret.
options:
  _input:
    description: The names of the hosts to look at.
    type: list
    elements: str
    required: true
  hostvars:
    description: The hosts' variables, as in C(hostvars).
    type: dict
    required: true
"""

_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}", re.ASCII)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+", re.ASCII)
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATH = "a path without line ends, and without spaces around it"


def _int(value: object) -> int | None:
    """Return a whole number, also one that was given as text by -e."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) else None


def _between(lowest: int, highest: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        number = _int(value)
        if number is None or not lowest <= number <= highest:
            return f"{_shown(value)}: should be a whole number from {lowest} to {highest}"
        return None

    return check


def _text(value: Any, form: str, fits: Callable[[str], bool]) -> str | None:
    return None if isinstance(value, str) and fits(value) else f"{_shown(value)}: should be {form}"


def _swarm_key(value: Any) -> str | None:
    """Check the format and never show the value."""
    form = "64 hexadecimal digits, such as `openssl rand -hex 32` prints"
    if isinstance(value, int | float):
        return f"is a number: should be a text of {form}; put it in quotes"
    if not isinstance(value, str):
        return f"is not a text: should be {form}"
    if value == "":
        return None
    if value.strip() != value:
        return f"has spaces or line ends around it: should be {form}, and nothing else"
    if "/key/swarm/" in value:
        return f"is a whole swarm key file: should be its last line, {form}"
    if not re.fullmatch(r"[0-9a-fA-F]*", value, re.ASCII):
        return f"has other characters than 0-9 and a-f: should be {form}"
    if len(value) != 64:
        return f"has {len(value)} digits: should be {form}"
    if len(set(value)) == 1:
        return f"is one digit 64 times, which anybody can guess: should be {form}"
    return None


def _sha256(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return "is a number: put it in quotes"
    return _text(value, "a SHA-256 digest, 64 hexadecimal digits", lambda text: _is_digest(text) or text == "")


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F]{64}", text, re.ASCII) is not None


def _url(*schemes: str) -> Callable[[Any], str | None]:
    form = f"a URL such as {schemes[0]}://mirror.example/path, without spaces and quotes"

    def fits(text: str) -> bool:
        if text == "":
            return True
        try:
            parts = urlsplit(text)
            _ = parts.port
        except ValueError:
            return False
        return parts.scheme in schemes and bool(parts.hostname) and not re.search(r"[\s\"'\\<>`;$(){}|]", text)

    return lambda value: _text(_without_password(value), form, lambda _: isinstance(value, str) and fits(value))


def _without_password(value: Any) -> Any:
    return re.sub(r"(?<=://)[^/@]*@", "…@", value) if isinstance(value, str) else value


def _path(value: Any) -> str | None:
    return _text(value, _PATH, _is_path)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and not _CONTROL.search(value) and value == value.strip()


def _mirror(value: Any) -> str | None:
    if isinstance(value, str) and "://" in value and not value.startswith("file://"):
        return _url("https", "http")(value)
    return _path(value)


def _each(what: str, fits: Callable[[Any], bool], *, least: int = 0) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if not isinstance(value, list | tuple):
            example = f", such as {json.dumps([value])}" if isinstance(value, str) else ""
            return f"{_shown(value)}: should be a list of {what}{example}"
        for one in value:
            if not fits(one):
                return f"{_shown(one)} in it: should be {what}"
        return None if len(value) >= least else f"is empty: should have {what}"

    return check


def _is_port(value: Any) -> bool:
    return (_int(value) or 0) in range(1, 65536)


def _is_user(value: Any) -> bool:
    if (number := _int(value)) is not None:
        return 0 <= number < 2**32 - 1
    return isinstance(value, str) and _USER.fullmatch(value) is not None


def _is_ipv4(value: Any) -> bool:
    try:
        ipaddress.IPv4Address(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True


def _address(value: Any) -> str | None:
    return _text(value, "an IPv4 address", _is_ipv4)


def _listen(value: Any) -> str | None:
    def fits(text: str) -> bool:
        try:
            return not getattr(ipaddress.ip_address(text), "scope_id", None)
        except ValueError:
            return False

    return _text(value, "an address such as 127.0.0.1 or 0.0.0.0", fits)


def _quota(value: Any) -> str | None:
    return _text(
        value,
        "a percentage of one processor, such as 25%",
        lambda text: text == "" or re.fullmatch(r"[1-9][0-9]{0,4}%", text, re.ASCII) is not None,
    )


def _memory(value: Any) -> str | None:
    return _text(
        value,
        "an amount of memory, such as 700M or 2G, or a share of the host's, such as 20%",
        lambda text: text == "" or re.fullmatch(r"[1-9][0-9]{0,8}[KMG%]", text, re.ASCII) is not None,
    )


def _store(value: Any) -> str | None:
    return _text(
        value,
        "a multiaddress such as /ip4/127.0.0.1/tcp/5001",
        lambda text: (
            (found := re.fullmatch(r"/ip4/([0-9.]+)/tcp/([0-9]{1,5})", text, re.ASCII)) is not None
            and _is_ipv4(found[1])
            and _is_port(found[2])
        ),
    )


def _place(value: Any) -> str | None:
    return _text(
        value,
        "an IPv4 address with a TCP port, such as 192.168.56.10:8786",
        lambda text: (
            (found := re.fullmatch(r"([0-9.]+):([0-9]{1,5})", text, re.ASCII)) is not None
            and _is_ipv4(found[1])
            and _is_port(found[2])
        ),
    )


def _python(value: Any) -> str | None:
    return _text(
        value,
        "a version of Python such as 3.12, in quotes",
        lambda text: re.fullmatch(r"3[.]1[1-9]", text, re.ASCII) is not None,
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return f"is {text if len(text) <= 80 else text[:80] + '…'}"


def _peer_ports(value: Any) -> str | None:
    if isinstance(value, Mapping) and all(_is_ipv4(address) and _is_port(port) for address, port in value.items()):
        return None
    return f"{_shown(value)}: should be a mapping of IPv4 addresses to TCP ports"


_PORT = _between(1, 65535)
_USERS = _each("a name of a local user (letters a-z, digits, _ . -) or its number", _is_user, least=1)
_PATHS = _each(_PATH, _is_path)

CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "testbed_geth_port": _PORT,
    "testbed_ipfs_port": _PORT,
    "testbed_sweep_port": _PORT,
    "testbed_rpc_port": _PORT,
    "testbed_ipfs_api_port": _PORT,
    "testbed_chain_id": _between(1, 2**53 - 1),
    "testbed_cache": _path,
    "testbed_bundle": _path,
    "testbed_bundle_sha256": _sha256,
    "testbed_apt_mirror": _url("http", "https"),
    "testbed_http_proxy": _url("http", "https"),
    "testbed_ca_bundle": _path,
    "testbed_pip_index": _url("https", "http"),
    "testbed_wheelhouse": _path,
    "testbed_binaries_mirror": _mirror,
    "testbed_data_dir": _path,
    "testbed_modules": _PATHS,
    "testbed_connect_timeout": _between(1, 86400),
    "base_address": _address,
    "base_peers": _each("an IPv4 address", _is_ipv4, least=1),
    "base_ssh_port": _PORT,
    "base_peer_ssh_ports": _peer_ports,
    "base_extra_open_ports": _each("a TCP port from 1 to 65535", _is_port),
    "base_minimum_memory_mb": _between(0, 10**9),
    "base_minimum_disk_mb": _between(0, 10**9),
    "base_maximum_clock_offset": _between(0, 10**6),
    "base_apt_mirror": _url("http", "https"),
    "base_security_mirror": _url("http", "https"),
    "base_python": _python,
    "base_http_proxy": _url("http", "https"),
    "base_ca_bundle": _path,
    "base_packages": _each(
        "the name of a package", lambda one: isinstance(one, str) and _PACKAGE.fullmatch(one) is not None, least=1
    ),
    "base_package_folder": _path,
    "base_package_digests": _path,
    "geth_chain_id": _between(1, 2**53 - 1),
    "geth_address": _address,
    "geth_port": _PORT,
    "geth_rpc_port": _PORT,
    "geth_authrpc_port": _PORT,
    "geth_metrics_port": _between(0, 65535),
    "geth_metrics_users": _USERS,
    "geth_rpc_users": _USERS,
    "geth_peer_timeout": _between(2, 86400),
    "ipfs_address": _address,
    "ipfs_port": _PORT,
    "ipfs_api_port": _PORT,
    "ipfs_api_users": _USERS,
    "ipfs_swarm_key": _swarm_key,
    "ipfs_peer_timeout": _between(2, 86400),
    "ipfs_small_block": _between(0, 2 * 1024**2),
    "controller_source": _path,
    "controller_cache": _path,
    "controller_pip_index": _url("https", "http"),
    "controller_wheelhouse": _path,
    "controller_data_dir": _path,
    "controller_binaries_mirror": _mirror,
    "fl_node_rpc": lambda value: _url("http", "https")(value or None),
    "fl_node_store": _store,
    "fl_node_modules": _PATHS,
    "fl_node_ids": _each("a nodeId from 1 to 1000", lambda one: (_int(one) or 0) in range(1, 1001)),
    "fl_node_cpu_quota": _quota,
    "fl_node_memory_max": _memory,
    "fl_node_dashboard_listen": _listen,
    "fl_node_dashboard_port": _PORT,
    "fl_node_dashboard_users": _USERS,
    "fl_node_sweep_scheduler": _place,
    "fl_node_sweep_worker_port": _PORT,
}
"""What the value of each variable should be; each check says what is wrong, and None if nothing is."""

PORTS = {
    "base_ssh_port": 22,
    "testbed_geth_port": 30303,
    "testbed_ipfs_port": 4001,
    "testbed_rpc_port": 8545,
    "testbed_ipfs_api_port": 5001,
    "geth_authrpc_port": 8551,
    "geth_metrics_port": 6060,
    "fl_node_dashboard_port": 8090,
    "testbed_sweep_port": 8786,
    "fl_node_sweep_worker_port": 8788,
}
"""Variables of ports that one host has, each with its default."""

SAME = ("ipfs_swarm_key", "testbed_chain_id", "testbed_bundle", "testbed_bundle_sha256")
"""Variables that all hosts must agree on."""


def variable_problems(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one text for each mistake in the hosts' variables.

    Parameters
    ----------
    hosts
        The hosts that count.
    hostvars
        The variables of each host. One that neither inventory nor `-e` sets has the role's default, which is right.
    """
    mistakes: dict[str, list[str]] = defaultdict(list)
    names = list(hosts)
    for host in names:
        known = hostvars[host]
        for variable, check in CHECKS.items():
            if variable in known and (problem := _problem(known, variable, check)):
                mistakes[f"{variable} {problem}"].append(host)
        if problem := _clash(known):
            mistakes[problem].append(host)
    problems = [
        text if len(having) == len(names) else f"{text} (on {', '.join(having)})" for text, having in mistakes.items()
    ]
    problems += [
        f"host {host!r}: a host's name should have letters, digits, hyphens, underscores and dots"
        for host in names
        if not _HOST.fullmatch(host)
    ]
    return problems + [
        f"{variable} differs between hosts: should be the same on all of them"
        for variable in SAME
        if len({_seen(hostvars[host], variable) for host in names}) > 1
    ]


def _seen(known: Mapping[str, Any], variable: str) -> str:
    try:
        return str(known[variable]) if variable in known else ""
    except (AnsibleError, UndefinedError):
        return ""


def _problem(known: Mapping[str, Any], variable: str, check: Callable[[Any], str | None]) -> str | None:
    try:
        value = known[variable]
        # Before ansible-core 2.19 a value that ansible-vault encrypted is an object that becomes the text.
        plain = value if isinstance(value, str | int | float | list | tuple | dict | None) else str(value)
    except UndefinedError:
        return None  # It follows from what only tasks know, such as other hosts' variables.
    except AnsibleError as error:
        return f"can't be worked out: {str(error).splitlines()[0]}"
    return check(plain)


def _clash(known: Mapping[str, Any]) -> str | None:
    """Say which two of a host's ports are the same."""
    owners: dict[int, str] = {}
    for variable, default in PORTS.items():
        try:
            port = _int(known.get(variable, default))
        except (AnsibleError, UndefinedError):
            continue
        if port and port in owners:
            return f"{owners[port]} and {variable} are both {port}: each needs a port of its own"
        if port:
            owners[port] = variable
    return None


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file by name."""
        return {"variable_problems": variable_problems}
