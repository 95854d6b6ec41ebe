"""Real nodes on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fl_node.chain.client import Chain
from fl_node.chain.keys import create_key, load_key
from fl_node.nodes.backends import ProcessBackend
from fl_node.plan.schema import Plan
from tests.helpers.network import Network
from tests.helpers.runs import World

NODES = ("header", "learner-1", "learner-2")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The key file of each node's role."""
    folder = tmp_path_factory.mktemp("keys")
    paths = {node: folder / f"{node}.key" for node in NODES}
    for path in paths.values():
        create_key(path)
    return paths


@pytest.fixture(scope="session")
def accounts(keys: dict[str, Path]) -> dict[str, str]:
    """The address of each node's role."""
    return {node: str(load_key(path).address) for node, path in keys.items()}


@pytest.fixture(scope="module")
def backend(accounts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBackend]:
    """Three Geth and three IPFS nodes; a test that stops one starts it again."""
    running = ProcessBackend(tmp_path_factory.mktemp("nodes"), accounts, print)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def chain(backend: ProcessBackend, keys: dict[str, Path]) -> Callable[[str], Chain]:
    """A node's own RPC, by the name of the node."""
    chains = {node: Chain(backend.geth[node].rpc, load_key(keys[node])) for node in NODES}
    return chains.__getitem__


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An embedded chain on which tests deploy runs and play their roles."""
    with World(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Plan], Network]]:
    """Start networks in which a test steps through the roles of a run."""
    networks: list[Network] = []

    def begin(plan: Plan) -> Network:
        folder = tmp_path / f"network-{len(networks)}"
        folder.mkdir()
        networks.append(Network(folder, plan))
        return networks[-1]

    yield begin
    for network in networks:
        network.close()
