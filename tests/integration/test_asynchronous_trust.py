"""Learners verify an asynchronous run too: they withdraw lies, replace its header, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta, Rejection, WeightsFile
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.asynchronous_files import Update, asynchronous_file
from fl_node.protocol.names import MISSING, learner_name
from fl_node.protocol.publications import publications
from fl_node.roles import verifier
from tests.helpers.runs import PATIENCE, Event, Role, Run, World, plan
from tests.helpers.waiting import eventually

LEARNERS = (1, 2, 3)
NOWHERE = cid.of_bytes(b"a file that nobody has")


@pytest.fixture(autouse=True)
def _no_reorganisations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hides a publication on an embedded chain, so that nobody need wait for one to come back."""
    monkeypatch.setattr(verifier, "SETTLE", 0.0)


def asynchronous(**more: Any) -> Plan:
    rule = {"rule": "fedbuff", "buffer": 2}
    settings = {"mode": "async", "learners": 3, "rounds": 3, "aggregation": rule}
    return Plan.model_validate(plan().model_dump() | settings | more)


def learners(stack: ExitStack, run: Run) -> list[Role]:
    return [stack.enter_context(run.learner(node_id)) for node_id in LEARNERS]


def wait_for_all(run: Run) -> list[WeightsFile]:
    """Wait until all learners have published from the initial weights; return their files in the chain's order."""
    eventually(lambda: len(publications(run.contract.log())) == 3, PATIENCE)
    return [run.read(one.cid) for one in publications(run.contract.log())]


def aggregated(run: Run, files: list[WeightsFile], refused: tuple[Rejection, ...] = ()) -> WeightsFile:
    """Return what the header should publish for these updates."""
    taken = {file.local_meta.node_id: 1 for file in files} | {one.node_id: 1 for one in refused}
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


def global_file(run: Run, number: int) -> WeightsFile:
    return run.read(str(run.contract.global_weight_at(number)))


Lie = Callable[[Run, list[WeightsFile]], WeightsFile]


def changed(change: Callable[[GlobalMeta], GlobalMeta], add: float = 0.0) -> Lie:
    def lie(run: Run, files: list[WeightsFile]) -> WeightsFile:
        file = aggregated(run, files[:2])
        tensors = {name: tensor + np.float32(add) for name, tensor in file.tensors().items()}
        return model_file.write(run.path(), change(file.global_meta), tensors)

    return lie


def calls_missing(run: Run, files: list[WeightsFile]) -> WeightsFile:
    first = files[0]
    return aggregated(run, files[1:], (Rejection(first.local_meta.node_id, first.cid, MISSING),))


LIES: dict[str, Lie] = {
    "the sum": changed(lambda meta: meta, 0.5),
    "a share": changed(lambda meta: replace(meta, inputs=(replace(meta.inputs[0], share=0.1), *meta.inputs[1:]))),
    "the start": changed(lambda meta: replace(meta, inputs=(replace(meta.inputs[0], started=1), *meta.inputs[1:]))),
    "counts nothing as taken": changed(lambda meta: replace(meta, taken=())),
    "another parent": changed(lambda meta: replace(meta, parent=NOWHERE)),
    "another plan": changed(lambda meta: replace(meta, plan=NOWHERE)),
    "another rule": changed(lambda meta: replace(meta, rule="fedasync")),
    "too few updates": lambda run, files: aggregated(run, files[:1]),
    "a good file called missing": calls_missing,
}


@pytest.mark.parametrize("kind", LIES)
def test_the_class_withdraws_a_lie_deposes_its_header_and_the_run_goes_on(world: World, kind: str) -> None:
    run = world.deploy(asynchronous())
    with ExitStack() as stack:
        roles = [*learners(stack, run), stack.enter_context(run.standby(1))]
        files = wait_for_all(run)
        # So that they know which files are not missing; the first is called so.
        run.wait_for_copies(files[2].cid, LEARNERS)
        lied = run.publish_global(LIES[kind](run, files))
        for role in roles:
            role.finish()
    past = history.read(run.contract)
    assert [past_round.started.cid for past_round in past.withdrawn] == [lied]
    assert run.contract.header() == world.accounts[learner_name(1)]
    assert len(past.rounds) == run.plan.rounds + 1
    assert past.is_finalized(run.plan.rounds)
    # Nobody published what it had trained from the lie.
    assert not past.withdrawn[0].published
    audited = run.audit()
    assert audited.passed, audited.findings
    assert any(lied in note and "withdrawn" in note for note in audited.notes)


def test_without_verification_the_lie_stays_and_the_audit_finds_it(world: World) -> None:
    run = world.deploy(asynchronous(verification="none", rounds=1))
    with ExitStack() as stack:
        roles = learners(stack, run)
        lied = run.publish_global(LIES["the sum"](run, wait_for_all(run)))
        for role in roles:
            role.finish()
    assert run.contract.global_weight_at(1) == lied
    assert {finding.round for finding in run.audit().findings} == {1}


def test_a_learner_that_starts_again_verifies_from_where_it_was(world: World) -> None:
    run = world.deploy(asynchronous(rounds=4, aggregation={"rule": "fedasync"}))
    with ExitStack() as stack:
        roles = [stack.enter_context(run.header())]

        def is_later(event: Event) -> bool:
            return event.name == events.LocalWeightsPublished.name and event.fields["round"] > 0

        with run.learner(1, until=is_later) as first:
            first.wait_for(events.LocalWeightsPublished)
            run.publish_locals(2)
            first.finish()
        for path in (run.folder / "learner-1").rglob("*.safetensors"):
            path.unlink()
        roles += learners(stack, run)
        for role in roles:
            role.finish()
        verified = [event.fields["round"] for event in roles[1].of(events.GlobalWeightsVerified)]
    past = history.read(run.contract)
    assert all(number > 0 for number in verified)
    assert past.is_finalized(4)
    assert past.withdrawn == ()
    assert run.audit().passed


def test_a_header_that_does_nothing_with_enough_updates_is_replaced(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    with ExitStack() as stack:
        roles = learners(stack, run)
        run.lose_patience(roles)
        for role in [*roles, stack.enter_context(run.standby(1))]:
            role.finish()
    past = history.read(run.contract)
    assert [entry.node_id for entry in past.headers] == [1]
    assert past.withdrawn == ()
    assert run.audit().passed


def test_nobody_votes_while_there_are_too_few_valid_updates(world: World) -> None:
    run = world.deploy(asynchronous(header_timeout=0.2))
    run.publish_local(2, run.store.add(bytes_file(run, b"junk")))
    with run.learner(1) as role:
        role.wait_for(events.LocalWeightsPublished)
        role.wait_for(events.Waiting, reason="newer_weights")
        world.pass_time(3)
        run.publish_locals(3)
        role.wait_for(events.HeaderVoted)
    votes = [entry for entry in run.contract.log() if entry.name == "HeaderVoted"]
    third = publications(run.contract.log())[-1]
    assert third.node_id == 3
    assert third.entry < votes[0]


def bytes_file(run: Run, content: bytes) -> Any:
    path = run.path()
    path.write_bytes(content)
    return path


def test_local_weights_from_withdrawn_global_weights_are_refused_by_that_name(world: World) -> None:
    run = world.deploy(asynchronous(verification="none"))
    files = run.publish_locals(1, 2)
    run.publish_global(LIES["the sum"](run, files))
    orphan = run.publish_locals(3)[0]
    for node_id in (1, 2):
        run.reject(node_id, 1, "tensor")
    # Learner 1 is the header now; it publishes what the two updates give, then meets the third.
    with run.standby(1) as header:
        header.wait_for(events.GlobalWeightsPublished, round=1)
        run.publish_locals(1, 2)
        header.wait_for(events.GlobalWeightsPublished, round=2)
    refused = [entry for number in (1, 2) for entry in global_file(run, number).global_meta.refused]
    assert [(one.node_id, one.cid) for one in refused] == [(3, orphan.cid)]
    assert refused[0].reason.endswith("which were withdrawn")
    result = run.audit()
    assert result.passed, result.findings
    assert any(orphan.cid in note and "which were withdrawn" in note for note in result.notes)
