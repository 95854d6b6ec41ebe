"""The aggregation rules beside FedAvg: what they make of known inputs, and what no liar can do to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_node.aggregation import RULES, Rule
from fl_node.aggregation.krum import scores
from fl_node.aggregation.median import median
from fl_node.aggregation.rule import Aggregate, in_order
from fl_node.aggregation.trimmed_mean import trimmed_mean
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_file, global_shapes, initial_file, local_shapes

Tensor = npt.NDArray[np.float32]
VALUES = st.floats(-(2.0**60), 2.0**60, width=32)
PARAMETERS: dict[str, dict[str, Any]] = {
    "trimmed_mean": {"num_malicious": 1},
    "krum": {"num_malicious": 1},
    "multi_krum": {"num_malicious": 1},
    "norm_clipping": {"clipping_norm": 1.0},
}


SYNCHRONOUS = [name for name, rule in RULES.items() if not rule.asynchronous]


def settings(rule: str, **more: Any) -> Rule:
    return RULES[rule].model_validate({"rule": rule, **PARAMETERS.get(rule, {}), **more})


def models(*values: Sequence[float]) -> list[dict[str, Tensor]]:
    """Models of two tensors: the first value, and the others."""
    return [{"a": np.float32(row[:1]), "b": np.float32(row[1:])} for row in values]


def flat(result: Aggregate) -> list[float]:
    return [*result.tensor("a").tolist(), *result.tensor("b").tolist()]


def parent(rule: str, values: Sequence[float] = (0, 0, 0)) -> dict[str, Tensor]:
    (model,) = models(values)
    return model | {f"{kind}/{name}": np.zeros_like(model[name]) for kind in RULES[rule].state for name in model}


def apply(rule: str, inputs: Sequence[Mapping[str, Tensor]], counts: Sequence[int] = (), **more: Any) -> Aggregate:
    return settings(rule, **more).aggregate(inputs, counts or [1] * len(inputs), parent(rule))


# Coordinate-wise rules


@pytest.mark.parametrize(("values", "expected"), [([3, 1, 2], 2), ([4, 1, 2, 3], 2.5), ([7], 7)])
def test_the_median_is_the_value_in_the_middle_or_the_mean_of_two(values: list[float], expected: float) -> None:
    assert median([np.float32([value]) for value in values]).tolist() == [expected]


def test_the_median_of_large_values_does_not_overflow() -> None:
    large = np.float32([3e38])
    assert median([large, large]).tolist() == large.tolist()


@given(
    honest=st.lists(hnp.arrays(np.float32, 4, elements=VALUES), min_size=5, max_size=7),
    lie=hnp.arrays(np.float32, 4, elements=VALUES),
)
def test_two_liars_of_seven_do_not_leave_the_range_of_the_honest(honest: list[Tensor], lie: Tensor) -> None:
    for middle in (median([*honest, lie, lie]), trimmed_mean([*honest, lie, lie], 2)):
        assert middle.dtype == np.float32
        assert (middle >= np.min(honest, axis=0)).all()
        assert (middle <= np.max(honest, axis=0)).all()


def test_the_trimmed_mean_leaves_out_as_many_at_either_end() -> None:
    tensors = [np.float32([value]) for value in (100, 1, 2, 3, -100)]
    assert trimmed_mean(tensors, 1).tolist() == [2]
    assert trimmed_mean(tensors, 2).tolist() == [2]


# Krum


def test_krum_takes_one_of_those_that_lie_together() -> None:
    chosen = apply("krum", models((0, 0, 0), (1, 1, 1), (50, 0, 0), (1, 1, 2), (1, 2, 1)))
    assert chosen.shares == (0, 1, 0, 0, 0)
    assert flat(chosen) == [1, 1, 1]


def test_of_equal_scores_the_lowest_node_id_wins() -> None:
    chosen = apply("krum", models(*[(1, 1, 1)] * 5))
    assert chosen.shares == (1, 0, 0, 0, 0)


def test_multi_krum_averages_all_but_the_outliers_by_their_samples() -> None:
    inputs = models((0, 0, 0), (1, 1, 1), (500, 0, 0), (1, 1, 2), (1, 2, 1))
    chosen = apply("multi_krum", inputs, [1, 1, 1000, 1, 1])
    assert chosen.shares == (0.25, 0.25, 0, 0.25, 0.25)
    assert flat(chosen) == [0.75, 1, 1]


def test_krums_scores_are_sums_of_the_nearest_squared_distances() -> None:
    values = [(0, 0, 0), (1, 0, 0), (3, 0, 0), (6, 0, 0), (10, 0, 0)]
    assert scores(models(*values), 1) == [1 + 9, 1 + 4, 4 + 9, 9 + 16, 16 + 49]


# Norm clipping, FedAvgM and FedAdam


def test_a_long_update_is_shortened_and_a_short_one_is_not() -> None:
    clipped = apply("norm_clipping", models((3, 0, 4), (0.5, 0, 0)), clipping_norm=1.0)
    assert flat(clipped) == pytest.approx([(0.6 + 0.5) / 2, 0, 0.8 / 2])
    assert clipped.shares == (0.5, 0.5)


def test_norm_clipping_with_room_enough_is_fedavg() -> None:
    inputs = models((3, 0, 4), (1, 2, 8))
    assert flat(apply("norm_clipping", inputs, [1, 3], clipping_norm=1e6)) == flat(apply("fedavg", inputs, [1, 3]))


@given(lie=hnp.arrays(np.float32, 3, elements=VALUES))
def test_a_liar_moves_a_clipped_average_by_no_more_than_its_share_of_the_bound(lie: Tensor) -> None:
    clipped = apply("norm_clipping", [*models((0, 0, 0), (0, 0, 0)), *models(lie.tolist())], clipping_norm=1.5)
    assert math.hypot(*flat(clipped)) <= 1.5 / 3 * (1 + 1e-6)


def test_fedavgm_goes_on_in_the_direction_that_it_keeps() -> None:
    inputs, own = models((1, 2, 3), (3, 2, 1)), settings("fedavgm", momentum=0.5, server_learning_rate=2.0)
    state = parent("fedavgm", (1, 1, 1)) | {"momentum/a": np.float32([10]), "momentum/b": np.float32([0, 20])}
    stepped = own.aggregate(inputs, [1, 1], state)
    assert stepped.tensor("momentum/a").tolist() == [0.5 * 10 + 1]
    assert stepped.tensor("momentum/b").tolist() == [0 + 1, 0.5 * 20 + 1]
    assert flat(stepped) == [1 + 2 * 6, 1 + 2 * 1, 1 + 2 * 11]


def test_fedavgm_without_momentum_at_rate_one_is_fedavg() -> None:
    inputs = models((1, 2, 3), (3, 2, 1))
    assert flat(apply("fedavgm", inputs, momentum=0.0)) == flat(apply("fedavg", inputs))


def test_fedadam_follows_the_published_formulas() -> None:
    inputs = models((2, 4, 0), (2, 4, 0))
    own = settings("fedadam", server_learning_rate=0.1, momentum=0.9, beta_2=0.99, tau=0.001)
    stepped = own.aggregate(inputs, [1, 1], parent("fedadam"))
    assert stepped.tensor("momentum/a") == pytest.approx([0.1 * 2])
    assert stepped.tensor("second_momentum/b") == pytest.approx([0.01 * 16, 0])
    assert flat(stepped) == pytest.approx([0.1 * 0.2 / (0.2 + 0.001), 0.1 * 0.4 / (0.4 + 0.001), 0])


# What all have in common


@pytest.mark.parametrize("rule", SYNCHRONOUS)
def test_a_rule_changes_none_of_its_inputs_and_gives_the_same_bits_again(rule: str) -> None:
    generator = np.random.default_rng(1)
    inputs = [
        {"a": generator.standard_normal(3, np.float32), "b": generator.standard_normal((2, 2), np.float32)}
        for _ in range(5)
    ]
    start = {name: np.zeros_like(tensor) for name, tensor in inputs[0].items()}
    start |= {f"{kind}/{name}": tensor.copy() for kind in RULES[rule].state for name, tensor in start.items()}
    before = [{name: tensor.copy() for name, tensor in tensors.items()} for tensors in inputs]
    first, again = (settings(rule).aggregate(inputs, [1, 2, 3, 4, 5], start) for _ in range(2))
    for name in start:
        assert first.tensor(name).dtype == np.float32
        assert first.tensor(name).tobytes() == again.tensor(name).tobytes()
    assert all(
        (tensors[name] == kept[name]).all() for tensors, kept in zip(inputs, before, strict=True) for name in tensors
    )


@pytest.mark.parametrize("rule", SYNCHRONOUS)
def test_learners_that_agree_with_the_last_global_weights_change_nothing(rule: str) -> None:
    (model,) = models((0.1, -2, 3))
    start = model | {name: tensor for name, tensor in parent(rule).items() if "/" in name}
    unchanged = settings(rule).aggregate([model] * 5, [1] * 5, start)
    assert flat(unchanged) == [*model["a"].tolist(), *model["b"].tolist()]


@pytest.mark.parametrize("rule", SYNCHRONOUS)
def test_the_global_file_of_a_rule_has_the_tensors_that_it_should(rule: str, tmp_path: Path) -> None:
    plan = Plan.model_validate({"name": "t", "learners": 5, "aggregation": settings(rule).model_dump()})
    plan_cid, (model,) = cid.of_bytes(plan.to_bytes()), models((1, 2, 3))
    shapes = {name: tensor.shape for name, tensor in model.items()}
    initial = initial_file(tmp_path / "0", plan, plan_cid, model)
    assert initial.shapes == dict(sorted(global_shapes(plan, shapes).items()))
    assert local_shapes(plan, initial.shapes, 1) == shapes
    inputs = [
        model_file.write(tmp_path / f"{n}", LocalMeta(plan_cid, n, 0, initial.cid, 10, 0.5, 1.0), model)
        for n in range(1, 6)
    ]
    file = global_file(
        tmp_path / "1",
        plan,
        plan_cid,
        round_=1,
        parent=initial.cid,
        inputs=inputs,
        parent_file=initial if RULES[rule].needs_parent else None,
    )
    assert model_file.read(file.path, initial.shapes).global_meta.rule == rule
    assert sum(item.share for item in file.global_meta.inputs) == pytest.approx(1)


@pytest.mark.parametrize("rule", SYNCHRONOUS)
def test_weights_as_large_as_there_are_make_finite_weights(rule: str, tmp_path: Path) -> None:
    # Else one liar could have the header publish what nobody can read.
    largest = float(np.finfo(np.float32).max)
    inputs = models([largest] * 3, [-largest] * 3, [largest] * 3, [-largest] * 3, [0, 0, 0])
    start = parent(rule, [-largest] * 3)
    for _ in range(3):
        stepped = settings(rule).aggregate(inputs, [1] * 5, start)
        start = {name: stepped.tensor(name) for name in start}
        assert all(np.isfinite(tensor).all() for tensor in start.values())


def test_a_sum_is_taken_one_after_the_other() -> None:
    values = np.array([1e16, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1e16])
    assert in_order(values) == 0.0
    assert in_order(np.empty(0)) == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_gives_block_by_block_what_it_gives_at_once(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(2)

    def model() -> dict[str, Tensor]:
        # Whole numbers, whose sums are the same however a rule that measures distances adds them.
        shapes: dict[str, tuple[int, ...]] = {"a": (7, 5), "c": (), "e": (0, 2)}
        return {name: np.asarray(generator.integers(-9, 9, shape), np.float32) for name, shape in shapes.items()}

    count = 1 if rule == "fedasync" else 6
    tensors, start, plan = [model() for _ in range(count)], model(), cid.of_bytes(b"p")
    start |= {f"{kind}/{name}": np.abs(tensor) for kind in RULES[rule].state for name, tensor in start.items()}
    files = [
        model_file.write(tmp_path / str(n), LocalMeta(plan, n + 1, 0, plan, 1, 0.5, 1.0), content).on_demand()
        for n, content in enumerate(tensors)
    ]
    parent = model_file.write(tmp_path / "global", GlobalMeta(plan, 0, None, "initial"), start).on_demand()
    more = {"buffer": count} if rule == "fedbuff" else {}
    whole = settings(rule, **more).aggregate(tensors, range(1, count + 1), start)
    for module in ("aggregation.rule", "runtime.tensors"):
        monkeypatch.setattr(f"fl_node.{module}.BLOCK", 10)
    parts = settings(rule, **more).aggregate(files, range(1, count + 1), parent)
    assert parts.shares == whole.shares
    for name in start:
        blocks = [np.asarray(block) for block in parts.values(name)]
        assert [block.size for block in blocks] == {"a": [10, 10, 10, 5], "c": [1], "e": []}[name[-1]]
        assert b"".join(block.tobytes() for block in blocks) == np.asarray(whole.tensor(name)).tobytes()
