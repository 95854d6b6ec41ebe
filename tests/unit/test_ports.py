"""Ports that are held for nodes: nobody else gets them, and a node can listen on them again and again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from fl_node.nodes.backends import Ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a port beside its listener")
HOST = "127.0.0.1"


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    yield made
    made.close()


def test_nobody_listens_on_a_held_port_and_no_other_program_can_bind_it(ports: Ports) -> None:
    first, second = ports.take(2)
    assert first != second
    for port in (first, second):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port), 10.0)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))


def test_a_node_listens_on_a_held_port_and_does_so_again_after_it_was_away(ports: Ports) -> None:
    (port,) = ports.take(1)
    for _ in range(2):
        with socket.create_server((HOST, port)) as node, socket.create_connection((HOST, port), 10.0) as client:
            here, _ = node.accept()
            with here:
                client.sendall(b"x")
                assert here.recv(1) == b"x"


@pytest.mark.parametrize("reuse", [0, 1])
def test_the_system_gives_a_held_port_to_nobody(ports: Ports, reuse: int) -> None:
    held = set(ports.take(50))
    sockets = [socket.socket() for _ in range(300)]
    try:
        for other in sockets:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            other.bind((HOST, 0))
        assert held.isdisjoint(other.getsockname()[1] for other in sockets)
    finally:
        for other in sockets:
            other.close()
