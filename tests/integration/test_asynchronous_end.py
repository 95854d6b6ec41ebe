"""Asynchronous runs whose learners can publish nothing more: they end, or go on with fewer updates, and say so."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.artifacts.model_file import Rejection, WeightsFile
from fl_node.plan.schema import Plan
from fl_node.protocol import budget, history
from fl_node.protocol.asynchronous_files import Update, asynchronous_file
from fl_node.protocol.names import MISSING
from fl_node.protocol.publications import publications
from fl_node.roles import verifier
from tests.helpers.runs import PATIENCE, Role, Run, World, plan
from tests.helpers.waiting import eventually

FEDBUFF: dict[str, Any] = {"rule": "fedbuff", "buffer": 2}


@pytest.fixture(autouse=True)
def _no_reorganisations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "SETTLE", 0.0)


def asynchronous(publish: int | None, learners: int = 2, **more: Any) -> Plan:
    """Return a plan in which a learner may publish so many times; None without a limit."""
    settings = {"mode": "async", "learners": learners, "rounds": 9, "aggregation": {"rule": "fedasync"}}
    content = plan().model_dump() | settings | more
    if publish is None:
        return Plan.model_validate(content)
    free = Plan.model_validate(content | private())
    # The last learner has no more samples than others, so the largest ε.
    return Plan.model_validate(content | private(epsilon_max=budget.epsilon(free, learners, publish)))


def private(**limit: float) -> dict[str, Any]:
    """Return settings with differential privacy."""
    return {"privacy": {"dp": {"noise_multiplier": 1.0, **limit}}}


def finished(run: Run, *node_ids: int, standby: int | None = None) -> list[Role]:
    """Run header and learners until all of them have ended by themselves."""
    with ExitStack() as stack:
        roles = [stack.enter_context(run.header())]
        roles += [stack.enter_context(run.learner(node_id)) for node_id in node_ids]
        if standby is not None:
            roles.append(stack.enter_context(run.standby(standby)))
        for role in roles:
            role.finish()
    return roles


def huge(run: Run, node_id: int) -> WeightsFile:
    """Return local weights beyond the plan's bounds."""
    return run.local(
        node_id, {name: np.full(shape, -3e38, np.float32) for name, shape in run.trainer.shapes().items()}
    )


@pytest.mark.parametrize("rule", [{"rule": "fedasync"}, FEDBUFF], ids=["fedasync", "fedbuff"])
def test_a_run_ends_when_all_learners_have_spent_their_budget_and_the_audit_says_why(
    world: World, rule: dict[str, Any]
) -> None:
    run = world.deploy(asynchronous(2, aggregation=rule))
    roles = finished(run, 1, 2, standby=1)
    assert all(role.of(events.BudgetSpent) for role in roles)
    past = history.read(run.contract)
    closed = len(past.rounds) - 1
    assert 0 < closed < run.plan.rounds
    assert past.is_finalized(closed)
    # Nothing that they published is left over.
    assert dict(run.current().global_meta.taken or ()) == {1: 2, 2: 2}
    assert run.current().global_meta.spent == ((1, 2), (2, 2))
    audited = run.audit()
    assert audited.passed, audited.findings
    assert f"the privacy budget ended the run after {closed} of {run.plan.rounds} rounds" in audited.notes
    result = run.collect()
    assert (result.ended, result.budget_over, result.budget_spent, result.awaited) == (True, True, (1, 2), ())


def test_a_learner_with_budget_left_takes_up_the_rest_of_the_rounds(world: World) -> None:
    run = world.deploy(asynchronous(4, rounds=4, verification="none"))
    spent = [run.publish_local(2, run.local(2, accuracy=n / 100)) for n in range(5)]
    finished(run, 1)
    assert run.contract.state().round == 4
    assert len({one.cid for one in publications(run.contract.log()) if one.node_id == 2}) == len(spent)
    audited = run.audit()
    assert [(finding.node, finding.field) for finding in audited.findings] == [("learner 2", "epsilon")]


def test_a_buffer_that_too_few_learners_can_fill_ends_the_run(world: World) -> None:
    run = world.deploy(asynchronous(2, aggregation=FEDBUFF))
    with run.header() as header:
        run.publish_locals(1, 2)
        header.wait_for(events.RoundStarted, round=1)
        # Learner 1 spends the rest of its budget on what is rejected.
        run.publish_local(1, huge(run, 1))
        header.wait_for(events.UpdateRejected, reason="bounds")
        assert header.wait_for(events.Waiting, reason="updates", round=1, learners=(2,))
        run.publish_locals(2)
        # The update of learner 2 counts alone, and there is nobody for a third buffer.
        header.wait_for(events.BudgetSpent, round=2)
        run.attest()
        header.finish()
    assert [one.node_id for one in run.current().global_meta.inputs] == [2]
    audited = run.audit()
    assert audited.passed, audited.findings
    assert any("ended the run after 2 of 9 rounds" in note for note in audited.notes)


def test_a_rejected_update_does_not_hold_up_a_run_in_which_all_have_published(world: World) -> None:
    run = world.deploy(asynchronous(None, rounds=2, aggregation=FEDBUFF))
    run.publish_local(1, huge(run, 1))
    with run.header() as header:
        assert header.wait_for(events.Waiting, reason="updates", learners=(2,))
        (other,) = run.publish_locals(2)
        header.wait_for(events.RoundStarted, round=1)
        assert [one.cid for one in run.current().global_meta.inputs] == [other.cid]
        before = run.current().tensors()
        # All are rejected: the weights stay as they are.
        run.publish_local(1, huge(run, 1))
        run.publish_local(2, huge(run, 2))
        run.finish(header)
    last = run.current()
    assert last.global_meta.inputs == ()
    assert [one.node_id for one in last.global_meta.refused] == [1, 2]
    assert all(np.array_equal(before[name], tensor) for name, tensor in last.tensors().items())
    audited = run.audit()
    assert audited.passed, audited.findings
    assert [len(each.rejected) for each in run.collect().rounds] == [1, 2]


def test_a_file_that_nobody_has_does_not_hold_up_a_run(world: World) -> None:
    run = world.deploy(asynchronous(None, rounds=1, aggregation=FEDBUFF))
    run.publish_local(1, run.store.add(run.local(1).path))
    (run.files / publications(run.contract.log())[0].cid).unlink()
    (other,) = run.publish_locals(2)
    with run.header() as header:
        run.finish(header)
    meta = run.current().global_meta
    assert [one.cid for one in meta.inputs] == [other.cid]
    assert [one.reason for one in meta.refused] == [MISSING]
    assert run.audit().passed


def made(
    run: Run, files: list[WeightsFile], taken: dict[int, int], refused: tuple[Rejection, ...] = ()
) -> WeightsFile:
    updates = [Update(file, run.read(file.local_meta.parent)) for file in files]
    return asynchronous_file(
        run.path(),
        run.plan,
        run.plan_cid,
        parent=run.current(),
        updates=updates,
        refused=refused,
        taken=list(taken.items()),
    )


@pytest.mark.parametrize("stale", [True, False])
def test_a_header_that_does_not_wait_for_a_learner_is_found(world: World, stale: bool) -> None:
    """Learner 2 has not published, or only what it trained from older weights, so another update may come."""
    run = world.deploy(asynchronous(None, aggregation=FEDBUFF, verification="none"))
    older = run.local(2)
    run.publish_global(made(run, run.publish_locals(1, 2), {1: 1, 2: 1}))
    (first,) = run.publish_locals(1)
    if stale:
        run.publish_local(2, older.cid)
        again = (Rejection(2, older.cid, "was published before"),)
        run.publish_global(made(run, [first], {1: 2, 2: 2}, again))
    else:
        run.publish_global(made(run, [first], {1: 2, 2: 1}))
    assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == {
        (2, "header", "inputs")
    }


def test_learners_that_have_spent_their_budget_still_replace_a_header_that_is_gone(world: World) -> None:
    run = world.deploy(asynchronous(1, aggregation={"rule": "fedasync"}))
    with ExitStack() as stack:
        roles = [stack.enter_context(run.learner(node_id)) for node_id in (1, 2)]
        run.lose_patience(roles)
        roles.append(stack.enter_context(run.standby(1)))
        for role in roles:
            role.finish()
    past = history.read(run.contract)
    assert [entry.node_id for entry in past.headers] == [1]
    assert len(past.rounds) == 3
    assert all(role.of(events.BudgetSpent) for role in roles)
    assert run.audit().passed


def test_a_run_of_which_nobody_may_publish_anything_ends_at_once(world: World) -> None:
    run = world.deploy(Plan.model_validate(asynchronous(None).model_dump() | private(epsilon_max=1e-3)))
    finished(run, 1, 2)
    assert run.contract.state().round == 0
    assert publications(run.contract.log()) == []
    assert run.audit().passed


def test_the_header_names_those_who_can_publish_and_those_who_are_to_be_registered(world: World) -> None:
    run = world.deploy(asynchronous(None, learners=3, aggregation=FEDBUFF), learners=(1, 2))
    with run.header() as header, run.learner(1) as learner:
        learner.wait_for(events.LocalWeightsPublished)
        event = header.wait_for(events.Waiting, reason="updates", learners=(2,))
        assert "1 more to register" in event.message
        assert run.collect().awaited == (2, 3)


def test_a_round_without_a_timeout_does_not_wait_for_learners_that_may_not_publish(world: World) -> None:
    """It would close only when all learners have published, whatever ``min_learners`` is."""
    data = {"name": "digits", "train": 120, "test": 10, "partition": "quantity"}
    content = plan(rounds=9, learners=3, min_learners=2).model_dump() | {"data": data}
    free = Plan.model_validate(content | private())
    limit = max(budget.epsilon(free, node_id, 2) for node_id in (1, 2, 3))
    run = world.deploy(Plan.model_validate(content | private(epsilon_max=limit)))
    most = [budget.most_publications(run.plan, node_id) for node_id in (1, 2, 3)]
    assert len(set(most)) > 1
    roles = finished(run, 1, 2, 3)
    assert all(role.of(events.BudgetSpent) for role in roles)
    assert run.contract.state().round == min(count for count in most if count is not None)
    assert run.audit().passed


def test_header_and_standby_end_when_too_few_attest_the_last_weights_in_time(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1, min_learners=2, round_timeout=1.0))
    run.publish_locals(1, 2, 3)  # before anybody can close the round without some of them
    with run.header() as header, run.standby(1) as standby:
        for role in (header, standby):
            event = role.wait_for(events.Waiting, reason="attestation", round=1)
            assert event.fields["learners"] == (1, 2, 3)
            role.finish()
            assert role.of(events.RunNotFinalized)
    eventually(lambda: run.contract.state().round == 1, PATIENCE)
