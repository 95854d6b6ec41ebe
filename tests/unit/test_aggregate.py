"""FedAvg, and the global file that a rule makes of local files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_node.aggregation import RULES
from fl_node.aggregation.fedavg import fedavg
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import Input, LocalMeta, Rejection, WeightsFile
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_file, is_enough, needs_parent

Tensor = npt.NDArray[np.float32]
PLAN = cid.of_bytes(b"plan")
PARENT = cid.of_bytes(b"parent")
VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False)
COUNTS = st.integers(1, 100_000)


@st.composite
def learners(draw: st.DrawFn) -> tuple[list[Tensor], list[int]]:
    """The same tensor of one to five learners, and their counts."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=5))
    count = draw(st.integers(1, 5))
    tensors = [draw(hnp.arrays(np.float32, shape, elements=VALUES)) for _ in range(count)]
    return tensors, [draw(COUNTS) for _ in range(count)]


def plan(weighting: str = "samples") -> Plan:
    content = {"name": "test", "learners": 9, "min_learners": 1, "aggregation": {"weighting": weighting}}
    return Plan.model_validate(content)


def local(folder: Path, node_id: int, tensors: dict[str, Tensor], samples: int) -> WeightsFile:
    meta = LocalMeta(PLAN, node_id, 0, PARENT, samples, 0.5, 1.0)
    return model_file.write(folder / f"local-{node_id}.safetensors", meta, tensors)


def aggregate(path: Path, inputs: Sequence[WeightsFile], weighting: str = "samples", **more: Any) -> WeightsFile:
    return global_file(path, plan(weighting), PLAN, round_=1, parent=PARENT, inputs=inputs, **more)


@given(given_=learners())
def test_fedavg_is_the_average_in_float64_rounded_once(given_: tuple[list[Tensor], list[int]]) -> None:
    tensors, counts = given_
    reference = np.zeros(tensors[0].shape, np.float64)
    for tensor, count in zip(tensors, counts, strict=True):
        reference = reference + tensor.astype(np.float64) * count
    expected = (reference / sum(counts)).astype(np.float32)
    result = fedavg(iter(tensors), counts)
    assert result.dtype == np.float32
    assert result.shape == tensors[0].shape
    assert np.array_equal(result, expected)


@given(given_=learners())
def test_an_average_lies_between_the_least_and_the_greatest_and_is_finite(
    given_: tuple[list[Tensor], list[int]],
) -> None:
    tensors, counts = given_
    result = fedavg(tensors, counts)
    assert np.isfinite(result).all()
    assert (result >= np.min(tensors, axis=0)).all()
    assert (result <= np.max(tensors, axis=0)).all()


@given(tensor=hnp.arrays(np.float32, (3, 2), elements=VALUES), count=COUNTS, times=st.sampled_from([1, 2, 4, 8]))
def test_learners_that_agree_are_not_changed_by_a_bit(tensor: Tensor, count: int, times: int) -> None:
    assert fedavg([tensor] * times, [count] * times).tobytes() == tensor.tobytes()


def test_fedavg_does_not_change_its_inputs() -> None:
    tensors = [np.full((2, 2), value, np.float32) for value in (1, 2, 3)]
    fedavg(tensors, [1, 2, 3])
    assert [float(tensor.max()) for tensor in tensors] == [1, 2, 3]


def test_fedavg_needs_a_tensor_and_a_count_for_each() -> None:
    with pytest.raises(ValueError, match="no tensors"):
        fedavg([], [])
    with pytest.raises(ValueError, match="zip"):
        fedavg([np.zeros(2, np.float32)] * 2, [1])


def test_a_rule_is_called_as_the_plan_calls_it() -> None:
    assert plan().aggregation.rule == "fedavg"
    assert all(rule.model_fields["rule"].default == name for name, rule in RULES.items())
    assert len(RULES) == 10


@settings(max_examples=25)
@given(data=st.data(), count=st.integers(1, 4))
def test_the_order_of_the_inputs_does_not_change_a_byte(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    kernels = hnp.arrays(np.float32, (2, 3), elements=VALUES)
    files = [local(folder, n, {"kernel": data.draw(kernels)}, data.draw(COUNTS)) for n in range(1, count + 1)]
    refused = [Rejection(n, PARENT, "missing") for n in (7, 6)]
    first = aggregate(folder / "one", files, refused=refused, absent=[9, 8])
    second = aggregate(
        folder / "other", data.draw(st.permutations(files)), refused=tuple(reversed(refused)), absent=(8, 9)
    )
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.cid == second.cid


def test_a_global_file_says_what_it_was_made_of_in_the_order_of_node_id(tmp_path: Path) -> None:
    files = [local(tmp_path, n, {"a": np.array([n], np.float32)}, samples) for n, samples in ((10, 300), (2, 100))]
    file = aggregate(tmp_path / "global", files, refused=[Rejection(3, PARENT, "missing")], absent=[4])
    meta = model_file.read(file.path, {"a": (1,)}).global_meta
    assert (meta.plan, meta.round, meta.parent, meta.rule) == (PLAN, 1, PARENT, "fedavg")
    assert meta.inputs == (Input(2, files[1].cid, 100, 0.25), Input(10, files[0].cid, 300, 0.75))
    assert meta.refused == (Rejection(3, PARENT, "missing"),)
    assert meta.absent == (4,)
    assert file.tensor("a").tolist() == [8.0]


def test_uniform_weighting_counts_each_learner_once(tmp_path: Path) -> None:
    files = [local(tmp_path, n, {"a": np.array([n], np.float32)}, samples) for n, samples in ((1, 300), (3, 100))]
    file = aggregate(tmp_path / "global", files, "uniform")
    assert file.tensor("a").tolist() == [2.0]
    assert [(item.samples, item.share) for item in file.global_meta.inputs] == [(300, 0.5), (100, 0.5)]


@given(samples=st.lists(COUNTS, min_size=1, max_size=6))
@settings(max_examples=25)
def test_shares_add_up_to_one(tmp_path_factory: pytest.TempPathFactory, samples: list[int]) -> None:
    folder = tmp_path_factory.mktemp("shares")
    files = [local(folder, n, {"a": np.ones(1, np.float32)}, count) for n, count in enumerate(samples, 1)]
    for weighting in ("samples", "uniform"):
        inputs = aggregate(folder / "global", files, weighting).global_meta.inputs
        assert sum(item.share for item in inputs) == pytest.approx(1, abs=1e-12)


def test_one_learner_alone_makes_the_global_weights(tmp_path: Path) -> None:
    tensors = {
        "kernel": np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32),
        "bias": np.ones(4, np.float32),
    }
    file = local(tmp_path, 1, tensors, 12_345)
    averaged = aggregate(tmp_path / "global", [file])
    assert {name: tensor.tobytes() for name, tensor in averaged.tensors().items()} == {
        name: tensor.tobytes() for name, tensor in tensors.items()
    }
    assert averaged.global_meta.inputs[0].share == 1.0


def test_with_fewer_files_than_the_plan_requires_the_weights_stay_as_they_are(tmp_path: Path) -> None:
    few = plan().model_copy(update={"min_learners": 2})
    meta = model_file.GlobalMeta(PLAN, 0, None, "initial")
    parent = model_file.write(tmp_path / "parent", meta, {"a": np.array([5], np.float32)})
    file = local(tmp_path, 1, {"a": np.array([1], np.float32)}, 100)

    def build(parent_file: WeightsFile | None) -> WeightsFile:
        given: dict[str, Any] = {"round_": 1, "parent": PARENT, "inputs": [file], "absent": range(2, 10)}
        return global_file(tmp_path / "global", few, PLAN, parent_file=parent_file, **given)

    assert [is_enough(few, count) for count in (0, 1, 2, 9)] == [False, False, True, True]
    assert [needs_parent(few, count) for count in (0, 1, 2, 9)] == [True, True, False, False]
    with pytest.raises(ValueError, match="parent_file is required"):
        build(None)
    kept = build(parent)
    assert kept.tensor("a").tolist() == [5.0]
    assert kept.global_meta.inputs == (Input(1, file.cid, 100, 0.0),)
    assert kept.global_meta.parent == PARENT


def test_a_sum_that_float32_would_lose_is_kept(tmp_path: Path) -> None:
    values = [2.0**24, 1.0, 1.0, -(2.0**24)]
    tensors = [np.array([value], np.float32) for value in values]
    assert fedavg(tensors, [1, 1, 1, 1]).tolist() == [0.5]
