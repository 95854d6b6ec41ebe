"""Whole runs with compressed updates: audited bit for bit, in any mode, after a kill, and with liars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import WeightsFile
from fl_node.errors import WeightsError
from fl_node.lab.hand import Hand
from fl_node.plan.schema import Plan
from fl_node.protocol.compressed import Compressed, compress, decoded
from fl_node.protocol.names import learner_name
from fl_node.seeds import derive
from tests.helpers.runs import Event, Run, World, plan
from tests.helpers.stub import noise

KINDS: list[dict[str, Any]] = [{"kind": "float16"}, {"kind": "int8"}, {"kind": "topk", "fraction": 0.1}]
MODES: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "krum": {"learners": 5, "aggregation": {"rule": "krum", "num_malicious": 1}},
    "fixed-point sum": {"aggregation": {"arithmetic": "fixed"}},
    "asynchronous": {"mode": "async", "aggregation": {"rule": "fedbuff", "buffer": 2}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as running:
        yield running


def deployed(world: World, compression: dict[str, Any], **more: Any) -> Run:
    return world.deploy(Plan.model_validate(plan().model_dump() | {"compression": compression} | more))


def play(run: Run) -> None:
    with contextlib.ExitStack() as stack:
        header = stack.enter_context(run.header())
        for node_id in range(1, run.plan.learners + 1):
            stack.enter_context(run.learner(node_id))
        header.wait_for(events.RunFinished)


def local_file(run: Run, round_: int, node_id: int) -> WeightsFile:
    """Return what a learner published in a round, as it is in the store."""
    published = run.contract.local_weights(round_, run.contract.learners())
    return run.read(published[node_id])


def compressed_local(run: Run, node_id: int, residual: model_file.Tensors) -> WeightsFile:
    """Write what a learner should publish now."""
    plain, compression = run.local(node_id), run.plan.compression
    assert compression is not None
    result = compress(compression, plain.tensors(), run.current().on_demand(), residual)
    return run.local(node_id, result.tensors, compression=compression.kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one["kind"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_anybody_can_recompute_a_run_with_compressed_updates(
    world: World, kind: dict[str, Any], mode: dict[str, Any]
) -> None:
    run = deployed(world, kind, **mode)
    play(run)
    result = run.audit()
    assert (result.findings, result.rounds) == ([], 2)
    assert local_file(run, 0, 1).local_meta.compression == kind["kind"]
    collected = run.collect()
    assert not any(
        entry.problem for past_round in collected.rounds for entry in (*past_round.local.values(), past_round.result)
    )


def expected(run: Run, file: WeightsFile, residual: model_file.Tensors) -> Compressed:
    """Return what learner 1 should make of the global weights that this file of it was trained from."""
    start, compression = run.read(file.local_meta.parent), run.plan.compression
    assert compression is not None
    step = noise(run.trainer.shapes(), derive(run.plan.seed, 1, file.local_meta.round))
    trained = {name: start.tensor(name) + step[name] for name in step}
    return compress(compression, trained, start.on_demand(), residual)


def bits(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def test_the_second_update_has_what_the_first_left_out(world: World) -> None:
    run = deployed(world, {"kind": "int8"})
    play(run)
    residual: model_file.Tensors = {}
    for round_ in (0, 1):
        file = local_file(run, round_, 1)
        result = expected(run, file, residual)
        assert bits(file.tensors()) == bits(result.tensors)
        residual = result.residual


def test_an_update_of_weights_that_replace_withdrawn_ones_has_what_the_last_left_out_before_a_gap(
    world: World,
) -> None:
    run = deployed(
        world, {"kind": "topk"}, learners=3, min_learners=2, round_timeout=1.0, rounds=5, verification="none"
    )

    def is_published(event: Event) -> bool:
        return event.name == events.LocalWeightsPublished.name

    def published_by_first(round_: int) -> WeightsFile:
        with run.learner(1, until=is_published) as first:
            first.finish()
        return local_file(run, round_, 1)

    def publish_others() -> list[WeightsFile]:
        files = [compressed_local(run, node_id, {}) for node_id in (2, 3)]
        for node_id, file in enumerate(files, 2):
            run.publish_local(node_id, file)
        return [decoded(file, run.current(), run.plan) for file in files]

    file = published_by_first(0)
    left_out = expected(run, file, {}).residual
    run.publish_global(run.average([decoded(file, run.current(), run.plan), *publish_others()]))
    # The first learner is away for a round.
    inputs = publish_others()
    run.time_out()
    right = run.average(inputs, absent=[1])
    run.publish_global(run.average(inputs, absent=[1], tensors=lambda given: {n: t * 2 for n, t in given.items()}))
    false = published_by_first(2)
    for node_id in (2, 3):
        run.reject(node_id, 2, "tensor")
    run.publish_global(right, learner_name(1))
    again = published_by_first(2)
    for file in (false, again):
        assert bits(file.tensors()) == bits(expected(run, file, left_out).tensors)
    assert again.local_meta.parent == right.cid


@pytest.mark.parametrize("lost", ["", "local-1.safetensors"])
def test_a_learner_that_is_started_again_publishes_the_same_bits(world: World, lost: str) -> None:
    undisturbed, run = deployed(world, {"kind": "topk"}), deployed(world, {"kind": "topk"})
    play(undisturbed)

    def is_written(event: Event) -> bool:
        return event.name == events.LocalWeightsWritten.name and event.fields["round"] == 1

    with run.header(), run.learner(2):
        with run.learner(1, until=is_written) as first:
            first.finish()
        if lost:
            (run.folder / "learner-1" / "role" / lost).unlink()
        with run.learner(1) as again:
            again.wait_for(events.RunFinished)
    mine, right = local_file(run, 1, 1), local_file(undisturbed, 1, 1)
    for name in right.shapes:
        assert mine.tensor(name).tobytes() == right.tensor(name).tobytes()


@pytest.mark.parametrize("content", [b"", b"no safetensors file"])
def test_a_learner_goes_on_without_a_residual_that_is_damaged(world: World, content: bytes) -> None:
    run = deployed(world, {"kind": "int8"})
    path = run.folder / "learner-1" / "role" / "residual-0.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with run.header() as header, run.learner(2), run.learner(1) as learner:
        learner.wait_for(events.ResidualDiscarded, round=0)
        header.wait_for(events.RunFinished)
    assert run.audit().findings == []


def test_an_update_that_is_none_is_rejected_by_header_and_audit(world: World) -> None:
    run = deployed(world, {"kind": "topk", "fraction": 0.5}, learners=3, min_learners=2)
    good = compressed_local(run, 3, {})
    tensors = good.tensors()
    indices = max((n for n in tensors if n.startswith("compression/indices/")), key=lambda n: tensors[n].size)
    bad = run.local(3, tensors | {indices: np.zeros_like(tensors[indices])}, compression="topk")
    plain = {node_id: compressed_local(run, node_id, {}) for node_id in (1, 2)}
    for node_id, file in {**plain, 3: bad}.items():
        run.publish_local(node_id, file)
    with run.header() as header:
        rejected = header.wait_for(events.UpdateRejected, learner=3)
        header.wait_for(events.GlobalWeightsPublished, round=1)
    assert rejected.fields["reason"] == "malformed"
    assert run.audit().findings == []


def test_a_header_that_sums_something_else_is_found(world: World) -> None:
    run = deployed(world, {"kind": "int8"})
    files = [compressed_local(run, node_id, {}) for node_id in (1, 2)]
    for node_id, file in enumerate(files, 1):
        run.publish_local(node_id, file)
    inputs = [decoded(file, run.current(), run.plan) for file in files]
    lie = run.average(inputs, tensors=lambda given: {n: t + np.float32(1e-3) for n, t in given.items()})
    run.publish_global(lie)
    assert {finding.field.split()[0] for finding in run.audit().findings} == {"tensor"}


def test_uncompressed_weights_are_rejected(world: World) -> None:
    run = deployed(world, {"kind": "int8"}, learners=3, min_learners=2)
    for node_id in (1, 2):
        run.publish_local(node_id, compressed_local(run, node_id, {}))
    run.publish_local(3, run.local(3))
    with run.header() as header:
        assert header.wait_for(events.UpdateRejected, learner=3).fields["reason"] == "metadata.compression"
        header.wait_for(events.GlobalWeightsPublished, round=1)
    assert run.audit().findings == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one["kind"])
def test_what_a_scenario_publishes_is_compressed_too(world: World, kind: dict[str, Any]) -> None:
    run = deployed(world, kind)
    shapes, compression = run.trainer.shapes(), run.plan.compression
    hand = Hand(run.as_node(learner_name(2)), run.store, run.folder, run.plan, shapes, "")

    def checked(tensors: Callable[[str], model_file.Tensor]) -> WeightsFile:
        file = model_file.read(hand.local(2, tensors).path, shapes, compressed=compression)
        return decoded(file, run.current(), run.plan)

    same = checked(run.current().tensor)
    assert bits(same.tensors()) == bits(run.current().tensors())
    with pytest.raises(WeightsError) as refused:
        checked(lambda name: np.full(shapes[name], np.nan, np.float32))
    assert refused.value.code == "not_finite"
