"""A committee verifies, the others rely on it, and one rejection makes everybody verify."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from fl_node import events
from fl_node.artifacts.model_file import Tensors
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.committee import committee_of
from fl_node.protocol.names import learner_name
from tests.helpers.runs import Role, Run, World, plan, wait_until_closed

LEARNERS = (1, 2, 3, 4)
SIZE = 2


def four(**settings: Any) -> Plan:
    return plan(**{"learners": 4, "rounds": 3, "verification": "committee", "committee": SIZE} | settings)


def committee(run: Run, round_: int) -> frozenset[int]:
    return committee_of(run.contract, round_, str(run.contract.global_weight_at(round_)), LEARNERS, SIZE).members


def learners(stack: ExitStack, run: Run) -> dict[int, Role]:
    return {node_id: stack.enter_context(run.learner(node_id)) for node_id in LEARNERS}


def doubled(given: Tensors) -> Tensors:
    return {name: np.float32(2) * tensor for name, tensor in given.items()}


def test_the_committee_attests_before_the_others_publish_and_all_attest_the_last_weights(world: World) -> None:
    run = world.deploy(four())
    with ExitStack() as stack:
        roles = [stack.enter_context(run.header()), *learners(stack, run).values()]
        for role in roles:
            role.finish()
    past = history.read(run.contract)
    for one in past.rounds[:-1]:
        drawn = committee(run, one.number)
        assert len(drawn) == SIZE
        assert {entry.node_id for entry in one.attestations} == drawn
        others = [entry for entry in one.published if entry.node_id not in drawn]
        assert max(one.attestations) < min(others)
    assert {entry.node_id for entry in past.rounds[-1].attestations} == set(LEARNERS)
    assert all(past.is_finalized(past_round.number) for past_round in past.rounds)
    assert run.audit().passed


def test_one_rejection_makes_everybody_verify_and_the_lie_is_withdrawn(world: World) -> None:
    run = world.deploy(four(committee=1, rounds=2))
    with ExitStack() as stack:
        roles = learners(stack, run)
        standby = stack.enter_context(run.standby(1))
        files = wait_until_closed(run, 0)
        lied = run.publish_global(run.average(files, tensors=doubled))
        for role in (*roles.values(), standby):
            role.finish()
    past = history.read(run.contract)
    (withdrawn,) = past.withdrawn
    assert withdrawn.started.cid == lied
    assert len(withdrawn.rejections) == 3
    assert not withdrawn.published
    assert run.contract.header() == world.accounts[learner_name(1)]
    assert run.audit().passed


def test_a_committee_that_says_nothing_holds_nobody_up(world: World) -> None:
    run = world.deploy(four(rounds=1, min_learners=2, round_timeout=2.0, header_timeout=1.0, committee=SIZE))
    silent = committee(run, 0)
    with ExitStack() as stack:
        speaking = [stack.enter_context(run.learner(node_id)) for node_id in LEARNERS if node_id not in silent]
        for role in speaking:
            waiting = role.wait_for(events.Waiting, reason="attestation", learners=tuple(sorted(silent)))
            assert waiting.fields["learners"]
            role.wait_for(events.LocalWeightsPublished, round=0)
    (one,) = history.read(run.contract).rounds
    assert {entry.node_id for entry in one.attestations} == set(LEARNERS) - silent


def test_a_header_that_is_gone_is_replaced_where_a_committee_verifies(world: World) -> None:
    run = world.deploy(four(rounds=1))
    with ExitStack() as stack:
        roles = list(learners(stack, run).values())
        run.lose_patience(roles)
        for role in [*roles, stack.enter_context(run.standby(1))]:
            role.finish()
    assert run.contract.header() == world.accounts[learner_name(1)]
    assert run.audit().passed
