"""What the audit finds afterwards, the learners notice at once: they withdraw the weights and depose the header."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fl_node import events
from fl_node.artifacts.model_file import Tensors, WeightsFile
from fl_node.protocol import history
from fl_node.protocol.names import learner_name
from fl_node.roles import factory
from fl_node.roles.loop import Site
from tests.helpers.lies import LIES, NOWHERE
from tests.helpers.runs import PATIENCE, Role, Run, World, plan
from tests.helpers.stub import StubTrainer
from tests.helpers.waiting import eventually

LEARNERS = (1, 2, 3)
UNPROVEN = {
    "a missing local file",
    "a missing global file",
    "missing initial weights",
    "a swapped local file",
    "a swapped global file",
    "swapped initial weights",
    "a hash without a file",
}
"""Nobody can prove that a file that is not in the store, or is another there, is the header's fault."""


class Trainer(StubTrainer):
    """Trains when the test lets it."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.plan)
        self.may_train = threading.Event()

    def train(self, *arguments: Any, **options: Any) -> Tensors:
        assert self.may_train.wait(PATIENCE)
        return super().train(*arguments, **options)


class Watched(Run):
    """A run whose learners are roles, but for those that a test plays; the test is the header."""

    def __init__(self, run: Run, played: frozenset[int]) -> None:
        super().__init__(run.world, run.plan, run.address, run.folder, run.trainer)
        self._played = played
        self._trainer = Trainer(run)

    @contextlib.contextmanager
    def learner(self, node_id: int) -> Iterator[Role]:
        def play(site: Site) -> None:
            factory.run_learner(site, lambda _plan: self._trainer)

        with Role(self, learner_name(node_id), play) as role:
            yield role

    def publish_locals(self, *node_ids: int) -> list[WeightsFile]:
        """Let these learners publish, first those that the test plays; return their files."""
        wanted = node_ids or LEARNERS
        files = {n: super(Watched, self).publish_locals(n)[0] for n in wanted if n in self._played}
        round_, roles = self.contract.state().round, [n for n in wanted if n not in self._played]
        self._trainer.may_train.set()
        eventually(lambda: len(self.contract.local_weights(round_, roles)) == len(roles), PATIENCE)
        self._trainer.may_train.clear()
        files |= {n: self.read(name) for n, name in self.contract.local_weights(round_, roles).items()}
        return [files[n] for n in wanted]

    def let_train(self) -> None:
        """Let all roles train from now on."""
        self._trainer.may_train.set()


@pytest.mark.parametrize("kind", sorted(LIES.keys() - UNPROVEN))
def test_a_majority_rejects_a_lie_before_it_trains_on_it(world: World, kind: str) -> None:
    lie = LIES[kind]
    run = Watched(world.deploy(plan(learners=3, **lie.settings)), lie.played)
    with ExitStack() as stack:
        for node_id in set(LEARNERS) - lie.played:
            stack.enter_context(run.learner(node_id))
        run.close_round()
        start = run.current().cid
        lie.tell(run)
        run.let_train()
        for node_id in lie.played:
            stack.enter_context(run.learner(node_id))
        eventually(lambda: run.contract.header() == world.accounts[learner_name(1)], PATIENCE)
    state = run.contract.state()
    assert (state.round, state.global_cid, state.closed) == (1, start, True)
    past = history.read(run.contract)
    (withdrawn,) = past.withdrawn
    assert not withdrawn.published
    assert {entry.code for entry in withdrawn.rejections} <= {field[:32] for _, _, field in lie.found}
    # A registration stays; all else is as if the lie had never been told.
    found = {(finding.round, finding.node, finding.field) for finding in run.audit().findings}
    assert found == {place for place in lie.found if place[0] is None}


def test_what_nobody_can_prove_makes_learners_wait_and_deposes_nobody(world: World) -> None:
    run = Watched(world.deploy(plan(learners=3)), frozenset({3}))
    with ExitStack() as stack:
        roles = [stack.enter_context(run.learner(node_id)) for node_id in (1, 2)]
        run.close_round()
        # With a local file that the learners lack, no hash of global weights is proven to be wrong.
        run.publish_local(3, run.local(3).cid)
        run.publish_locals(1, 2)
        run.publish_global(NOWHERE)
        run.let_train()
        for role in roles:
            role.wait_for(events.VerificationWaiting, round=2)
    assert run.contract.header() == world.accounts["header"]
    past = history.read(run.contract)
    assert not past.withdrawn
    assert not past.rounds[2].rejections
    assert not past.rounds[2].published
