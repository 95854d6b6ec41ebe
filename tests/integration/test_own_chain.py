"""A lab on the chain of a current Geth, which has no Clique: proof of stake, a block a second."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from fl_node.chain.client import Chain
from fl_node.chain.contract import GLOBAL_WEIGHT_SET, LOCAL_WEIGHT_SET
from fl_node.chain.node import Pace
from fl_node.errors import ConfigError, FLNodeError
from fl_node.lab import run_folder
from fl_node.nodes import binaries
from fl_node.nodes.backends import free_ports
from fl_node.nodes.process import Child
from fl_node.runtime.waiting import wait_until
from tests.helpers.warm import fl_node

pytestmark = pytest.mark.nightly
PATIENCE = 600.0
WEIGHTS = (LOCAL_WEIGHT_SET, GLOBAL_WEIGHT_SET)


class DeveloperChain:
    """Geth in its developer mode: a chain of one node, and an account that owns all ether."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (port,) = free_ports(1)
        self.rpc = f"http://127.0.0.1:{port}"
        self.command = [
            str(binaries.install(binaries.GETH_CURRENT, report=print)),
            *("--dev", "--dev.period", "1", "--datadir", str(folder / "data")),
            *("--http", "--http.addr", "127.0.0.1", "--http.port", str(port), "--http.api", "eth,net,web3"),
            *("--ipcdisable", "--nodiscover", "--port", "0", "--authrpc.port", "0"),
        ]
        self.start()

    def start(self) -> None:
        self.child = Child("geth", self.command, self.folder / "geth.log")
        assert wait_until(self._is_up, PATIENCE), self.child.tail()

    def _is_up(self) -> bool:
        assert self.child.running, self.child.tail()
        try:
            return Chain(self.rpc).block_number() >= 2
        except FLNodeError:
            return False

    @property
    def funder(self) -> Path:
        path = self.folder / "funder.key"
        (stored,) = (self.folder / "data" / "keystore").iterdir()
        path.touch(0o600)
        path.write_text(Account.decrypt(stored.read_text(), "").hex())
        return path


@pytest.fixture(scope="module")
def developer_chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeveloperChain]:
    chain = DeveloperChain(tmp_path_factory.mktemp("developer"))
    try:
        yield chain
    finally:
        chain.child.stop()


def published(folder: Path) -> tuple[str, list[tuple[Any, ...]]]:
    """Return the CID of a run's plan, and those of all local and global weights, by round and learner."""
    with run_folder.reach(folder, print) as (contract, _):
        entries = [(one.round, one.node_id or 0, one.cid) for one in contract.log() if one.name in WEIGHTS]
        return contract.plan(), sorted(entries)


def test_the_node_is_ready_steady_and_tells_final_blocks(developer_chain: DeveloperChain) -> None:
    chain = Chain(developer_chain.rpc)
    assert chain.is_ready()
    assert not chain.is_clique
    assert chain.finalized() is not None
    assert wait_until(lambda: chain.pace() == Pace(1, is_steady=True), PATIENCE)


def test_a_run_has_the_cids_of_the_embedded_chain(
    developer_chain: DeveloperChain, tiny_plan: Path, lab_run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    done = fl_node(
        *("lab", tiny_plan, "--rpc", developer_chain.rpc, "--funder", developer_chain.funder),
        *("--runs", tmp_path / "runs", "--json"),
    )
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["run"])
    plan, entries = published(folder)
    assert len(entries) == 3 * 2 + 4
    assert (plan, entries) == published(lab_run[0])

    audit = fl_node("audit", folder, "--json")
    assert audit.returncode == 0, audit.stderr
    found = json.loads(audit.stdout)
    assert found["passed"]
    assert found["final"] in (True, False)
    key = folder / "nodes" / "learner-1" / "role.key"
    record = run_folder.load(folder)
    assert record.versions["chain"].startswith(f"Geth/v{binaries.GETH_CURRENT.full_version}/")
    doctor = fl_node(
        *("doctor", "--own-chain", "--chain-id", "1337", "--rpc", developer_chain.rpc, "--key", key, "--json"),
        *("--store", record.nodes["learner-1"].store, "--contract", record.contract, "--peers", "0"),
    )
    answers = {one["what"]: one for one in json.loads(doctor.stdout)}
    wanted = ("chain", "genesis", "sealing", "chain peers", "finality", "account", "contract", "store")
    assert {answers[what]["state"] for what in wanted} == {"ok"}, answers
    assert answers["sealing"]["found"] == "the node is in sync, a block every 1 s"

    developer_chain.child.stop()
    with pytest.raises(ConfigError, match="does not answer"), run_folder.reach(folder, print):
        pass
    developer_chain.start()
    assert published(folder) == (plan, entries)
