"""A small network of real Geth nodes that seal, as a lab has them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fl_node.chain.client import Chain
from fl_node.chain.transactions import Receipt
from fl_node.errors import ChainError
from fl_node.nodes import CHAIN_ID, binaries
from fl_node.nodes.backends import Ports
from fl_node.nodes.configuration import genesis
from fl_node.nodes.geth import GethNode
from fl_node.nodes.process import Child, stop_all
from fl_node.runtime.waiting import wait_until

_PORTS = Ports()
"""Held until the tests end: nodes end and are started on them again."""

HANG = 600.0
"""Seconds after which something has hung; what is tested takes a small part of it."""


def send(chain: Chain) -> Receipt:
    """Send a transaction to a node until it is in a block; as a role, try again while the node is away."""
    sent: list[Receipt] = []

    def sends() -> bool:
        with contextlib.suppress(ChainError):
            receipt = chain.send(chain.address, b"", 21_000, chain.nonce())
            sent.extend([receipt] if receipt else [])
        return bool(sent)

    assert wait_until(sends, HANG, 0.02), f"no block took a transaction that was sent to {chain.rpc}"
    return sent[0]


def block_hash(chain: Chain, number: int) -> str | None:
    """The hash of a node's block, None while it has none of this number."""
    try:
        with chain.errors():
            return bytes(chain.web3.eth.get_block(number)["hash"]).hex()
    except ChainError:
        return None


def agree(chains: Sequence[Chain], patience: float = HANG) -> bool:
    """Whether nodes come to have the same head.

    Two sealers may have sealed the same transactions in two chains of equal weight; Clique keeps both until one gets
    the next block. So another transaction is sent when nothing changes.
    """

    def same() -> bool:
        with contextlib.suppress(ChainError):
            heads = {block_hash(chain, chain.block_number()) for chain in chains}
            return len(heads) == 1 and None not in heads
        return False

    end = time.monotonic() + patience
    while not wait_until(same, 1.0, 0.05):
        if time.monotonic() > end:
            return False
        send(chains[0])
    return True


def has_peers(chain: Chain, count: int, patience: float = HANG) -> bool:
    def has() -> bool:
        with contextlib.suppress(ChainError):
            return chain.peers() == count
        return False

    return wait_until(has, patience, 0.05)


@contextlib.contextmanager
def started(
    nodes: Mapping[str, GethNode], dials: Callable[[str, str], str], logs: Path, options: Sequence[str] = ()
) -> Iterator[dict[str, Child]]:
    """Start Geth nodes that are initialised, and wait for nothing.

    `dials` says at which enode address the first node dials the second; `options` are further ones of Geth.
    """
    geth = binaries.install(binaries.GETH)
    children: dict[str, Child] = {}
    try:
        for name, node in nodes.items():
            command = node.command(geth, [dials(name, other) for other in nodes if other != name])
            children[name] = Child(name, [*command, *options], logs / f"{name}.log")
        yield children
    finally:
        stop_all(list(children.values()))


def initialised(folder: Path, accounts: Mapping[str, str], others: Sequence[str] = ()) -> dict[str, GethNode]:
    """A sealer for each account with one genesis, on free ports, none started; others own ether, too."""
    nodes = {name: GethNode(folder / name) for name in accounts}
    ports = iter(_PORTS.take(2 * len(nodes)))
    for node in nodes.values():
        node.prepare()
        node.p2p_port, node.http_port = next(ports), next(ports)
    genesis_file = folder / "genesis.json"
    genesis_file.write_text(
        genesis(CHAIN_ID, [node.sealer for node in nodes.values()], [*accounts.values(), *others])
    )
    for node in nodes.values():
        initialise(node, genesis_file)
    return nodes


def initialise(node: GethNode, genesis_file: Path) -> None:
    command = node.init_command(binaries.install(binaries.GETH), genesis_file)
    child = Child("geth init", command, node.folder / "init.log")
    try:
        assert child.process.wait(HANG) == 0, child.tail()
    finally:
        child.stop()
