"""Any order of steps, kills, lost folders and reorganisations leads to the weights of the undisturbed run."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from

from fl_node.artifacts.folder_store import FolderStore
from fl_node.audit.auditor import audit
from fl_node.chain.client import Chain
from fl_node.chain.contract import LogEntry
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ChainError, ContractError, StoreError, WeightsError
from fl_node.nodes.dev_chain import EmbeddedChain, _Server
from fl_node.plan.schema import DataPlan, Plan
from fl_node.roles.deploy import deploy
from fl_node.roles.factory import header_of, learner_of
from fl_node.roles.header import Header
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Done, Site
from tests.helpers.stub import StubTrainer

PLAN = Plan(name="machine", rounds=3, learners=2, data=DataPlan(name="digits", train=40, test=10))
NODES = ("header", "learner-1", "learner-2")
MOST_STEPS = 600
"""Steps in which a run that nothing disturbs any more must end; it takes about forty."""


class Network:
    """A chain that can lose its newest blocks, as in a reorganisation, and the roles of one run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "store")
        self.keys = {node: folder / f"{node}.key" for node in NODES}
        self.accounts = [create_key(path) for path in self.keys.values()]
        self.blocks = folder / "blocks-0"
        self.server = _Server(0, EmbeddedChain(self.blocks, self.accounts))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.rpc = f"http://127.0.0.1:{self.server.server_port}"
        learners = dict(enumerate(self.accounts[1:], 1))
        deployed = deploy(self.chain("header"), self.store, folder / "deploy", PLAN, learners, StubTrainer(PLAN))
        self.contract = deployed.address
        self.floor = self.height()
        self.reorganisations = 0
        self.roles: dict[str, Header | Learner] = {}

    def chain(self, node: str) -> Chain:
        return Chain(self.rpc, load_key(self.keys[node]))

    def height(self) -> int:
        return self.chain("header").block_number()

    def log(self) -> list[LogEntry]:
        return list(self.chain("header").contract(self.contract).log())

    def role(self, node: str) -> Header | Learner:
        """Return the process of a node: a new one if it was killed or has ended."""
        if node not in self.roles:
            folder = self.folder / node
            folder.mkdir(exist_ok=True)
            chain = self.chain(node)
            site = Site(chain, chain.contract(self.contract), self.store, folder)
            trainer = StubTrainer(PLAN)
            is_header = node == "header"
            self.roles[node] = (
                header_of(site, PLAN, trainer, evaluate=False) if is_header else learner_of(site, PLAN, trainer)
            )
        return self.roles[node]

    def step(self, node: str) -> bool:
        """Let a role look once and do the next thing; return whether its run has ended."""
        try:
            self.role(node).step()
        except Done:
            self.kill(node)
            return True
        except ContractError:
            raise
        except (ChainError, StoreError, WeightsError):
            pass  # as the loop of the roles does, it looks again
        return False

    def kill(self, node: str) -> None:
        role = self.roles.pop(node, None)
        if isinstance(role, Header):
            role.close()

    def lose_blocks(self, count: int) -> None:
        """Go on from an older block; the transactions of those after it are lost, and their senders do not know."""
        kept = max(self.height() - count, self.floor)
        lines = self.blocks.read_text().splitlines(keepends=True)[:kept]
        self.reorganisations += 1
        self.blocks = self.folder / f"blocks-{self.reorganisations}"
        self.blocks.write_text("".join(lines))
        with self.server.lock:
            self.server.chain = EmbeddedChain(self.blocks, self.accounts)

    def finish(self) -> str:
        """Disturb nothing any more, and return the CID of the final weights."""
        waiting = set(NODES)
        for _ in range(MOST_STEPS):
            waiting -= {node for node in sorted(waiting) if self.step(node)}
            if not waiting:
                return str(self.chain("header").contract(self.contract).global_weight_at(PLAN.rounds))
        raise AssertionError(f"{sorted(waiting)} have not ended after {MOST_STEPS} steps; the log: {self.log()}")

    def close(self) -> None:
        for node in NODES:
            self.kill(node)
        self.server.shutdown()
        self.server.server_close()


def undisturbed() -> str:
    with tempfile.TemporaryDirectory() as name:
        network = Network(Path(name))
        try:
            return network.finish()
        finally:
            network.close()


class RunMachine(RuleBasedStateMachine):
    """A run whose roles are killed, lose their folders, and whose chain is reorganised."""

    final = ""
    """CID of the undisturbed run's final weights."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.network = Network(Path(self._folder.name))
        self.before = self.network.log()

    @rule(node=sampled_from(NODES), times=integers(1, 6))
    def steps(self, node: str, times: int) -> None:
        for _ in range(times):
            self.network.step(node)

    @rule(node=sampled_from(NODES))
    def kill(self, node: str) -> None:
        self.network.kill(node)

    @rule(node=sampled_from(NODES))
    def lose_folder(self, node: str) -> None:
        self.network.kill(node)
        shutil.rmtree(self.network.folder / node, ignore_errors=True)

    @precondition(lambda self: self.network.height() > self.network.floor)
    @rule(count=integers(1, 3))
    def reorganise(self, count: int) -> None:
        self.network.lose_blocks(count)
        self.before = self.network.log()

    @invariant()
    def rounds_follow_one_another_and_no_hash_is_lost(self) -> None:
        log = self.network.log()
        assert log[: len(self.before)] == self.before
        started = [entry.round for entry in log if entry.name == "GlobalWeightSet"]
        assert started == list(range(len(started)))
        self.before = log

    def teardown(self) -> None:
        network = self.network
        try:
            type(self).final = type(self).final or undisturbed()
            assert network.finish() == type(self).final
            folder = network.folder / "audit"
            folder.mkdir()
            contract = network.chain("header").contract(network.contract)
            result = audit(contract, network.store, folder, StubTrainer)
            assert result.passed, result.findings
        finally:
            network.close()
            self._folder.cleanup()


ALL = settings(stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


class TestRun(RunMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(ALL, max_examples=6)


@pytest.mark.nightly
class TestManyRuns(RunMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(ALL, max_examples=100)
