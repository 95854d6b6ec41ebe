"""IPFS daemons of a test's own, and lines between them that are slow."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from fl_node.nodes import binaries
from fl_node.nodes.backends import Ports
from fl_node.nodes.ipfs import IpfsNode
from fl_node.nodes.process import Child

HANG = 600.0
"""Seconds after which something has hung; what is tested takes a small part of it."""


@contextlib.contextmanager
def daemon(
    folder: Path, swarm_key: str | None, peers: Sequence[IpfsNode] = (), environment: Mapping[str, str] | None = None
) -> Iterator[tuple[IpfsNode, Child]]:
    """A daemon that knows these peers; None for its swarm key means that it has no such file."""
    node = IpfsNode(folder)
    binary = binaries.install(binaries.KUBO)
    init = Child("ipfs init", node.init_command(binary), folder / "init.log", node.environment)
    try:
        assert init.process.wait(HANG) == 0, init.tail()
    finally:
        init.stop()
    ports = Ports()
    node.swarm_port, node.api_port = ports.take(2)
    command = node.command(binary, swarm_key or "", peers)
    if swarm_key is None:
        (folder / "swarm.key").unlink()
    child = Child("ipfs", command, folder / "daemon.log", {"IPFS_PATH": str(folder), **(environment or {})})
    try:
        yield node, child
    finally:
        child.stop()
        ports.close()


class SlowLine:
    """A port of loopback that passes on what comes at so many bytes a second, and nothing while it is cut."""

    def __init__(self, port: int, rate: float) -> None:
        self.cut = False
        self._rate = rate
        self._ends: list[socket.socket] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self._inside = ("127.0.0.1", port)
        self.port = self._door.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._answer, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._door, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, there = self._door.accept()[0], socket.create_connection(self._inside)
                self._ends += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(16 * 1024):
                while self.cut:
                    time.sleep(0.05)
                time.sleep(len(part) / self._rate)
                target.sendall(part)
