"""Lies that a header or a learner tells in a run, each really published, and what must be found of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import Input, Rejection, Tensors, WeightsFile
from tests.helpers.runs import Run
from tests.helpers.stub import StubTrainer, noise

NOWHERE = cid.of_bytes(b"a file that nobody has")
Place = tuple[int | None, str, str]
"""Round, node and field of a finding."""


@dataclass(frozen=True)
class Lie:
    """What a header or a learner does in round 1, and where the audit must find it, there and nowhere else.

    ``played`` are the learners that do not publish in round 1 what they should, so a test plays them.
    """

    tell: Callable[[Run], object]
    found: set[Place]
    text: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    played: frozenset[int] = frozenset()


PATIENT = {"min_learners": 2, "round_timeout": 1.0}
SOME = {"min_learners": 2}
FALSE_3 = frozenset({3})
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
    files = run.publish_locals(1, 2)
    run.time_out()
    run.publish_global(run.average(files))


def calls_learner_3_missing(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals()[:2], absent=[3]))


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
    _, *files = run.publish_locals(3, 1, 2)
    run.publish_global(run.average(files, refused=[Rejection(3, bad, "metadata: round is 0; should be 1")]))


def takes_what_was_replaced(run: Run) -> None:
    replaced = run.local(3, accuracy=0.75)
    run.publish_local(3, replaced)
    _, *files = run.publish_locals(3, 1, 2)
    run.publish_global(run.average([*files, replaced]))


def adds_a_stranger(run: Run) -> None:
    stranger = run.local(4, samples=34)
    run.store.add(stranger.path)
    run.publish_global(run.average([*run.publish_locals(), stranger]))


def calls_a_stranger_missing(run: Run) -> None:
    run.publish_global(run.average(run.publish_locals(), absent=[4]))


def adds_what_was_not_published(run: Run) -> None:
    unpublished = run.local(3)
    run.store.add(unpublished.path)
    files = run.publish_locals(1, 2)
    run.time_out()
    run.publish_global(run.average([*files, unpublished]))


def takes_what_came_too_late(run: Run) -> None:
    files, late = run.publish_locals(1, 2), run.local(3)
    run.time_out()
    learner = run.as_node("learner-3")
    assert learner.set_local_weight(3, run.store.add(late.path), learner.chain.nonce()) is None
    run.publish_global(run.average([*files, late]))


def takes_yesterdays_file(run: Run) -> None:
    """A learner spares itself the training and publishes again what it had."""
    stale = run.read(str(run.contract.local_weight_at(0, 3)))
    run.publish_local(3, stale)
    run.publish_global(run.average([*run.publish_locals(1, 2), stale]))


def takes_an_old_publication(run: Run) -> None:
    stale, files = run.read(str(run.contract.local_weight_at(0, 3))), run.publish_locals(1, 2)
    run.time_out()
    run.publish_global(run.average([*files, stale]))


def takes_a_local_file_with(**changes: Any) -> Callable[[Run], object]:
    def tell(run: Run) -> None:
        files = [*run.publish_locals(1, 2), run.local(3, **changes)]
        run.publish_local(3, files[2])
        good = run.average(files)
        inputs = tuple(replace(item, node_id=number) for number, item in enumerate(good.global_meta.inputs, 1))
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
    """Two of three local files are bad, and the plan requires two: the weights should stay as they are."""
    files, refused = run.publish_locals(1), publishes_bad(run, 2, 3)
    good = run.average(files, refused=refused)
    inputs = (replace(good.global_meta.inputs[0], share=1.0),)
    run.publish_global(rewritten(run, good, files[0].tensors(), inputs=inputs))


def publishes_bad(run: Run, *node_ids: int) -> tuple[Rejection, ...]:
    """Learners publish files of another round, which deserve their rejection."""
    return tuple(Rejection(n, run.publish_local(n, run.local(n, round=7)), "smells") for n in node_ids)


def puts_missing_learners_out_of_order(run: Run) -> None:
    files = run.publish_locals(1)
    run.time_out()
    run.publish_global(rewritten(run, run.average(files, absent=[2, 3]), absent=(3, 2)))


def takes_nobody(run: Run) -> None:
    good = run.average([], refused=publishes_bad(run, 1, 2, 3))
    run.publish_global(rewritten(run, good, random_tensors(good.tensors())))


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


def publishes_a_hash_alone(run: Run) -> None:
    run.publish_locals()
    run.publish_global(NOWHERE)


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
        changed_inputs(lambda i: [replace(item, share=1 / 3) for item in i]),
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
        played=frozenset({2, 3}),
    ),
    # Who takes part
    "dropped": Lie(drops_learner_3, {(2, "learner 3", "inputs")}, "published local weights, but is left out", SOME),
    "not mentioned": Lie(
        does_not_mention_learner_3, {(2, "learner 3", "inputs")}, "is registered, but is left out", PATIENT, FALSE_3
    ),
    "named as missing": Lie(
        calls_learner_3_missing, {(2, "learner 3", "absent")}, "is listed as missing, but had published", SOME
    ),
    "rejected under a pretext": Lie(
        refuses_learner_3("tensor dense/bias has values that are not finite"),
        {(1, "learner 3", "refused")},
        "is valid, but was rejected: tensor dense/bias has values that are not finite",
        SOME,
    ),
    "rejected for publications that are not there": Lie(
        refuses_learner_3("more than 8 publications in one round"),
        {(1, "learner 3", "refused")},
        "is valid, but was rejected: more than 8 publications in one round",
        SOME,
    ),
    "rejected without being published": Lie(
        rejects_what_was_not_published, {(1, "learner 3", "refused")}, f"in this round, not {NOWHERE}", SOME
    ),
    "rejected after it was replaced": Lie(
        rejects_what_was_replaced, {(1, "learner 3", "refused")}, "in this round, not Qm", SOME, FALSE_3
    ),
    "taken after it was replaced": Lie(
        takes_what_was_replaced, {(1, "learner 3", "cid")}, "in this round, not Qm", played=FALSE_3
    ),
    "a stranger": Lie(
        adds_a_stranger, {(2, "learner 4", "inputs"), (1, "learner 4", "cid")}, "takes part without registration"
    ),
    "a missing stranger": Lie(
        calls_a_stranger_missing,
        {(2, "learner 4", "inputs")},
        "takes part without registration",
    ),
    "what was never published": Lie(
        adds_what_was_not_published, {(1, "learner 3", "cid")}, "published nothing in this round", PATIENT, FALSE_3
    ),
    "huge weights": Lie(
        takes_huge_weights, {(1, "learner 3", "bounds")}, "has a value of size 3e+38", played=FALSE_3
    ),
    "what came too late": Lie(
        takes_what_came_too_late, {(1, "learner 3", "cid")}, "published nothing in this round", PATIENT, FALSE_3
    ),
    "named twice": Lie(counts_learner_1_twice, {(2, "learner 1", "inputs")}, "is listed more than once"),
    "accepted and missing": Lie(
        accepts_learner_3_and_calls_it_missing,
        {(2, "learner 3", "inputs"), (2, "learner 3", "absent")},
        "is listed more than once",
        SOME,
    ),
    "too few": Lie(
        takes_one_of_three,
        {(2, "learner 1", "share"), *ALL_TENSORS},
        "is 1.0, should be 0.0",
        SOME,
        frozenset({2, 3}),
    ),
    "nobody": Lie(takes_nobody, ALL_TENSORS, played=frozenset({1, 2, 3})),
    # Local files that should have been rejected
    "yesterday's file": Lie(
        takes_yesterdays_file,
        {(1, "learner 3", "round"), (1, "learner 3", "parent")},
        "is 0, should be 1",
        played=FALSE_3,
    ),
    "yesterday's publication": Lie(
        takes_an_old_publication, {(1, "learner 3", "cid")}, "published nothing in this round", PATIENT, FALSE_3
    ),
    "a local file of another plan": Lie(
        takes_a_local_file_with(plan=NOWHERE), {(1, "learner 3", "plan")}, played=FALSE_3
    ),
    "a local file from other weights": Lie(
        takes_a_local_file_with(parent=NOWHERE), {(1, "learner 3", "parent")}, played=FALSE_3
    ),
    "a local file with more samples": Lie(
        takes_a_local_file_with(samples=10**9), {(1, "learner 3", "samples")}, played=FALSE_3
    ),
    "another learner's file": Lie(
        takes_another_learners_file,
        {(1, "learner 3", "node_id"), (1, "learner 3", "samples"), (2, "header", "inputs")},
        played=FALSE_3,
    ),
    # Files that are not what they should be
    "a missing local file": Lie(removes(local_of_learner_2), {(1, "learner 2", "file")}, "is not in the store"),
    "a missing global file": Lie(removes(current_global), {(2, "header", "file")}, "is not in the store"),
    "missing initial weights": Lie(removes(initial_global), {(0, "header", "file")}, "is not in the store"),
    "a swapped local file": Lie(
        swaps(local_of_learner_2), {(1, "learner 2", "file")}, "returned a file with the CID"
    ),
    "a swapped global file": Lie(swaps(current_global), {(2, "header", "file")}, "the store returned"),
    "swapped initial weights": Lie(swaps(initial_global), {(0, "header", "file")}, "the store returned"),
    "a hash without a file": Lie(publishes_a_hash_alone, {(2, "header", "file")}, "is not in the store"),
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
