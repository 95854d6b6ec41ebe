"""What stops the release of Geth does not stop the build of the testbed: one node, attacked on loopback."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from eth_keys import keys

from fl_node.nodes import CHAIN_ID, binaries
from fl_node.nodes.backends import free_ports
from fl_node.nodes.binaries.edits import MAX_ITEMS
from fl_node.nodes.configuration import genesis
from fl_node.nodes.geth import GethNode
from fl_node.nodes.process import Child
from fl_node.runtime.waiting import wait_until
from tests.helpers import rlpx

HANG = 600
MEMBER, STRANGER = (bytes([number]) * 32 for number in (1, 2))


@dataclass
class Target:
    """The node that is attacked."""

    child: Child
    port: int
    public: bytes

    def lives(self) -> bool:
        """Return whether the node still runs, and still answers a handshake."""
        rlpx.Peer(self.port, self.public, STRANGER).close()
        return self.child.process.poll() is None


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), HANG).close()
    except ConnectionError:
        return False
    return True


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("target")
    binary = binaries.install(binaries.GETH)
    node = GethNode(folder / "node")
    node.prepare()
    node.p2p_port, node.http_port, nobody = free_ports(3)
    genesis_file = folder / "genesis.json"
    genesis_file.write_text(genesis(CHAIN_ID, [node.sealer], []))
    init = Child("geth init", node.init_command(binary, genesis_file), folder / "init.log")
    assert init.process.wait(HANG) == 0, init.tail()
    # The member is a peer of the inventory, whose host is in other hands.
    public = keys.PrivateKey(MEMBER).public_key.to_hex()[2:]
    command = node.command(binary, [f"enode://{public}@127.0.0.1:{nobody}?discport=0"])
    child = Child("geth", command, folder / "geth.log")
    try:
        assert wait_until(lambda: listens(node.p2p_port), HANG), child.tail()
        yield Target(child, node.p2p_port, bytes.fromhex(node.enode[8:136]))
    finally:
        child.stop()


EPHEMERAL = bytes([3]) * 32
POINT = b"\4" + keys.PrivateKey(EPHEMERAL).public_key.to_bytes()


def packet(target: Target, size: int) -> bytes:
    """Return a first packet of `size` bytes after its length, with a right MAC as far as there is room for one."""
    room = max(size - 97, 0)
    prefix = size.to_bytes(2)
    secret = rlpx.shared_secret(EPHEMERAL, target.public)
    content = rlpx.sealed(POINT, secret, bytes(max(room - 16, 0)), prefix, iv=min(room, 16))
    return prefix + content[:size]


def test_a_ciphertext_of_any_length_is_refused(target: Target) -> None:
    # CVE-2026-22862: with 98 to 112 bytes the MAC is right and the initial vector is cut short.
    for size in range(201):
        assert rlpx.rejected(target.port, packet(target, size)), size
        # As before EIP-8: no length in front, so that the first two bytes are taken for it.
        assert rlpx.rejected(target.port, packet(target, size)[2:]), size
    assert target.lives()


def test_garbage_of_any_length_is_refused(target: Target) -> None:
    for size in (*range(0, 200, 7), 307, 2048, 65535):
        for first in (0, 2, 3, 4):
            content = (bytes([first]) + secrets.token_bytes(size))[:size]
            assert rlpx.rejected(target.port, size.to_bytes(2) + content), (size, first)
    assert target.lives()


def test_a_point_that_is_not_on_the_curve_is_refused(target: Target) -> None:
    # CVE-2026-26315, CVE-2026-26314: the sender may know the secret of such a point; an answer tells bits of the key.
    message = rlpx.auth_message(target.public, STRANGER, bytes([4]) * 32, bytes(32))
    prefix = (len(message) + 113).to_bytes(2)
    for point in rlpx.points_off_the_curve():
        for secret in rlpx.guesses(point):
            assert rlpx.rejected(target.port, prefix + rlpx.sealed(point, secret, message, prefix)), point.hex()
    assert target.lives()


def member(target: Target) -> rlpx.Peer:
    peer = rlpx.Peer(target.port, target.public, MEMBER)
    peer.hello()
    peer.join()
    return peer


def test_a_member_cannot_fill_the_memory_with_empty_items(target: Target) -> None:
    # CVE-2026-26313: 10 MB of bodies that nobody asked for become hundreds when they are decoded.
    peer = member(target)
    try:
        peer.send(rlpx.BODIES, None, encoded=rlpx.bodies(MAX_ITEMS // 3 - 2))
        assert peer.answers()
        peer.send(rlpx.BODIES, None, encoded=rlpx.bodies(3_400_000))
        assert not peer.answers()
    finally:
        peer.close()
    assert target.lives()
