"""Which TCP ports of an address accept connections. As a script it needs only a Python, such as a host's."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import time
from collections.abc import Sequence

PORTS = [*range(1, 10_000), *range(30_300, 30_310)]
PEERS = [22, 4001, 30303]
"""SSH, IPFS and Geth."""
SECONDS = 3.0
"""How long an answer may take: a system that loses the first packet sends it again after a second."""


def open_ports(address: str, ports: Sequence[int]) -> list[int]:
    """Try all ports at once, or as many as this process may have open files."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if len(ports) > (most := limit - 100):
        return open_ports(address, ports[:most]) + open_ports(address, ports[most:])
    tried = {}
    try:
        for port in ports:
            tried[port] = socket.socket()
            tried[port].setblocking(False)
            tried[port].connect_ex((address, port))
        time.sleep(SECONDS)
        return [port for port, each in tried.items() if _is_connected(each)]
    finally:
        for each in tried.values():
            each.close()


def _is_connected(each: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        each.getpeername()
        return True
    return False


if __name__ == "__main__":
    print(*open_ports(sys.argv[1], PEERS if sys.argv[2] == "peers" else PORTS))
