"""Any order of steps, kills, lost folders, lies, votes and reorganisations leads to the undisturbed run's weights."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from

from fl_node.audit.auditor import audit
from fl_node.chain.contract import GLOBAL_WEIGHT_SET, WITHDRAWN
from fl_node.plan.schema import DataPlan, Plan
from fl_node.protocol import history
from tests.helpers.network import Network
from tests.helpers.stub import StubTrainer

PLAN = Plan(name="machine", rounds=3, learners=2, data=DataPlan(name="digits", train=40, test=10))
LEARNERS = ("learner-1", "learner-2")
ROLES = ("header", *LEARNERS, "standby-1", "standby-2")
"""Each learner's host can lead the run too."""


def undisturbed() -> str:
    with tempfile.TemporaryDirectory() as name:
        network = Network(Path(name), PLAN)
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
        self.network = Network(Path(self._folder.name), PLAN)
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
            withdrawn = {str(past_round.started.cid) for past_round in history.read(contract).withdrawn}
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
