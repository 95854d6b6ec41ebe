"""Real nodes on loopback, and a plan that is trained in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_node.chain import Chain, create_key, load_key
from fl_node.place import ProcessPlace

NODES = ("header", "learner-1", "learner-2")

TINY = """
name = "tiny"
rounds = 3
learners = 2
data = { name = "digits", train = 400, test = 100 }
model = { name = "mlp" }
training = { epochs = 2, batch_size = 20 }
"""


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of three rounds with two learners."""
    path = tmp_path_factory.mktemp("plan") / "tiny.toml"
    path.write_text(TINY)
    return path


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
def place(accounts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPlace]:
    """Three Geth and three IPFS nodes; a test that stops one starts it again."""
    running = ProcessPlace(tmp_path_factory.mktemp("nodes"), accounts, print)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def chain(place: ProcessPlace, keys: dict[str, Path]) -> Callable[[str], Chain]:
    """A node's own RPC, by the name of the node."""
    chains = {node: Chain(place.geth[node].rpc, load_key(keys[node])) for node in NODES}
    return chains.__getitem__


@pytest.fixture(scope="session")
def lab_run(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The tiny plan, carried out by `fl-node lab` in the embedded place: its folder, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "fl_node", "lab", str(tiny_plan), "--runs", str(runs), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return runs / "tiny", json.loads(done.stdout)
