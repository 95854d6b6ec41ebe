"""The audit finds every lie: each is really published, by a header or learner that plays false, on a real chain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import Input, Rejection, Tensors, WeightsFile
from fl_node.artifacts.store import Progress, silent
from fl_node.audit.case import LATE
from fl_node.chain.abi import artifact
from fl_node.chain.client import DEPLOY_GAS
from fl_node.chain.contract import Contract
from fl_node.chain.keys import load_key
from fl_node.errors import StoreUnreachable
from fl_node.plan import loading
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.global_files import initial_file
from fl_node.protocol.history import History
from tests.helpers.runs import Run, World, plan
from tests.helpers.stub import StubTrainer, noise
from tests.helpers.warm import fl_node

NOWHERE = cid.of_bytes(b"a file that nobody has")
LONG = LATE + 2
"""Seconds by the chain's clock in which a header must have seen what was published."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as running:
        yield running


Place = tuple[int | None, str, str]
"""Round, node and field of a finding."""


def places(run: Run) -> set[Place]:
    audited = run.audit()
    assert audited.passed == (not audited.findings)
    return {(one.round, one.node, one.field) for one in audited.findings}


# Honest runs


def test_an_honest_run_passes(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=4))
    with ExitStack() as stack:
        header = stack.enter_context(run.header())
        learners = [stack.enter_context(run.learner(n)) for n in (1, 2, 3)]
        for role in (header, *learners):
            role.finish()
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == []
    assert (audited.rounds, audited.files) == (4, 1 + 5 + 4 * 3)
    files = [run.files / name for name in {path.name for path in run.files.iterdir()} - {run.plan_cid}]
    assert audited.bytes == sum(path.stat().st_size for path in files)


def test_an_audit_leaves_no_model_files_behind(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    assert run.audit().passed
    assert not list(run.folder.glob("audit-*/*.safetensors"))


def test_a_run_that_goes_on_passes_so_far(world: World) -> None:
    run = world.deploy(plan(rounds=3))
    run.close_round()
    run.publish_locals(1)
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == ["the run is in progress: 1 of 3 rounds are closed"]


def test_a_run_that_has_not_begun_is_a_note(world: World) -> None:
    audited = founded(world, plan()).audit()
    assert audited.passed, audited.findings
    assert audited.notes == ["the run has not started: no initial weights"]


def test_a_round_that_closes_while_the_audit_reads_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.deploy(plan(rounds=3))
    run.close_round()
    read, closings = history.read, iter([True])

    def read_and_close(contract: Contract) -> History:
        past = read(contract)
        if next(closings, False):
            run.close_round()
        return past

    monkeypatch.setattr(history, "read", read_and_close)
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.rounds == 2


def test_a_round_that_closes_while_the_plan_is_fetched_is_no_finding(world: World) -> None:
    run = world.deploy(plan(rounds=3))
    run.close_round()

    class Slow(FolderStore):
        def fetch(
            self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent
        ) -> None:
            super().fetch(file_cid, path, max_bytes, timeout, progress)
            if path.name == "plan.json":
                run.close_round()

    audited = run.audit(store=Slow(run.files))
    assert audited.passed, audited.findings
    assert audited.rounds == 1


def test_a_learner_that_published_as_the_round_closed_is_a_note(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1, min_learners=2, round_timeout=1.0))
    files = run.publish_locals()
    run.publish_global(run.average(files[:2], absent=[3]))
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == ["round 0: learner 3 published while it closed"]


@pytest.mark.parametrize("refused", [False, True])
def test_a_learner_that_published_again_as_the_round_closed_is_a_note(world: World, refused: bool) -> None:
    run = world.deploy(plan(learners=3, rounds=1, min_learners=2))
    files = run.publish_locals()
    if refused:
        bad = run.publish_local(3, run.local(3, round=7))
        made = run.average(files[:2], refused=[Rejection(3, bad, "metadata: round is 7; should be 0")])
    else:
        made = run.average(files)
    run.publish_local(3, run.local(3, accuracy=0.75))
    run.publish_global(made)
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes[0] == "round 0: learner 3 published again while it closed"


def test_what_a_replaced_block_put_behind_the_closing_of_its_round_is_a_note(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=2))
    files = [*run.publish_locals(1, 2), run.local(3)]
    run.publish_global(run.average(files))
    # The header saw this in a block that another took the place of.
    run.publish_local(3, files[2])
    run.close_round()
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == [
        "round 0: learner 3's weights were sealed again after their round, because a block was replaced"
    ]
    first, second = run.collect().rounds
    assert (first.local[3].cid, first.local[3].problem) == (files[2].cid, None)
    assert second.local[3].cid != files[2].cid


def test_a_learner_may_publish_the_same_again(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    files = run.publish_locals()
    run.publish_local(1, run.local(1, accuracy=0.75))
    run.publish_local(1, files[0])
    world.pass_time(LONG)
    run.publish_global(run.average(files))
    audited = run.audit()
    assert (audited.passed, audited.notes) == (True, []), audited


def test_a_file_refused_as_missing_that_is_there_now_is_a_note(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1, min_learners=2))
    files = run.publish_locals()
    run.publish_global(run.average(files[:2], refused=[Rejection(3, files[2].cid, "missing")]))
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == [f"round 0: learner 3's {files[2].cid} was rejected as missing, but is available now"]


def test_a_file_that_was_refused_and_is_bad_is_a_note_with_both_reasons(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1, min_learners=2))
    good = run.publish_locals(1, 2)
    bad = run.publish_local(3, run.local(3, samples=10**9))
    run.publish_global(run.average(good, refused=[Rejection(3, bad, "smells")]))
    audited = run.audit()
    assert audited.passed, audited.findings
    (note,) = audited.notes
    assert note.startswith(
        f"round 0: learner 3's {bad} was rejected (smells); this audit: metadata: samples is 1000000000"
    )


# Lies about a round: what is published in place of global weights 2, after an honest round


@dataclass(frozen=True)
class Lie:
    """What a header or a learner does in round 1, and where the audit must find it, there and nowhere else."""

    tell: Callable[[Run], object]
    found: set[Place]
    text: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


PATIENT = {"min_learners": 2, "round_timeout": 1.0}
SOME = {"min_learners": 2}
ALL_TENSORS: set[Place] = {(2, "header", "tensor dense/bias"), (2, "header", "tensor dense/kernel")}


def changed_inputs(change: Callable[[list[Input]], list[Input]]) -> Callable[[Run], object]:
    """A global file that says something else of the local files it was made of."""

    def tell(run: Run) -> None:
        good = run.average(run.publish_locals())
        run.publish_global(rewritten(run, good, inputs=tuple(change(list(good.global_meta.inputs)))))

    return tell


def rewritten(run: Run, file: WeightsFile, tensors: Tensors | None = None, **changes: Any) -> WeightsFile:
    return model_file.write(run.path(), replace(file.global_meta, **changes), tensors or file.tensors())


def changed(**changes: Any) -> Callable[[Run], object]:
    """A global file whose metadata say something else."""
    return lambda run: run.publish_global(run.average(run.publish_locals(), **changes))


def random_tensors(given: dict[str, model_file.Tensor]) -> Tensors:
    return noise({name: tensor.shape for name, tensor in given.items()}, 666)


def one_bit(given: dict[str, model_file.Tensor]) -> Tensors:
    given["dense/kernel"].view(np.uint32)[1, 2] ^= 1
    return given


def negative_zero(given: dict[str, model_file.Tensor]) -> Tensors:
    given["dense/bias"][:] = -0.0
    return given


def poisoned(given: dict[str, model_file.Tensor]) -> Tensors:
    given["dense/bias"][0] = np.inf
    return given


def favours_learner_1(run: Run) -> None:
    """A global file that names all and is one learner's weights."""
    files = run.publish_locals()
    run.publish_global(rewritten(run, run.average(files), files[0].tensors()))


def keeps_the_old_weights(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals(), tensors=lambda _given: run.current().tensors()))


def drops_learner_3(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals()[:2]))


def does_not_mention_learner_3(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals(1, 2)))


def calls_learner_3_missing(run: Run) -> None:
    files = run.publish_locals()
    run.world.pass_time(LONG)
    run.publish_global(run.average(files[:2], absent=[3]))


def does_not_wait_for_learner_3(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals(1, 2), absent=[3]))


def refuses_learner_3(reason: str) -> Callable[[Run], object]:
    def tell(run: Run) -> None:
        files = run.publish_locals()
        run.publish_global(run.average(files[:2], refused=[Rejection(3, files[2].cid, reason)]))

    return tell


def rejects_what_was_not_published(run: Run) -> None:
    files = run.publish_locals()
    run.publish_global(run.average(files[:2], refused=[Rejection(3, NOWHERE, "missing")]))


def rejects_what_was_replaced(run: Run) -> None:
    bad = run.publish_local(3, run.local(3, round=0))
    files = run.publish_locals()
    run.world.pass_time(LONG)
    run.publish_global(run.average(files[:2], refused=[Rejection(3, bad, "metadata: round is 0; should be 1")]))


def takes_what_was_replaced(run: Run) -> None:
    files = run.publish_locals()
    run.publish_local(3, run.local(3, accuracy=0.75))
    run.world.pass_time(LONG)
    run.publish_global(run.average(files))


def adds_a_stranger(run: Run) -> None:
    stranger = run.local(4, samples=34)
    run.store.add(stranger.path)
    run.publish_global(run.average([*run.publish_locals(), stranger]))


def calls_a_stranger_missing(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals(), absent=[4]))


def adds_one_of_its_own(run: Run) -> None:
    """A fourth learner of a plan for three: nothing bounds its samples, so the average is its weights."""
    run.register(4, "mallory")
    sybil = run.local(4, samples=10**9)
    run.publish_local(4, sybil, "mallory")
    run.publish_global(run.average([*run.publish_locals(), sybil]))


def adds_what_was_not_published(run: Run) -> None:
    unpublished = run.local(3)
    run.store.add(unpublished.path)
    run.publish_global(run.average([*run.publish_locals(1, 2), unpublished]))


def takes_what_came_too_late(run: Run) -> None:
    late = run.local(3)
    run.publish_global(run.average([*run.publish_locals(1, 2), late]))
    run.world.pass_time(LONG)
    run.publish_local(3, late)


def takes_yesterdays_file(run: Run) -> None:
    """A learner spares itself the training and publishes again what it had."""
    stale = run.read(str(run.contract.local_weight_at(0, 3)))
    run.publish_local(3, stale)
    run.publish_global(run.average([*run.publish_locals(1, 2), stale]))


def takes_an_old_publication(run: Run) -> None:
    stale = run.read(str(run.contract.local_weight_at(0, 3)))
    run.publish_global(run.average([*run.publish_locals(1, 2), stale]))


def takes_a_local_file_with(**changes: Any) -> Callable[[Run], object]:
    def tell(run: Run) -> None:
        files = [*run.publish_locals(1, 2), run.local(3, **changes)]
        run.publish_local(3, files[2])
        good = run.average(files)
        inputs = tuple(replace(one, node_id=number) for number, one in enumerate(good.global_meta.inputs, 1))
        run.publish_global(rewritten(run, good, inputs=inputs))

    return tell


def takes_another_learners_file(run: Run) -> None:
    """Learner 3 publishes learner 2's file as its own, and the header counts it twice."""
    files = run.publish_locals(1, 2)
    run.publish_local(3, files[1])
    good = run.average([*files, files[1]])
    inputs = (*good.global_meta.inputs[:2], replace(good.global_meta.inputs[2], node_id=3))
    run.publish_global(rewritten(run, good, inputs=inputs))


def takes_huge_weights(run: Run) -> None:
    huge = run.local(3, {name: np.full(shape, 3e38, np.float32) for name, shape in run.trainer.shapes().items()})
    run.publish_local(3, huge)
    run.publish_global(run.average([*run.publish_locals(1, 2), huge]))


def counts_learner_1_twice(run: Run) -> None:
    files = run.publish_locals()
    run.publish_global(run.average([files[0], *files]))


def accepts_learner_3_and_calls_it_missing(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals(), absent=[3]))


def takes_one_of_three(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals(1), absent=[2, 3]))


def puts_missing_learners_out_of_order(run: Run) -> None:
    good = run.average(run.publish_locals(1), absent=[2, 3])
    run.publish_global(rewritten(run, good, absent=(3, 2)))


def takes_nobody(run: Run) -> None:
    files = [run.local(n, round=0) for n in (1, 2, 3)]
    refused = tuple(Rejection(n, run.publish_local(n, file), "smells") for n, file in enumerate(files, 1))
    run.publish_global(rewritten(run, run.average(files), inputs=(), refused=refused))


def removes(which: Callable[[Run], str]) -> Callable[[Run], object]:
    def tell(run: Run) -> None:
        run.close_round()
        (run.files / which(run)).unlink()

    return tell


def swaps(which: Callable[[Run], str]) -> Callable[[Run], object]:
    """A store in which a file has the same name and size, and one byte of a tensor is another."""

    def tell(run: Run) -> None:
        run.close_round()
        path = run.files / which(run)
        content = bytearray(path.read_bytes())
        content[-4] ^= 1
        path.write_bytes(content)

    return tell


def local_of_learner_2(run: Run) -> str:
    return str(run.contract.local_weight_at(1, 2))


def current_global(run: Run) -> str:
    return run.current().cid


def initial_global(run: Run) -> str:
    return str(run.contract.global_weight_at(0))


def publishes_bytes(content: Callable[[bytes], bytes]) -> Callable[[Run], object]:
    def tell(run: Run) -> None:
        good = run.average(run.publish_locals())
        path = run.path()
        path.write_bytes(content(good.path.read_bytes()))
        run.publish_global(path)

    return tell


LIES = {
    # The sum
    "shares": Lie(
        changed_inputs(lambda i: [replace(i[0], share=i[0].share * 2), *i[1:]]), {(2, "learner 1", "share")}
    ),
    "equal shares for unequal shards": Lie(
        changed_inputs(lambda i: [replace(one, share=1 / 3) for one in i]),
        {(2, f"learner {n}", "share") for n in (1, 2, 3)},
    ),
    "samples": Lie(changed_inputs(lambda i: [*i[:2], replace(i[2], samples=1)]), {(2, "learner 3", "samples")}),
    "random weights": Lie(changed(tensors=random_tensors), ALL_TENSORS, "from what its local files give"),
    "one bit": Lie(changed(tensors=one_bit), {(2, "header", "tensor dense/kernel")}, "differs in 1 of 12 values"),
    "minus zero": Lie(changed(tensors=negative_zero), {(2, "header", "tensor dense/bias")}, "in 4 of 4 values"),
    "one learner's weights": Lie(favours_learner_1, ALL_TENSORS),
    "the old weights": Lie(keeps_the_old_weights, ALL_TENSORS),
    # What the file says of itself
    "parent": Lie(changed(parent=NOWHERE), {(2, "header", "parent")}, f"is {NOWHERE}, should be Qm"),
    "no parent": Lie(changed(parent=None), {(2, "header", "parent")}),
    "rule": Lie(changed(rule="median"), {(2, "header", "rule")}, "is median, should be fedavg"),
    "round": Lie(changed(round=5), {(2, "header", "round")}, "is 5, should be 2"),
    "another plan": Lie(changed(plan=NOWHERE), {(2, "header", "plan")}),
    "inputs out of order": Lie(
        changed_inputs(lambda i: i[::-1]), {(2, "header", "inputs")}, "should be from 1, 2, 3"
    ),
    "missing learners out of order": Lie(
        puts_missing_learners_out_of_order,
        {(2, "header", "absent")},
        settings=PATIENT | {"min_learners": 1},
    ),
    # Who takes part
    "dropped": Lie(drops_learner_3, {(2, "learner 3", "inputs")}, "published local weights, but is left out", SOME),
    "not mentioned": Lie(
        does_not_mention_learner_3, {(2, "learner 3", "inputs")}, "is registered, but is left out", PATIENT
    ),
    "named as missing": Lie(
        calls_learner_3_missing, {(2, "learner 3", "absent")}, "is listed as missing, but had published", PATIENT
    ),
    "missing in a plan that waits for ever": Lie(
        does_not_wait_for_learner_3, {(2, "header", "absent")}, "the plan has no round_timeout", SOME
    ),
    "missing before the time is up": Lie(
        does_not_wait_for_learner_3,
        {(2, "header", "absent")},
        "the plan waits 1000 s",
        PATIENT | {"round_timeout": 1000.0},
    ),
    "rejected under a pretext": Lie(
        refuses_learner_3("tensor dense/bias has values that are not finite"),
        {(1, "learner 3", "refused")},
        "is valid, but was rejected: tensor dense/bias has values that are not finite",
        SOME,
    ),
    "rejected for publications that are not there": Lie(
        refuses_learner_3(history.TOO_OFTEN),
        {(1, "learner 3", "refused")},
        "is valid, but was rejected: more than 8 publications in one round",
        SOME,
    ),
    "rejected as missing at once": Lie(
        refuses_learner_3("missing"),
        {(1, "learner 3", "refused")},
        "the plan allows 1000 s",
        SOME | {"fetch_timeout": 1000.0},
    ),
    "rejected without being published": Lie(
        rejects_what_was_not_published, {(1, "learner 3", "refused")}, f"did not publish {NOWHERE}", SOME
    ),
    "rejected after it was replaced": Lie(
        rejects_what_was_replaced, {(1, "learner 3", "refused")}, "had replaced Qm", SOME
    ),
    "taken after it was replaced": Lie(takes_what_was_replaced, {(1, "learner 3", "cid")}, "had replaced Qm"),
    "a stranger": Lie(
        adds_a_stranger, {(2, "learner 4", "inputs"), (1, "learner 4", "cid")}, "takes part without registration"
    ),
    "a missing stranger": Lie(
        calls_a_stranger_missing,
        {(2, "learner 4", "inputs"), (2, "header", "absent")},
        "takes part without registration",
    ),
    "a learner beyond the plan": Lie(
        adds_one_of_its_own, {(None, "learner 4", "registered")}, "the plan has shards for learners 1 to 3"
    ),
    "what was never published": Lie(adds_what_was_not_published, {(1, "learner 3", "cid")}, "did not publish"),
    "huge weights": Lie(takes_huge_weights, {(1, "learner 3", "bounds")}, "has a value of size 3e+38"),
    "what came too late": Lie(takes_what_came_too_late, {(1, "learner 3", "cid")}, "did not publish"),
    "named twice": Lie(counts_learner_1_twice, {(2, "learner 1", "inputs")}, "is listed more than once"),
    "accepted and missing": Lie(
        accepts_learner_3_and_calls_it_missing, {(2, "learner 3", "inputs")}, "is listed more than once", PATIENT
    ),
    "too few": Lie(takes_one_of_three, {(2, "header", "inputs")}, "1 local files, the plan requires 2", PATIENT),
    "nobody": Lie(takes_nobody, {(2, "header", "inputs")}, "0 local files, the plan requires 3"),
    # Local files that should have been rejected
    "yesterday's file": Lie(
        takes_yesterdays_file, {(1, "learner 3", "round"), (1, "learner 3", "parent")}, "is 0, should be 1"
    ),
    "yesterday's publication": Lie(takes_an_old_publication, {(1, "learner 3", "cid")}, "did not publish"),
    "a local file of another plan": Lie(takes_a_local_file_with(plan=NOWHERE), {(1, "learner 3", "plan")}),
    "a local file from other weights": Lie(takes_a_local_file_with(parent=NOWHERE), {(1, "learner 3", "parent")}),
    "a local file with more samples": Lie(takes_a_local_file_with(samples=10**9), {(1, "learner 3", "samples")}),
    "another learner's file": Lie(
        takes_another_learners_file,
        {(1, "learner 3", "node_id"), (1, "learner 3", "samples"), (2, "header", "inputs")},
    ),
    # Files that are not what they should be
    "a missing local file": Lie(removes(local_of_learner_2), {(1, "learner 2", "file")}, "is not in the store"),
    "a missing global file": Lie(removes(current_global), {(2, "header", "file")}, "is not in the store"),
    "missing initial weights": Lie(removes(initial_global), {(0, "header", "file")}, "is not in the store"),
    "a swapped local file": Lie(swaps(local_of_learner_2), {(1, "learner 2", "file")}, "what the store gave for"),
    "a swapped global file": Lie(swaps(current_global), {(2, "header", "file")}, "what the store gave for"),
    "swapped initial weights": Lie(swaps(initial_global), {(0, "header", "file")}, "what the store gave for"),
    "a hash without a file": Lie(
        lambda run: run.publish_global(NOWHERE), {(2, "header", "file")}, "is not in the store"
    ),
    "infinity": Lie(changed(tensors=poisoned), {(2, "header", "file")}, "values that are not finite"),
    "another model": Lie(
        changed(tensors=lambda _given: noise({"a": (2,)}, 1)), {(2, "header", "file")}, "tensor dense/bias is missing"
    ),
    "a local file as global": Lie(
        lambda run: run.publish_global(run.publish_locals()[0]), {(2, "header", "file")}, "kind is local"
    ),
    "truncated": Lie(publishes_bytes(lambda good: good[:-1]), {(2, "header", "file")}, "not a safetensors file"),
    "huge": Lie(
        publishes_bytes(lambda good: good + bytes(model_file.size_of(StubTrainer.SHAPES))),
        {(2, "header", "file")},
        "bytes allowed",
    ),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_is_found_where_it_was_told(world: World, kind: str) -> None:
    lie = LIES[kind]
    run = world.deploy(plan(learners=3, **lie.settings))
    run.close_round()
    lie.tell(run)
    audited = run.audit()
    assert not audited.passed
    assert {(one.round, one.node, one.field) for one in audited.findings} == lie.found, audited.findings
    assert any(lie.text in one.message for one in audited.findings), audited.findings
    assert all("\n" not in str(one) for one in audited.findings)


@pytest.mark.parametrize("rule", ["trimmed_mean", "multi_krum"])
def test_a_rule_that_has_too_few_files_is_found(world: World, rule: str) -> None:
    run = world.deploy(plan(learners=5, rounds=1, aggregation={"rule": rule, "num_malicious": 1}))
    files = run.publish_locals(1, 2)
    # The rule itself makes nothing of them.
    parent = run.current().global_meta
    inputs = tuple(Input(one.local_meta.node_id, one.cid, one.local_meta.samples, 0.5) for one in files)
    meta = replace(parent, round=1, parent=run.current().cid, inputs=inputs, absent=(3, 4, 5))
    run.publish_global(model_file.write(run.path(), meta, files[0].tensors()))
    assert (1, "header", "inputs") in places(run)


def test_an_honest_round_after_a_lie_is_not_accused(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=3))
    run.close_round()
    run.publish_global(run.average(run.publish_locals(), tensors=one_bit))
    run.close_round()
    assert places(run) == {(2, "header", "tensor dense/kernel")}


def test_a_finding_stays_a_line_whatever_a_header_wrote(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.publish_global(run.average(run.publish_locals(), rule="x" * 1000))
    (finding,) = run.audit().findings
    assert (finding.round, finding.node, finding.field) == (1, "header", "rule")
    assert len(str(finding)) < 1000


# Lies about the run as a whole


def founded(world: World, given: Plan, plan_file: bytes | None = None, bytecode: str = "") -> Run:
    """A run that was deployed and has not begun, with this content of its plan file if given."""
    folder = world.folder / f"founded-{cid.of_bytes(str(world.chain('header').block_number()).encode())}"
    folder.mkdir()
    path = folder / "plan.json"
    path.write_bytes(given.to_bytes() if plan_file is None else plan_file)
    chain = world.chain("header")
    name = FolderStore(folder / "files").add(path)
    address = str(chain.deploy(name).contract) if not bytecode else deploy_code(world, bytecode, name)
    run = Run(world, given, address, folder, StubTrainer(given))
    for node_id in range(1, given.learners + 1):
        run.register(node_id, f"learner-{node_id}")
    return run


def deploy_code(world: World, bytecode: str, plan_cid: str) -> str:
    chain = world.chain("header")
    factory = chain.web3.eth.contract(abi=artifact()["abi"], bytecode=bytecode)
    transaction = factory.constructor(cid.to_digest(plan_cid)).build_transaction(
        {
            "from": chain.web3.to_checksum_address(chain.address),
            "nonce": chain.web3.eth.get_transaction_count(chain.web3.to_checksum_address(chain.address)),
            "chainId": chain.chain_id(),
            "gas": DEPLOY_GAS,
            "maxFeePerGas": 10**11,
            "maxPriorityFeePerGas": 1,
        }
    )
    signed = load_key(world.keys["header"]).sign_transaction(transaction)
    receipt = chain.web3.eth.wait_for_transaction_receipt(
        chain.web3.eth.send_raw_transaction(signed.raw_transaction), timeout=20, poll_latency=0.01
    )
    return str(receipt["contractAddress"])


INITIAL: dict[str, tuple[dict[str, Any], Callable[[dict[str, model_file.Tensor]], Tensors], set[Place]]] = {
    "random": (
        {},
        random_tensors,
        {(0, "header", "tensor dense/bias"), (0, "header", "tensor dense/kernel")},
    ),
    "one bit": ({}, one_bit, {(0, "header", "tensor dense/kernel")}),
    "rule": ({"rule": "pretrained"}, dict, {(0, "header", "rule")}),
    "parent": ({"parent": NOWHERE}, dict, {(0, "header", "parent")}),
    "inputs": ({"inputs": (Input(1, NOWHERE, 34, 1.0),)}, dict, {(0, "header", "inputs")}),
    "refused": ({"refused": (Rejection(1, NOWHERE, "smells"),)}, dict, {(0, "header", "refused")}),
    "absent": ({"absent": (1,)}, dict, {(0, "header", "absent")}),
    "round": ({"round": 1}, dict, {(0, "header", "round")}),
    "another plan": ({"plan": NOWHERE}, dict, {(0, "header", "plan")}),
}


@pytest.mark.parametrize("kind", INITIAL)
def test_wrong_initial_weights_are_found(world: World, kind: str) -> None:
    changes, tensors, found = INITIAL[kind]
    run = founded(world, plan())
    good = initial_file(run.folder / "global-0.safetensors", run.plan, run.plan_cid, run.trainer.initial())
    forged = rewritten(run, good, tensors(good.tensors()), **changes)
    run.publish_global(forged)
    assert places(run) == found


def test_a_report_of_a_run_that_began_with_another_model_says_so(world: World) -> None:
    run = founded(world, plan())
    other = StubTrainer(run.plan, {"dense/bias": np.zeros(9, np.float32)})
    run.publish_global(initial_file(run.folder / "global-0.safetensors", run.plan, run.plan_cid, other.initial()))
    initial = run.collect().initial
    assert initial is not None
    assert initial.problem == "tensor dense/kernel is missing"


def test_rounds_beyond_the_plan_are_found(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    for _ in range(3):
        run.close_round()
    assert places(run) == {(2, "header", "round")}


def test_a_learner_that_was_never_registered_is_missed(world: World) -> None:
    run = world.deploy(plan(learners=3, min_learners=2, rounds=1), learners=[1, 2])
    run.publish_global(run.average(run.publish_locals(1, 2)))
    assert places(run) == {(1, "header", "absent")}


def test_a_learner_can_not_take_part_before_it_is_registered(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1), learners=[1, 2])
    run.publish_global(run.average([*run.publish_locals(1, 2), run.local(3)]))
    run.register(3, "learner-3")
    assert places(run) == {(1, "learner 3", "inputs"), (0, "learner 3", "cid"), (1, "header", "absent")}


def test_a_learner_registered_after_a_round_is_not_missed_in_it(world: World) -> None:
    run = world.deploy(plan(learners=3, min_learners=2, rounds=2, round_timeout=1.0), learners=[1, 2])
    run.publish_global(run.average(run.publish_locals(1, 2)))
    run.register(3, "learner-3")
    run.close_round()
    assert places(run) == set()


@pytest.mark.parametrize("content", [None, b'{"name":"another"}'], ids=["missing", "damaged"])
def test_a_plan_that_is_gone_or_damaged_is_found(world: World, content: bytes | None) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    path = run.files / run.plan_cid
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert places(run) == {(None, "header", "plan")}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 60_000,
        b"x" * 100_000,
        b'{"name":"no plan","colour":"red"}',
        json.dumps(plan().model_dump(), indent=2).encode(),
    ],
    ids=["empty", "nested", "huge", "no plan", "not canonical"],
)
def test_a_plan_that_is_none_is_found(world: World, content: bytes) -> None:
    run = founded(world, plan(), content)
    assert places(run) == {(None, "header", "plan")}
    assert "\n" not in str(run.audit().findings[0])


def test_a_contract_with_other_code_is_found(world: World) -> None:
    code = artifact()["bytecode"]
    other = code[:-2] + f"{int(code[-2:], 16) ^ 1:02x}"
    run = founded(world, plan(rounds=1), bytecode=other)
    run.publish_global(
        initial_file(run.folder / "global-0.safetensors", run.plan, run.plan_cid, run.trainer.initial())
    )
    run.close_round()
    assert places(run) == {(None, "header", "contract")}


def push(value: bytes) -> bytes:
    return bytes([0x5F + len(value)]) + value


def word(number: int) -> bytes:
    return push(number.to_bytes(32, "big"))


def forging(world: World, plan_cid: str, topics: Sequence[bytes], data: bytes) -> str:
    """Return code that deploys the genuine contract, after it has put an event of the deployer's own into its log."""
    genuine = world.chain("header").contract(str(world.chain("header").deploy(plan_cid).contract))
    runtime = bytes(genuine.chain.web3.eth.get_code(genuine.chain.web3.to_checksum_address(genuine.address)))
    mstore, log, codecopy, return_ = b"\x52", bytes([0xA0 + len(topics)]), b"\x39", b"\xf3"
    event = push(data) + word(0) + mstore if data else b""
    event += b"".join(push(one) for one in reversed(topics)) + word(len(data)) + word(0) + log

    def copying(at: int) -> bytes:
        return word(len(runtime)) + word(at) + word(0) + codecopy + word(len(runtime)) + word(0) + return_

    return "0x" + (event + copying(len(event) + len(copying(0))) + runtime).hex()


def topic(run: Run, name: str) -> bytes:
    return bytes.fromhex(str(run.contract._contract.events[name]().topic).removeprefix("0x"))


def test_an_event_that_nobody_signed_is_found(world: World) -> None:
    # What other code than the contract's own wrote as it deployed it: it looks as if learner 2 had published.
    given = plan(rounds=1)
    honest = founded(world, given)
    start = initial_file(honest.folder / "global-0.safetensors", given, honest.plan_cid, honest.trainer.initial())
    honest.publish_global(start)
    invented = honest.local(2)
    topics = [topic(honest, "LocalWeightSet"), *(number.to_bytes(32, "big") for number in (0, 2))]
    code = forging(world, honest.plan_cid, topics, cid.to_digest(invented.cid))
    run = founded(world, given, bytecode=code)
    run.publish_global(start)
    run.store.add(invented.path)
    run.publish_global(run.average([*run.publish_locals(1), invented]))
    assert run.contract.has_known_code()
    assert (0, "learner 2", "sender") in places(run)


@pytest.mark.parametrize("topics", [[], [bytes(32)], ["LocalWeightSet"]], ids=["no topic", "unknown", "too few"])
def test_a_log_that_no_run_has_is_found(world: World, topics: list[Any]) -> None:
    given = plan(rounds=1)
    honest = founded(world, given)
    some = [topic(honest, one) if isinstance(one, str) else one for one in topics]
    run = founded(world, given, bytecode=forging(world, honest.plan_cid, some, b""))
    assert places(run) == {(None, "header", "log")}


class _LyingNode(Contract):
    """A node whose answers are not those of its log."""

    def global_weight_at(self, round_: int) -> str | None:
        return NOWHERE if round_ == 1 else super().global_weight_at(round_)

    def local_weight_at(self, round_: int, node_id: int) -> str | None:
        return NOWHERE if (round_, node_id) == (0, 2) else super().local_weight_at(round_, node_id)


def test_a_node_whose_answers_differ_from_its_log_is_found(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    found = {(one.round, one.node, one.field) for one in run.audit(_lying(run)).findings}
    assert found == {(1, "header", "globalWeightAt"), (0, "learner 2", "localWeightAt")}


def _lying(run: Run) -> Contract:
    return _LyingNode(run.contract.chain, run.address)


class _AwayStore(FolderStore):
    """A store whose daemon ends after some files."""

    left = 3

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        if not self.left:
            raise StoreUnreachable("IPFS can't be reached; is the daemon running?")
        self.left -= 1
        super().fetch(file_cid, path, max_bytes, timeout, progress)


def test_a_store_that_goes_away_accuses_nobody(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    with pytest.raises(StoreUnreachable):
        run.audit(store=_AwayStore(run.files))


# The command line, which builds the Keras model


def test_the_command_line_tells_honest_runs_from_lies_by_its_exit_code(world: World, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\nrounds = 1\nlearners = 2\nfetch_timeout = 1.0\n'
        'data = { name = "digits", train = 40, test = 10 }\nmodel = { name = "mlp" }\n'
    )
    files = tmp_path / "files"
    deployed = fl_node(
        *("deploy", tmp_path / "tiny.toml", "--json"),
        *("--rpc", world.rpc, "--store", f"file:{files}", "--key", world.keys["header"]),
        *(f"--learner=1={world.accounts['learner-1']}", f"--learner=2={world.accounts['learner-2']}"),
    )
    assert deployed.returncode == 0, deployed.stderr
    address = json.loads(deployed.stdout)["contract"]
    first = world.chain("header").contract(address)
    tiny = loading.from_bytes((files / first.plan()).read_bytes())
    initial = model_file.read(files / str(first.global_weight_at(0))).tensors()

    honest = Run(world, tiny, address, tmp_path, StubTrainer(tiny, initial))
    honest.close_round()
    swapped = tmp_path / "swapped"
    shutil.copytree(files, swapped)
    victim = swapped / str(honest.contract.local_weight_at(0, 2))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    other_start = {name: tensor + np.float32(1) for name, tensor in initial.items()}
    forged = world.deploy(tiny, lambda given: StubTrainer(given, other_start))
    forged.close_round()

    def audited(store: Path, contract: str) -> tuple[int, dict[str, Any]]:
        done = fl_node("audit", "--json", "--rpc", world.rpc, "--store", store, "--contract", contract)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    code, result = audited(files, address)
    assert (code, result["passed"], result["findings"]) == (0, True, [])
    assert (result["rounds"], result["files"]) == (1, 5)
    code, result = audited(swapped, address)
    assert (code, result["passed"]) == (1, False)
    assert [(f["round"], f["node"], f["field"]) for f in result["findings"]] == [(0, "learner 2", "file")]
    code, result = audited(forged.files, forged.address)
    assert (code, result["passed"]) == (1, False)
    assert {(f["round"], f["node"], f["field"].split()[0]) for f in result["findings"]} == {(0, "header", "tensor")}
