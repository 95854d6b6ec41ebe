"""Nobody has to trust the header: its lies are withdrawn during the run, and when it is gone another takes over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.artifacts import cid
from fl_node.artifacts.model_file import Rejection, Tensors, WeightsFile
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.names import learner_name
from tests.helpers.runs import PATIENCE, Role, Run, World, plan, wait_until_closed
from tests.helpers.waiting import eventually

NOWHERE = cid.of_bytes(b"a file that nobody has")
LEARNERS = (1, 2, 3)


def three(**settings: Any) -> Plan:
    return plan(**{"learners": 3, "rounds": 2} | settings)


@pytest.fixture(scope="module")
def undisturbed(world: World) -> list[str]:
    """The CIDs of all global weights of a run in which nothing goes wrong."""
    run = world.deploy(three())
    with ExitStack() as stack:
        roles = [stack.enter_context(run.header()), *learners(stack, run)]
        for role in roles:
            role.finish()
    return global_cids(run)


def learners(stack: ExitStack, run: Run, node_ids: Sequence[int] = LEARNERS) -> list[Role]:
    return [stack.enter_context(run.learner(n)) for n in node_ids]


def global_cids(run: Run) -> list[str]:
    return [str(run.contract.global_weight_at(number)) for number in range(run.plan.rounds + 1)]


def one_bit(given: Tensors) -> Tensors:
    changed = {name: tensor.copy() for name, tensor in given.items()}
    changed["dense/kernel"].view(np.uint32)[1, 2] ^= 1
    return changed


Lie = Callable[[Run, list[WeightsFile]], WeightsFile]
LIES: dict[str, tuple[Lie, str]] = {
    "the sum": (lambda run, files: run.average(files, tensors=one_bit), "tensor dense/kernel"),
    "a learner left out": (lambda run, files: run.average(files[:2]), "inputs"),
    "called missing": (lambda run, files: run.average(files[:2], absent=[3]), "absent"),
    "a file called missing": (
        lambda run, files: run.average(files[:2], refused=[Rejection(3, files[2].cid, "missing")]),
        "refused",
    ),
    "another parent": (lambda run, files: run.average(files, parent=NOWHERE), "parent"),
    "another plan": (lambda run, files: run.average(files, plan=NOWHERE), "plan"),
    "another rule": (lambda run, files: run.average(files, rule="median"), "rule"),
}


@pytest.mark.parametrize("kind", LIES)
def test_the_class_withdraws_a_lie_deposes_its_header_and_ends_with_the_same_bits(
    world: World, undisturbed: list[str], kind: str
) -> None:
    lie, code = LIES[kind]
    run = world.deploy(three())
    with ExitStack() as stack:
        roles = learners(stack, run)
        roles.append(stack.enter_context(run.standby(1)))
        files = wait_until_closed(run, 0)
        # The others have fetched them too, so that they know which are not missing: they have averaged them.
        run.wait_for_copies(undisturbed[1], LEARNERS)
        lied = run.publish_global(lie(run, files))
        for role in roles:
            role.finish()
    assert global_cids(run) == undisturbed
    past = run.contract.log()
    assert {(e.name, e.round, e.cid) for e in past if e.name == "GlobalWeightWithdrawn"} == {
        ("GlobalWeightWithdrawn", 1, lied)
    }
    assert {e.code for e in past if e.name == "GlobalWeightRejected"} == {code}
    assert run.contract.header() == world.accounts[learner_name(1)]
    audited = run.audit()
    assert audited.passed, audited.findings
    assert any(lied in note and "withdrawn" in note for note in audited.notes)


def test_without_verification_a_lie_is_trained_on_and_found_afterwards_alone(world: World) -> None:
    run = world.deploy(three(verification="none"))
    with ExitStack() as stack:
        roles = learners(stack, run)
        lied = run.publish_global(run.average(wait_until_closed(run, 0), tensors=one_bit))
        run.publish_global(run.average(wait_until_closed(run, 1)))
        for role in roles:
            role.finish()
    assert run.contract.global_weight_at(1) == lied
    assert [(finding.round, finding.field) for finding in run.audit().findings] == [(1, "tensor dense/kernel")]
    assert not history.read(run.contract).attested(2)


@pytest.mark.parametrize("when", ["between rounds", "while it aggregates"])
def test_a_header_that_is_gone_for_good_is_replaced(world: World, undisturbed: list[str], when: str) -> None:
    run = world.deploy(three())
    last = events.GlobalWeightsPublished if when == "between rounds" else events.UpdatesAggregated
    with ExitStack() as stack:
        roles = [*learners(stack, run), stack.enter_context(run.standby(1))]
        with run.header(until=lambda event: event.name == last.name) as header:
            header.finish()
        run.lose_patience(roles[:3])
        for role in roles:
            role.finish()
    assert global_cids(run) == undisturbed
    assert run.audit().passed
    assert run.contract.header() == world.accounts[learner_name(1)]
    assert sum(e.name == "HeaderVoted" for e in run.contract.log()) == 2


def test_a_candidate_that_does_not_act_is_passed_over(world: World, undisturbed: list[str]) -> None:
    run = world.deploy(three())
    with ExitStack() as stack:
        roles = learners(stack, run)
        for _ in range(2):
            run.lose_patience(roles)
        roles.append(stack.enter_context(run.standby(2)))
        for role in roles:
            role.finish()
    assert global_cids(run) == undisturbed
    assert run.contract.header() == world.accounts[learner_name(2)]
    assert [e.account for e in run.contract.log() if e.name == "HeaderChanged"] == [
        world.accounts[learner_name(1)],
        world.accounts[learner_name(2)],
    ]


def test_a_header_that_returns_is_told_that_it_was_replaced(world: World, undisturbed: list[str]) -> None:
    run = world.deploy(three())
    with ExitStack() as stack:
        roles = learners(stack, run, (1, 2))
        standby = stack.enter_context(run.standby(1))
        run.publish_local(3, run.local(3))
        run.lose_patience(roles)
        standby.wait_for(events.GlobalWeightsPublished, round=1)
        returned = stack.enter_context(run.header())
        returned.wait_for(events.HeaderReplaced, header=world.accounts[learner_name(1)])
        run.publish_local(3, run.local(3))
        for role in (*roles, standby, returned):
            role.finish()
    assert global_cids(run) == undisturbed


def test_a_minority_that_rejects_correct_weights_changes_nothing_and_is_named(
    world: World, undisturbed: list[str]
) -> None:
    run = world.deploy(three())
    with ExitStack() as stack:
        header = stack.enter_context(run.header())
        roles = learners(stack, run, (1, 2))
        header.wait_for(events.RoundStarted, round=0)
        run.publish_local(3, run.local(3))
        eventually(lambda: run.contract.state().round == 1, PATIENCE)
        liar = run.as_node(learner_name(3))
        receipt = liar.reject(1, str(liar.state().global_cid), liar.chain.nonce(), code="sum")
        assert receipt is not None
        run.publish_local(3, run.local(3))
        for role in (header, *roles):
            role.finish()
    assert global_cids(run) == undisturbed
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == ["learner 3 rejected correct global weights 1 (sum), without a majority"]


def test_a_learner_that_lacks_a_file_accuses_nobody_and_goes_on_when_it_is_there(world: World) -> None:
    run = world.deploy(three(rounds=1))
    with ExitStack() as stack:
        roles = learners(stack, run, (1, 2))
        eventually(lambda: len(run.contract.local_weights(0, LEARNERS)) == 2, PATIENCE)
        # The header alone has the third file for a while.
        third = run.local(3)
        run.publish_local(3, third.cid)
        names = run.contract.local_weights(0, (1, 2))
        run.publish_global(run.average([run.read(names[1]), run.read(names[2]), third]))
        for role in roles:
            role.wait_for(events.VerificationWaiting, round=1)
        assert not any(e.name == "GlobalWeightRejected" for e in run.contract.log())
        run.store.add(third.path)
        for role in roles:
            role.finish()
    assert history.read(run.contract).is_finalized(1)


def test_a_hash_without_a_file_is_rejected_with_the_file_that_it_should_have_been(
    world: World, undisturbed: list[str]
) -> None:
    run = world.deploy(three())
    with ExitStack() as stack:
        roles = learners(stack, run)
        roles.append(stack.enter_context(run.standby(1)))
        wait_until_closed(run, 0)
        run.publish_global(NOWHERE)
        for role in roles:
            role.finish()
    assert global_cids(run) == undisturbed
    rejections = [e for e in run.contract.log() if e.name == "GlobalWeightRejected"]
    assert {(e.code, e.evidence) for e in rejections} == {("file", undisturbed[1])}
