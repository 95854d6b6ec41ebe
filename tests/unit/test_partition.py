"""The learners' shards: disjoint, of equal size, and the same for the same seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_node.data.partition import held_out, label_counts, shard, shard_size
from fl_node.errors import DataError
from fl_node.partitions.equal import equal
from fl_node.plan.data_sets import DATA_SIZES
from fl_node.plan.schema import DataPlan, Plan


def plan(**settings: object) -> Plan:
    return Plan.model_validate({"name": "test", "data": {"name": "digits"}, **settings})


@given(count=st.integers(1, 500), learners=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_equal_parts_hold_every_image_once_and_differ_by_at_most_one(count: int, learners: int, seed: int) -> None:
    parts = equal(count, learners, seed)
    assert len(parts) == learners
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40)
@given(learners=st.integers(1, 12), train=st.integers(12, 1437), seed=st.integers(0, 2**63 - 1))
def test_the_shards_of_a_plan_do_not_overlap_and_hold_as_many_images_as_it_says(
    learners: int, train: int, seed: int
) -> None:
    given_plan = plan(learners=learners, seed=seed, data={"name": "digits", "train": train})
    shards = [shard(given_plan, n) for n in range(1, learners + 1)]
    together = np.concatenate(shards).tolist()
    assert len(together) == len(set(together)) == train
    assert set(together) <= set(range(DATA_SIZES["digits"][0]))
    for number, indices in enumerate(shards, 1):
        assert np.array_equal(indices, np.sort(indices))
        assert len(indices) == shard_size(given_plan, number)
        assert np.array_equal(indices, shard(given_plan, number))


def test_the_shards_of_a_seed_are_the_same_for_ever() -> None:
    def digest(given_plan: Plan, node_id: int) -> str:
        return hashlib.sha256(shard(given_plan, node_id).astype("<i8").tobytes()).hexdigest()[:16]

    digits = plan(seed=1, learners=3)
    assert shard(digits, 1)[:6].tolist() == [2, 11, 14, 15, 16, 22]
    assert [digest(digits, n) for n in (1, 2, 3)] == ["826532f837172643", "d84ea7e85c274037", "699dac68cf9a4609"]
    mnist = plan(seed=1, learners=2, data={"name": "mnist"})
    assert [digest(mnist, n) for n in (1, 2)] == ["3bf16c530dec67a8", "04acb470ebecd653"]


def test_another_seed_gives_other_shards() -> None:
    assert not np.array_equal(shard(plan(seed=1), 1), shard(plan(seed=2), 1))


def test_a_training_setting_does_not_move_an_image() -> None:
    changed = plan(training={"epochs": 1, "learning_rate": 0.1}, rounds=9)
    assert np.array_equal(shard(plan(), 2), shard(changed, 2))


def test_a_plan_for_fewer_images_draws_them_from_all() -> None:
    few = plan(learners=1, data=DataPlan(name="digits", train=100).model_dump())
    assert shard(few, 1).max() > 1000


@pytest.mark.parametrize("node_id", [0, 3, -1])
def test_there_is_no_shard_for_a_node_that_the_plan_does_not_know(node_id: int) -> None:
    with pytest.raises(DataError, match=f"learner {node_id} has no shard; .* learners 1 to 2"):
        shard(plan(), node_id)


# Unequal parts

PARTITIONS = [
    {"partition": "dirichlet", "alpha": 0.5},
    {"partition": "labels", "labels_each": 2},
    {"partition": "quantity", "alpha": 0.5},
]
LABELS = np.arange(1437) % 10


@pytest.mark.parametrize("data", PARTITIONS, ids=lambda data: str(data["partition"]))
@settings(max_examples=15)
@given(learners=st.integers(1, 12), train=st.integers(120, 1437), seed=st.integers(0, 2**63 - 1))
def test_unequal_shards_do_not_overlap_and_have_the_sizes_that_the_plan_alone_gives(
    data: dict[str, object], learners: int, train: int, seed: int
) -> None:
    given_plan = plan(learners=learners, seed=seed, data={"name": "digits", "train": train, **data})
    shards = [shard(given_plan, n, lambda: LABELS) for n in range(1, learners + 1)]
    together = np.concatenate(shards).tolist()
    assert len(together) == len(set(together)) == train
    for number, indices in enumerate(shards, 1):
        assert len(indices) == shard_size(given_plan, number) > 0


def counts(learners: int, **data: object) -> list[list[int]]:
    given_plan = plan(learners=learners, data={"name": "digits", **data})
    return [
        np.bincount(LABELS[shard(given_plan, n, lambda: LABELS)], minlength=10).tolist()
        for n in range(1, learners + 1)
    ]


def test_with_two_parts_a_learner_has_two_labels_or_what_lies_across_their_borders() -> None:
    assert all(sum(count > 0 for count in row) <= 4 for row in counts(10, partition="labels"))
    assert all(sum(count > 0 for count in row) <= 2 for row in counts(10, partition="labels", labels_each=1))


def test_the_smaller_alpha_the_less_even_are_labels_and_sizes() -> None:
    def unevenness(alpha: float, partition: str) -> float:
        return float(np.std(counts(10, partition=partition, alpha=alpha)))

    for partition in ("dirichlet", "quantity"):
        uneven = [unevenness(alpha, partition) for alpha in (0.05, 0.5, 5.0, 1000.0)]
        assert uneven == sorted(uneven, reverse=True)


def test_labels_drawn_from_a_dirichlet_distribution_have_its_variance() -> None:
    # The share of one of k labels has the variance (1/k)(1 - 1/k) / (k alpha + 1).
    wide = plan(learners=200, data={"name": "mnist", "partition": "dirichlet", "alpha": 1.0, "train": 20000})
    labels = np.arange(60_000) % 10
    counts = label_counts(wide, labels)
    shares = [counts[n][0] / 100 for n in range(1, 101)]
    assert np.var(shares) == pytest.approx(0.1 * 0.9 / 11 + 0.1 * 0.9 / 100, rel=0.5)


def test_shards_by_label_need_labels() -> None:
    with pytest.raises(DataError, match=r"data\.partition = dirichlet needs the labels"):
        shard(plan(data={"name": "digits", "partition": "dirichlet"}), 1)


def test_held_out_images_are_nobodys() -> None:
    given_plan = plan(data={"name": "digits", "validation": 100})
    assert given_plan.data.train == 1337
    shards = [shard(given_plan, n).tolist() for n in (1, 2)]
    held = held_out(given_plan).tolist()
    assert len(held) == 100
    assert sorted([*shards[0], *shards[1], *held]) == list(range(1437))
    assert len(held_out(plan())) == 0
