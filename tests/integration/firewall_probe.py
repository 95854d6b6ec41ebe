"""Runs in namespaces of its own, as one host with its firewall, and prints as JSON what was asked.

firewall_probe.py QUESTION ETC SCRIPT: ETC takes the place of /etc, SCRIPT is the role's fl-firewall.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LOCAL = {"rpc": 8545, "authrpc": 8551, "metrics": 6060, "api": 5001, "page": 8090}
P2P = {"geth": 30303, "ipfs": 4001}
OWNERS = {"rpc": "geth", "authrpc": "geth", "metrics": "geth", "api": "ipfs", "page": "fl-dashboard"} | {
    name: name for name in P2P
}
ADDRESSES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6, "10.9.0.1": socket.AF_INET}
SECONDS = 2.0
"""No answer within this time is none; what answers here does so at once."""
RULES = Path("/etc/fl-testbed/firewall.d/more.nft")
SCRIPT = sys.argv[-1]


def run(*command: str) -> int:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def fl_firewall(verb: str) -> int:
    return run(SCRIPT, verb)


def check() -> list[Any]:
    said = subprocess.run([SCRIPT, "check"], stdout=subprocess.PIPE, text=True, check=False)
    return [said.returncode, said.stdout.strip()]


def set_up() -> None:
    """Own files in the place of the machine's, two hosts with one line between them; this one is 10.9.0.1."""
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "tmpfs", "/run"],
        ["mount", "--bind", sys.argv[2], "/etc"],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "add", "line", "type", "veth", "peer", "name", "line2"],
        ["ip", "address", "add", "10.9.0.1/24", "dev", "line"],
        ["ip", "link", "set", "line", "up"],
    ):
        subprocess.run(command, check=True)


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """Sockets that are made inside are this user's."""
    os.seteuid(pwd.getpwnam(name).pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def listening(ports: dict[str, int], owners: dict[str, str] | None = None) -> Iterator[None]:
    """Greet whoever connects, for each port as its owner."""
    children = []
    for name, port in ports.items():
        with as_user((owners or {}).get(name, "root")):
            server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        if (pid := os.fork()) == 0:
            os.setuid(pwd.getpwnam((owners or {}).get(name, "root")).pw_uid)
            while True:
                connection, _ = server.accept()
                with contextlib.suppress(OSError), connection:
                    connection.sendall(b"hello")
        server.close()
        children.append(pid)
    try:
        yield
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def greeted(asked: Iterable[tuple[str, str, int]]) -> list[bool]:
    """Whether each user's connection to an address and port gets an answer; all are tried at once."""
    sockets = []
    for user, address, _ in asked:
        with as_user(user):
            sockets.append(socket.socket(ADDRESSES.get(address, socket.AF_INET)))

    def greets(asking: socket.socket, to: tuple[str, str, int]) -> bool:
        with asking, contextlib.suppress(OSError):
            asking.settimeout(SECONDS)
            asking.connect(to[1:])
            return asking.recv(5) == b"hello"
        return False

    with ThreadPoolExecutor(len(sockets)) as pool:
        return list(pool.map(greets, sockets, asked))


def by_user(address: str, ports: dict[str, int], names: list[str]) -> dict[str, list[str]]:
    """Who of these users reaches which port."""
    asked = [(user, address, port) for port in ports.values() for user in names]
    answers = iter(greeted(asked))
    return {name: [user for user in names if next(answers)] for name in ports}


def users() -> list[str]:
    return [entry.pw_name for entry in pwd.getpwall()]


@contextlib.contextmanager
def other_host() -> Iterator[int]:
    """The process that holds 10.9.0.2, and listens there."""
    ready, told = os.pipe()
    go, goes = os.pipe()
    if (pid := os.fork()) == 0:
        unshare_net()
        os.write(told, b"1")
        os.read(go, 1)
        for command in (
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", "10.9.0.2/24", "dev", "line2"],
            ["ip", "link", "set", "line2", "up"],
        ):
            subprocess.run(command, check=True)
        with listening(P2P | {"other": 7777}):
            os.write(told, b"2")
            os.read(go, 1)
        os._exit(0)
    os.read(ready, 1)
    subprocess.run(["ip", "link", "set", "line2", "netns", str(pid)], check=True)
    os.write(goes, b"1")
    os.read(ready, 1)
    try:
        yield pid
    finally:
        os.write(goes, b"2")
        os.waitpid(pid, 0)


def unshare_net() -> None:
    """Give this process a network of its own; Python 3.11 has no `os.unshare`."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def open_to_peers() -> list[str]:
    """Which ports of this host the other one reaches."""
    ports = P2P | LOCAL | {"ssh": 22, "other": 7777}
    with listening(ports), other_host() as pid:
        said = subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, __file__, "reach", *map(str, ports.values())],
            stdout=subprocess.PIPE,
            check=True,
        )
    return sorted(name for name, answered in zip(ports, json.loads(said.stdout), strict=True) if answered)


def local() -> dict[str, list[str]]:
    """Who reaches which port of this host, at each of its addresses."""
    fl_firewall("load")
    with listening(LOCAL | P2P, OWNERS):
        return {
            f"{name} at {address}": reached
            for address in ADDRESSES
            for name, reached in by_user(address, LOCAL | P2P, users()).items()
        }


def remote() -> dict[str, list[str]]:
    """Who reaches which port of the other host."""
    fl_firewall("load")
    with other_host():
        return by_user("10.9.0.2", P2P | {"other": 7777}, users())


def squat() -> dict[str, list[str]]:
    """Whom a stranger's server deceives that listens in the place of a service."""
    fl_firewall("load")
    with listening(LOCAL, dict.fromkeys(LOCAL, "nobody")):
        return by_user("127.0.0.1", LOCAL, ["root", "fl-node"])


def load() -> dict[str, Any]:
    return {"load": fl_firewall("load"), "check": check(), "open": open_to_peers()}


def break_rules() -> dict[str, Any]:
    """Load rules, then rules with a mistake."""
    fl_firewall("load")
    RULES.write_text("add rule inet fl_testbed output meta skuid stranger reject\n")
    return load()


def harm() -> dict[str, list[int]]:
    """What `check` and, after `ensure`, `check` again say of a table to which each of these was done."""
    harms = {
        "flushed ruleset": ["flush ruleset"],
        "deleted table": ["delete table inet fl_testbed"],
        "flushed table": ["flush table inet fl_testbed"],
        "flushed chain": ["flush chain inet fl_testbed output"],
        "open policy": ["chain inet fl_testbed input { policy accept; }"],
        "rule before": ["insert rule inet fl_testbed input accept"],
        "another peer": ["add element inet fl_testbed peers { 10.9.0.77 }"],
        "empty table": ["delete table inet fl_testbed", "add table inet fl_testbed"],
    }
    found = {}
    for name, commands in harms.items():
        fl_firewall("load")
        for command in commands:
            subprocess.run(["nft", command], check=True)
        noticed = fl_firewall("check")
        fl_firewall("ensure")
        found[name] = [noticed, fl_firewall("check")]
    return found


def unload() -> dict[str, Any]:
    fl_firewall("load")
    return {"unload": fl_firewall("unload"), "check": check()}


QUESTIONS = {
    "local": local,
    "remote": remote,
    "squat": squat,
    "load": load,
    "break": break_rules,
    "harm": harm,
    "unload": unload,
}

if __name__ == "__main__":
    if sys.argv[1] == "reach":
        print(json.dumps(greeted([("root", "10.9.0.1", int(port)) for port in sys.argv[2:]])))
    else:
        set_up()
        print(json.dumps(QUESTIONS[sys.argv[1]]()))
