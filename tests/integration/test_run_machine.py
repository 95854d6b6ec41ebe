"""Any order of steps, kills, lost folders, lies, votes and reorganisations leads to the undisturbed run's weights."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from

from fl_node.artifacts import model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta
from fl_node.audit.auditor import audit
from fl_node.chain.client import Chain
from fl_node.chain.contract import GLOBAL_WEIGHT_SET, WITHDRAWN, Contract, LogEntry
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ChainError, ContractError, StoreError, WeightsError
from fl_node.nodes.dev_chain import EmbeddedChain, _Server
from fl_node.plan.schema import DataPlan, Plan
from fl_node.protocol import history
from fl_node.roles.deploy import deploy
from fl_node.roles.factory import header_of, learner_of
from fl_node.roles.header import Header
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Done, Site, Timing
from tests.helpers.clock import FakeClock
from tests.helpers.stub import StubTrainer

PLAN = Plan(name="machine", rounds=3, learners=2, data=DataPlan(name="digits", train=40, test=10))
NODES = ("header", "learner-1", "learner-2")
LEARNERS = NODES[1:]
ROLES = (*NODES, "standby-1", "standby-2")
"""Each learner's host can lead the run too."""
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
        self.lies = 0
        self.clock = FakeClock()
        self.roles: dict[str, Header | Learner] = {}

    def chain(self, node: str) -> Chain:
        return Chain(self.rpc, load_key(self.keys[node.replace("standby", "learner")]))

    def as_node(self, node: str) -> Contract:
        return self.chain(node).contract(self.contract)

    def height(self) -> int:
        return self.chain("header").block_number()

    def log(self) -> list[LogEntry]:
        return list(self.as_node("header").log())

    def role(self, node: str) -> Header | Learner:
        """Return the process of a node: a new one if it was killed or has ended."""
        if node not in self.roles:
            folder = self.folder / node
            folder.mkdir(exist_ok=True)
            contract = self.as_node(node)
            site = Site(contract.chain, contract, self.store, folder, timing=Timing(clock=self.clock))
            trainer = StubTrainer(PLAN)
            is_learner = node.startswith("learner")
            self.roles[node] = (
                learner_of(site, PLAN, trainer) if is_learner else header_of(site, PLAN, trainer, evaluate=False)
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
        if role is not None:
            role.close()

    def let_learners_close_the_round(self) -> bool:
        """Let the learners do their work, and return whether the round is closed."""
        for node in LEARNERS * 10:
            if self.as_node("header").state().closed:
                return True
            self.step(node)
        return False

    def lie(self) -> None:
        """Publish, as the header, global weights that leave every learner out."""
        state = self.as_node("header").state()
        start = model_file.read(self.folder / "store" / str(state.global_cid))
        self.lies += 1
        path = self.folder / f"lie-{self.lies}.safetensors"
        meta = GlobalMeta(start.global_meta.plan, state.round + 1, start.cid, "fedavg")
        lie = model_file.write(path, meta, start.tensors())
        node = dict(zip(self.accounts, NODES, strict=True))[str(state.header)]
        header = self.as_node(node)
        header.set_global_weight(self.store.add(lie.path), header.chain.nonce())

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
        waiting = set(ROLES)
        for _ in range(MOST_STEPS):
            waiting -= {node for node in sorted(waiting) if self.step(node)}
            if not waiting:
                return str(self.as_node("header").global_weight_at(PLAN.rounds))
        raise AssertionError(f"{sorted(waiting)} have not ended after {MOST_STEPS} steps; the log: {self.log()}")

    def close(self) -> None:
        for node in ROLES:
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
    """A run whose roles are killed and lose their folders, whose headers lie, and whose chain is reorganised."""

    final = ""
    """CID of the undisturbed run's final weights."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.network = Network(Path(self._folder.name))
        self.before = self.network.log()

    @rule(node=sampled_from(ROLES), times=integers(1, 6))
    def steps(self, node: str, times: int) -> None:
        for _ in range(times):
            self.network.step(node)

    @rule(node=sampled_from(ROLES))
    def kill(self, node: str) -> None:
        self.network.kill(node)

    @rule(node=sampled_from(ROLES))
    def lose_folder(self, node: str) -> None:
        self.network.kill(node)
        shutil.rmtree(self.network.folder / node, ignore_errors=True)

    @precondition(lambda self: self.network.height() > self.network.floor)
    @rule(count=integers(1, 3))
    def reorganise(self, count: int) -> None:
        self.network.lose_blocks(count)
        self.before = self.network.log()

    @rule()
    def lie(self) -> None:
        if self.network.let_learners_close_the_round():
            self.network.lie()

    @rule(times=integers(1, 3))
    def header_does_nothing(self, times: int) -> None:
        if self.network.let_learners_close_the_round():
            self.network.clock.sleep(PLAN.header_timeout + 1)
            for node in LEARNERS * times:
                self.network.step(node)

    @invariant()
    def rounds_follow_one_another_and_no_hash_is_lost(self) -> None:
        log = self.network.log()
        assert log[: len(self.before)] == self.before
        number = 0
        for entry in log:
            if entry.name == GLOBAL_WEIGHT_SET:
                assert entry.round == number
                number += 1
            elif entry.name == WITHDRAWN:
                assert entry.round is not None
                assert entry.round < number
                number = entry.round
        self.before = log

    def teardown(self) -> None:
        network = self.network
        try:
            type(self).final = type(self).final or undisturbed()
            assert network.finish() == type(self).final
            folder = network.folder / "audit"
            folder.mkdir()
            contract = network.as_node("header")
            result = audit(contract, network.store, folder, StubTrainer)
            assert result.passed, result.findings
            assert history.read(contract).is_finalized(PLAN.rounds)
            withdrawn = {str(one.started.cid) for one in history.read(contract).withdrawn}
            assert all(any(name in note for note in result.notes) for name in withdrawn), result.notes
        finally:
            network.close()
            self._folder.cleanup()


ALL = settings(stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))


class TestRun(RunMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(ALL, max_examples=6)


@pytest.mark.nightly
class TestManyRuns(RunMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(ALL, max_examples=100)
