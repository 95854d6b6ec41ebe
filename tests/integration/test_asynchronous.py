"""Asynchronous runs, with roles and chain: recomputed bit for bit whatever the order was, and lies are found."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.aggregation import FedAsync
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta, Input, LocalMeta, Rejection, WeightsFile
from fl_node.chain.contract import Contract
from fl_node.chain.transactions import Receipt
from fl_node.errors import ContractError
from fl_node.plan.schema import Plan
from fl_node.protocol.asynchronous_files import Update, asynchronous_file
from fl_node.protocol.publications import publications
from fl_node.protocol.verification.asynchronous import LATE
from tests.helpers.runs import PATIENCE, Run, World, plan
from tests.helpers.waiting import eventually

MODES: dict[str, dict[str, Any]] = {
    "fedasync": {"rule": "fedasync"},
    "fedbuff": {"rule": "fedbuff", "buffer": 2, "staleness": "hinge", "grace": 0, "slope": 1.0},
}

MAX_PUBLICATIONS = 8
"""Publications that the contract lets a learner make in one round."""


def asynchronous(rule: str = "fedasync", **more: Any) -> Plan:
    settings = {"mode": "async", "learners": 3, "rounds": 6, "aggregation": MODES[rule], "verification": "none"}
    return Plan.model_validate(plan().model_dump() | settings | more)


# Rules


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"staleness": "constant"}, [1, 1, 1]),
        ({"staleness": "polynomial", "exponent": 0.5}, [1, 0.5, 0.25]),
        ({"staleness": "polynomial", "exponent": 1.0}, [1, 0.25, 0.0625]),
        ({"staleness": "hinge", "grace": 3, "slope": 0.5}, [1, 1, 1 / 7]),
    ],
)
def test_an_update_counts_less_the_longer_ago_it_began(settings: dict[str, Any], expected: list[float]) -> None:
    rule = FedAsync.model_validate({"rule": "fedasync", **settings})
    assert [rule.function.discount(staleness) for staleness in (0, 3, 15)] == pytest.approx(expected)


def update(folder: Path, began: int, local: float, start: float, node_id: int = 1) -> Update:
    plan_cid = cid.of_bytes(b"plan")
    globe = GlobalMeta(plan_cid, began, cid.of_bytes(b"x") if began else None, "fedbuff")
    first = model_file.write(folder / f"start-{began}-{node_id}", globe, {"a": np.float32([start])})
    meta = LocalMeta(plan_cid, node_id, began, first.cid, 10, 0.5, 1.0)
    return Update(model_file.write(folder / f"local-{began}-{node_id}", meta, {"a": np.float32([local])}), first)


def test_fedasync_mixes_the_update_in_by_its_staleness(tmp_path: Path) -> None:
    one = asynchronous(aggregation={"rule": "fedasync", "mixing": 0.5, "exponent": 1.0})
    parent = update(tmp_path, 3, 0, 10.0).start
    stale = update(tmp_path, 1, 30.0, 0)
    made = asynchronous_file(
        tmp_path / "out", one, parent.global_meta.plan, parent=parent, updates=[stale], refused=[], taken=[(1, 1)]
    )
    share = 0.5 / 3
    assert made.global_meta.inputs[0].share == pytest.approx(share)
    assert made.global_meta.inputs[0].started == 1
    assert made.tensor("a").tolist() == pytest.approx([(1 - share) * 10 + share * 30])


def test_fedbuff_adds_the_average_of_the_discounted_updates(tmp_path: Path) -> None:
    one = asynchronous(aggregation={"rule": "fedbuff", "buffer": 2, "server_learning_rate": 2.0, "exponent": 1.0})
    parent = update(tmp_path, 2, 0, 10.0, 3).start
    updates = [update(tmp_path, 2, 13.0, 10.0, 1), update(tmp_path, 1, 9.0, 5.0, 2)]
    made = asynchronous_file(
        tmp_path / "out", one, parent.global_meta.plan, parent=parent, updates=updates, refused=[], taken=[(1, 1)]
    )
    assert made.tensor("a").tolist() == pytest.approx([10 + 2 * (1 * 3 + 0.5 * 4) / 2])
    assert model_file.read(made.path).global_meta == made.global_meta


# Runs


@pytest.mark.parametrize("rule", MODES)
def test_roles_carry_an_asynchronous_run_out_and_anybody_can_recompute_it(world: World, rule: str) -> None:
    run = world.deploy(asynchronous(rule))
    with contextlib.ExitStack() as stack:
        header = stack.enter_context(run.header())
        for node_id in (1, 2, 3):
            stack.enter_context(run.learner(node_id))
        header.wait_for(events.RunFinished)
    result = run.audit()
    assert (result.findings, result.rounds) == ([], 6)
    last = run.current().global_meta
    assert len(last.inputs) == MODES[rule].get("buffer", 1)
    collected = run.collect()
    # One learner may have two updates in a buffer.
    assert all(1 <= len(past_round.local) <= len(last.inputs) for past_round in collected.rounds)


SAID = (events.UpdatesAggregated.name, events.Waiting.name, events.GlobalWeightsPublished.name)


@pytest.mark.parametrize("made", [plan(rounds=1), asynchronous(rounds=1)], ids=["sync", "async"])
def test_a_header_says_once_what_it_made_and_that_no_block_takes_it(
    world: World, monkeypatch: pytest.MonkeyPatch, made: Plan
) -> None:
    run = world.deploy(made)
    run.publish_locals()
    publish, tries = Contract.set_global_weight, []

    def never_at_first(contract: Contract, file_cid: str, nonce: int) -> Receipt | None:
        tries.append(file_cid)
        return None if len(tries) < 4 else publish(contract, file_cid, nonce)

    monkeypatch.setattr(Contract, "set_global_weight", never_at_first)
    with run.header() as header:
        run.finish(header)
    assert len(tries) == 4
    assert len(set(tries)) == 1
    told = [event.name for event in header.events if event.name in SAID]
    # Then it may wait for the attestation of the last weights.
    assert told[: len(SAID)] == list(SAID)
    assert set(told[len(SAID) :]) <= {events.Waiting.name}
    assert header.of(events.Waiting)[0].fields["reason"] == "block"
    assert run.audit().passed


def test_no_update_is_lost_or_counted_twice_when_the_header_is_replaced(world: World) -> None:
    run = world.deploy(asynchronous(rounds=8))
    with contextlib.ExitStack() as stack:
        for node_id in (1, 2, 3):
            stack.enter_context(run.learner(node_id))
        for _ in range(3):
            before = run.contract.state().round
            with run.header(until=lambda event: event.name == events.GlobalWeightsPublished.name) as header:
                header.finish()
            assert run.contract.state().round == before + 1
            for path in (run.folder / "header").rglob("*.safetensors"):
                path.unlink()
        with run.header() as header:
            header.wait_for(events.RunFinished)
    assert run.audit().findings == []
    used = []
    for number in range(1, 9):
        used += [
            (entry.node_id, entry.cid)
            for entry in run.read(str(run.contract.global_weight_at(number))).global_meta.inputs
        ]
    assert len(used) == len(set(used)) == 8


def test_a_learner_that_starts_again_does_not_publish_an_update_twice(world: World) -> None:
    run = world.deploy(asynchronous(rounds=3))
    with run.learner(1) as learner:
        learner.wait_for(events.LocalWeightsPublished)
        learner.wait_for(events.Waiting)
    for path in (run.folder / "learner-1").rglob("*.safetensors"):
        path.unlink()
    with run.learner(1) as learner:
        learner.wait_for(events.Waiting, reason="newer_weights", round=0)
    assert len(publications(run.contract.log())) == 1


def test_a_learner_whose_last_update_nobody_has_any_more_goes_on(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    (lost,) = run.publish_locals(1)
    (run.files / lost.cid).unlink()
    with run.learner(1) as learner:
        learner.wait_for(events.Waiting, reason="newer_weights", round=0)
        (other,) = run.publish_locals(2)
        run.publish_global(made(run, [other], {2: 1}))
        learner.wait_for(events.LocalWeightsPublished)


def test_a_bad_update_is_refused_and_the_run_goes_on(world: World, tmp_path: Path) -> None:
    run = world.deploy(asynchronous(rounds=2))
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk")
    run.publish_local(2, junk)
    good = run.publish_locals(1)[0]
    run.publish_local(1, good.cid)
    with run.header() as header:
        header.wait_for(events.GlobalWeightsPublished)
        run.publish_locals(3)
        header.wait_for(events.RunFinished)
    assert [
        (entry.node_id, entry.reason) for entry in run.read(str(run.contract.global_weight_at(1))).global_meta.refused
    ] == [(2, "not a safetensors file: shorter than 8 bytes")]
    second = run.current().global_meta
    assert [(entry.node_id, entry.reason) for entry in second.refused] == [(1, "was published before")]
    assert second.taken == ((1, 2), (2, 1), (3, 1))
    assert run.audit().findings == []


# Lies of a header

Change = Callable[[GlobalMeta], GlobalMeta]


def made(
    run: Run, files: list[WeightsFile], taken: dict[int, int], refused: tuple[Rejection, ...] = ()
) -> WeightsFile:
    """Write what the header should publish for these updates, all begun at the newest global weights."""
    parent = run.current()
    return asynchronous_file(
        run.path(),
        run.plan,
        run.plan_cid,
        parent=parent,
        updates=[Update(file, run.read(file.local_meta.parent)) for file in files],
        refused=refused,
        taken=list(taken.items()),
    )


def rewrite(run: Run, file: WeightsFile, change: Change, add: float = 0.0) -> WeightsFile:
    tensors = {name: tensor + np.float32(add) for name, tensor in file.tensors().items()}
    return model_file.write(run.path(), change(file.global_meta), tensors)


LIES: dict[str, tuple[Change, float, set[tuple[int, str, str]]]] = {
    "tensors": (lambda meta: meta, 0.5, {(1, "header", "tensor dense/bias"), (1, "header", "tensor dense/kernel")}),
    "share": (
        lambda meta: replace(meta, inputs=(replace(meta.inputs[0], share=0.1),)),
        0.0,
        {(1, "learner 1", "share")},
    ),
    "started": (
        lambda meta: replace(meta, inputs=(replace(meta.inputs[0], started=5),)),
        0.0,
        {(1, "learner 1", "started")},
    ),
    "taken": (lambda meta: replace(meta, taken=((1, 1), (2, 1))), 0.0, {(1, "learner 2", "taken")}),
    "more taken than published": (lambda meta: replace(meta, taken=((1, 7),)), 0.0, {(1, "learner 1", "taken")}),
    "nothing taken": (lambda meta: replace(meta, taken=()), 0.0, {(1, "learner 1", "taken")}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_the_header_is_found_with_round_node_and_field(world: World, lie: str) -> None:
    change, add, found = LIES[lie]
    run = world.deploy(asynchronous(rounds=1))
    first, _ = run.publish_locals(1, 2)
    run.publish_global(rewrite(run, made(run, [first], {1: 1}), change, add))
    assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == found


@pytest.mark.parametrize("late", [False, True])
def test_an_update_that_stands_behind_the_weights_it_made_is_a_note_if_a_block_was_replaced(
    world: World, late: bool
) -> None:
    run = world.deploy(asynchronous(rounds=1))
    first = run.local(1)
    run.publish_global(made(run, [first], {1: 1}))
    if late:
        world.pass_time(LATE + 2)
    run.publish_local(1, first)
    audited = run.audit()
    if late:
        assert [str(finding) for finding in audited.findings] == ["round 1, learner 1, taken: is 1, should be 0 to 0"]
        return
    assert audited.findings == []
    assert audited.notes == [
        "round 0: learner 1's weights were sealed again after their round, because a block was replaced"
    ]
    assert run.collect().rounds[0].local[1].cid == first.cid


def test_what_crossed_a_closing_can_not_be_given_back_to_be_counted_again(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    before, first, second = run.publish_locals(2)[0], run.local(1), run.local(1, accuracy=0.75)
    for file in (first, second):
        run.store.add(file.path)
    run.publish_global(
        made(run, [before], {1: 2, 2: 1}, (Rejection(1, first.cid, "x"), Rejection(1, second.cid, "x")))
    )
    third = run.publish_locals(3)[0]
    run.publish_global(made(run, [third], {1: 1, 2: 1, 3: 1}))
    run.publish_local(1, first)
    run.publish_local(1, second)
    assert "round 2, learner 1, taken: is 1, should be 2 to 0" in map(str, run.audit().findings)


def test_a_learner_that_publishes_again_and_again_counts_once_for_each_new_global_weights(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    first, *more = [run.publish_local(1, run.local(1, accuracy=n / 100)) for n in range(MAX_PUBLICATIONS)]
    with pytest.raises(ContractError, match="TooManyPublications"):
        run.publish_local(1, run.local(1, accuracy=0.9))
    with run.header() as header:
        header.wait_for(events.GlobalWeightsPublished, round=1)
        for name in more:
            header.wait_for(events.UpdateRejected, cid=name, reason="not_newer")
        second = run.publish_local(1, run.local(1))
        header.finish()
    metas = [run.read(str(run.contract.global_weight_at(number))).global_meta for number in (1, 2)]
    assert [[entry.cid for entry in meta.inputs] for meta in metas] == [[first], [second]]
    assert [entry.cid for entry in metas[1].refused] == more
    assert run.audit().findings == []


def test_a_header_that_counts_what_is_not_newer_is_found(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    first = run.local(1)
    again = run.local(1, accuracy=0.75)
    for file in (first, again):
        run.publish_local(1, file)
    run.publish_global(made(run, [first], {1: 1}))
    run.publish_global(made(run, [again], {1: 2}))
    assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == {
        (2, "learner 1", "inputs")
    }


def test_a_header_that_rejects_a_newer_update_as_not_newer_is_found(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    (first,) = run.publish_locals(1)
    run.publish_global(made(run, [first], {1: 1}))
    second, other = run.publish_locals(1, 2)
    pretext = Rejection(1, second.cid, "was trained from global weights 0; should be from newer ones than 0")
    run.publish_global(made(run, [other], {1: 2, 2: 1}, (pretext,)))
    assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == {
        (1, "learner 1", "refused")
    }


def test_a_restarted_header_knows_from_the_files_which_updates_counted(world: World) -> None:
    run = world.deploy(asynchronous(rounds=3))
    first, again = run.local(1), run.local(1, accuracy=0.75)
    for file in (first, again):
        run.publish_local(1, file)
    run.publish_global(made(run, [first], {1: 1}))
    (other,) = run.publish_locals(2)
    run.publish_global(made(run, [other], {1: 1, 2: 1}))
    with run.header() as header:
        header.wait_for(events.UpdateRejected, cid=again.cid, reason="not_newer")
        run.publish_locals(3)
        header.finish()
    assert run.audit().passed


def test_a_buffer_takes_one_update_of_each_learner(world: World) -> None:
    run = world.deploy(asynchronous("fedbuff", rounds=2))
    (first,) = run.publish_locals(1)
    with run.header() as header:
        header.wait_for(events.UpdateAccepted, cid=first.cid)
        (other,) = run.publish_locals(2)
        header.wait_for(events.GlobalWeightsPublished, round=1)
        # Two more of learner 1, of which only one can be newer; the buffer waits for somebody else.
        mine = run.publish_locals(1)[0]
        header.wait_for(events.UpdateAccepted, cid=mine.cid)
        (third,) = run.publish_locals(3)
        header.finish()
    metas = [run.read(str(run.contract.global_weight_at(number))).global_meta for number in (1, 2)]
    assert [[entry.cid for entry in meta.inputs] for meta in metas] == [[first.cid, other.cid], [mine.cid, third.cid]]
    assert run.audit().passed


def test_a_header_that_fills_a_buffer_with_one_learner_is_found(world: World) -> None:
    run = world.deploy(asynchronous("fedbuff", rounds=3))
    files = run.publish_locals(1, 2)
    run.publish_global(made(run, files, {1: 1, 2: 1}))
    files = [run.local(1), run.local(1, accuracy=0.75)]
    for file in files:
        run.publish_local(1, file)
    run.publish_global(made(run, files, {1: 3, 2: 1}))
    findings = run.audit().findings
    assert {(finding.round, finding.node, finding.field) for finding in findings} == {(2, "learner 1", "inputs")}
    assert any("takes one of each learner" in finding.message for finding in findings)


# Learner 1 may have two of the last five updates that counted.
CAPPED: dict[str, Any] = {"rule": "fedasync", "max_share": 0.4, "share_window": 5}


def flood(run: Run) -> list[str]:
    """Let learner 1 publish from each new global weights, and the others only where the run stands still."""
    published, others = list[str](), itertools.cycle((2, 3))
    with run.header() as header:
        for number in range(run.plan.rounds):
            header.wait_for(events.RoundStarted, round=number)
            name = run.publish_local(1, run.local(1))
            published.append(name)

            def judged(number: int = number, name: str = name) -> bool:
                counted = run.contract.state().round > number
                return counted or any(event.fields["cid"] == name for event in header.of(events.UpdateRejected))

            eventually(judged, PATIENCE)
            if run.contract.state().round == number:
                run.publish_locals(next(others))
        header.finish()
    return published


@pytest.mark.parametrize(("rule", "counted"), [(CAPPED, 3), ({"rule": "fedasync"}, 6)], ids=["capped", "undefended"])
def test_one_learner_that_floods_a_run_has_no_more_than_its_share(
    world: World, rule: dict[str, Any], counted: int
) -> None:
    run = world.deploy(asynchronous(aggregation=rule))
    published = flood(run)
    metas = [run.read(str(run.contract.global_weight_at(number))).global_meta for number in range(1, 7)]
    assert sum(entry.cid in published for meta in metas for entry in meta.inputs) == counted
    refused = [entry for meta in metas for entry in meta.refused]
    assert all(one.reason.endswith("(the plan's max_share)") for one in refused)
    assert len(refused) == 6 - counted
    assert run.audit().findings == []


def begun(world: World, *node_ids: int) -> Run:
    """A run with a cap, in which these learners' updates have counted, one in each round."""
    run = world.deploy(asynchronous(aggregation=CAPPED))
    taken: dict[int, int] = {}
    for node_id in node_ids:
        taken[node_id] = taken.get(node_id, 0) + 1
        run.publish_global(made(run, run.publish_locals(node_id), taken))
    return run


def test_a_header_that_counts_more_than_a_learners_share_is_found(world: World) -> None:
    run = begun(world, 1, 2, 1, 3, 1)
    assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == {
        (5, "learner 1", "inputs")
    }
    assert begun(world, 1, 2, 1, 3, 2, 1).audit().passed


def test_a_header_that_rejects_an_update_within_its_share_is_found(world: World) -> None:
    run = begun(world, 1, 2)
    mine, other = run.publish_locals(1, 2)
    pretext = Rejection(1, mine.cid, "would be number 3 of its learner")
    run.publish_global(made(run, [other], {1: 2, 2: 2}, (pretext,)))
    assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == {
        (2, "learner 1", "refused")
    }


def test_a_restarted_header_knows_how_often_each_learner_has_counted(world: World) -> None:
    run = begun(world, 1, 2, 1, 3)
    mine = run.publish_locals(1)[0]
    with run.header() as header:
        header.wait_for(events.UpdateRejected, cid=mine.cid, reason="max_share")
        run.publish_locals(2)
        header.wait_for(events.GlobalWeightsPublished, round=5)
        run.publish_locals(1)
        header.finish()
    assert run.audit().passed


def test_huge_updates_are_refused_by_the_header_and_found_by_the_audit_where_they_are_taken(world: World) -> None:
    def huge(run: Run) -> WeightsFile:
        tensors = {name: np.full(shape, -3e38, np.float32) for name, shape in run.trainer.shapes().items()}
        return run.local(1, tensors)

    run = world.deploy(asynchronous(rounds=1))
    name = run.publish_local(1, huge(run))
    with run.header() as header:
        assert header.wait_for(events.UpdateRejected).fields["reason"] == "bounds"
        run.publish_locals(2)
        header.finish()
    assert [entry.cid for entry in run.current().global_meta.refused] == [name]
    assert run.audit().findings == []

    run = world.deploy(asynchronous(rounds=1))
    taken = huge(run)
    run.publish_local(1, taken)
    run.publish_global(made(run, [taken], {1: 1}))
    assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == {
        (0, "learner 1", "bounds")
    }


def test_an_update_that_is_counted_twice_is_found(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    (first,) = run.publish_locals(1)
    run.publish_global(made(run, [first], {1: 1}))
    run.publish_global(made(run, [first], {1: 1}))
    found = {(finding.round, finding.node, finding.field) for finding in run.audit().findings}
    assert found == {(2, "learner 1", "taken"), (2, "learner 1", "inputs")}


@pytest.mark.parametrize("counted", [True, False])
def test_what_is_published_again_counts_once(world: World, counted: bool) -> None:
    run = world.deploy(asynchronous(rounds=2))
    first = run.local(1)
    again = (Rejection(1, first.cid, "was published before"),)
    run.publish_local(1, first)
    run.publish_local(1, first)
    (other,) = run.publish_locals(2)
    if counted:
        run.publish_global(made(run, [first], {1: 1}))
        run.publish_global(made(run, [first], {1: 2}))
        found = {(finding.round, finding.node, finding.field) for finding in run.audit().findings}
        assert found == {(1, "learner 1", "cid"), (2, "learner 1", "inputs")}
    else:
        run.publish_global(made(run, [other], {1: 2, 2: 1}, again * 2))
        assert {(finding.round, finding.node, finding.field) for finding in run.audit().findings} == {
            (0, "learner 1", "refused")
        }


def test_an_honest_header_refuses_what_is_published_again(world: World) -> None:
    run = world.deploy(asynchronous(rounds=2))
    first = run.local(1)
    run.publish_local(1, first)
    run.publish_local(1, first)
    with run.header() as header:
        header.wait_for(events.GlobalWeightsPublished)
        header.wait_for(events.Waiting, round=1)
        run.publish_locals(2)
        header.wait_for(events.RunFinished)
    assert run.audit().findings == []


@pytest.mark.parametrize("long", [True, False])
def test_a_learner_that_is_passed_over_is_found_where_it_lasts_and_else_noted(world: World, long: bool) -> None:
    run = world.deploy(asynchronous(rounds=4))
    (left_out,) = run.publish_locals(1)
    for number in range(3):
        world.pass_time(LATE + 2 if long or not number else 1)
        (other,) = run.publish_locals(2)
        run.publish_global(made(run, [other], {2: number + 1}))
    audited = run.audit()
    if long:
        assert [str(finding) for finding in audited.findings] == [
            f"round 0, learner 1, inputs: {left_out.cid} was neither counted nor rejected, although later ones were"
        ]
    else:
        assert audited.findings == []
        assert (
            f"learner 1's {left_out.cid} was neither counted nor rejected, although later ones were" in audited.notes
        )


def test_global_weights_that_say_another_round_are_found(world: World) -> None:
    # An update that began there would be as old as minus two rounds.
    run = world.deploy(asynchronous(rounds=3))
    for number in (1, 2):
        (file,) = run.publish_locals(1)
        wrong = {"round": 0} if number == 2 else {}
        run.publish_global(rewrite(run, made(run, [file], {1: number}), lambda meta, w=wrong: replace(meta, **w)))
    parent, last = run.current(), run.local(1, round=2)
    run.publish_local(1, last)
    inputs = (Input(1, last.cid, last.local_meta.samples, 0.6, 2),)
    meta = replace(parent.global_meta, round=3, parent=parent.cid, inputs=inputs, taken=((1, 3),))
    run.publish_global(model_file.write(run.path(), meta, parent.tensors()))
    assert (2, "header", "round") in {
        (finding.round, finding.node, finding.field) for finding in run.audit().findings
    }


def test_a_good_update_that_is_refused_is_found(world: World) -> None:
    run = world.deploy(asynchronous(rounds=1))
    first, second = run.publish_locals(1, 2)
    run.publish_global(made(run, [second], {1: 1, 2: 1}, (Rejection(1, first.cid, "smells"),)))
    (finding,) = run.audit().findings
    assert (finding.round, finding.node, finding.field) == (0, "learner 1", "refused")
