"""Sums of updates as integers of a ring: exact in any order, near the average in float64, never out of the ring."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_node.aggregation import FedAvg
from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.fixed_point import FixedPoint, Words, reduced

POINT = FixedPoint(1.0, 20, 32)
COUNTS = st.lists(st.integers(1, 100), min_size=1, max_size=6)


def updates(seed: int, count: int, size: int = 50) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(0, 0.4, size) for _ in range(count)]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), counts=COUNTS, bits=st.sampled_from([32, 64]))
def test_any_tree_of_partial_sums_gives_the_same_bits(seed: int, counts: Sequence[int], bits: int) -> None:
    point = FixedPoint(1.0, 20, bits)
    parts: list[Words] = [point.words(u, c) for u, c in zip(updates(seed, len(counts)), counts, strict=True)]
    expected = functools.reduce(np.add, parts)
    shuffled = np.random.default_rng(seed)
    while len(parts) > 1:
        first, second = shuffled.choice(len(parts), 2, replace=False)
        total = parts[first] + parts[second]
        parts = [part for place, part in enumerate(parts) if place not in (first, second)] + [total]
    assert parts[0].tobytes() == expected.tobytes()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), counts=COUNTS)
def test_the_average_is_that_in_float64_but_for_the_rounding(seed: int, counts: Sequence[int]) -> None:
    generator = np.random.default_rng(seed)
    start = generator.normal(size=50).astype(np.float32)
    local = [(start + generator.uniform(-0.9, 0.9, 50)).astype(np.float32) for _ in counts]
    rule = FedAvg(arithmetic="fixed")
    aggregated = rule.aggregate([{"w": tensor} for tensor in local], counts, {"w": start}).tensor("w")
    # Half a step, and float32's own rounding.
    assert np.abs(aggregated - fedavg(local, counts)).max() <= 2**-21 + 2**-23


@settings(deadline=None)
@given(counts=COUNTS, bits=st.integers(1, 31), ring=st.sampled_from([32, 64]), size=st.floats(0.01, 100))
def test_a_sum_that_fits_comes_back_and_one_that_does_not_is_refused(
    counts: list[int], bits: int, ring: int, size: float
) -> None:
    point = FixedPoint(size, bits, ring)
    exact = point.largest * sum(reduced(counts))
    assert point.fits(counts) == (exact < 2 ** min(ring - 1, 53))
    if point.fits(counts):
        for sign in (1.0, -1.0):
            words = [point.words(np.array([sign * size * 3]), count) for count in reduced(counts)]
            assert point.integers(functools.reduce(np.add, words)).tolist() == [sign * exact]


def test_values_beyond_the_range_are_clipped_and_ties_go_to_even() -> None:
    point = FixedPoint(2.0, 1, 32)
    values = np.array([9.0, -9.0, 0.25, 0.75, -0.25])
    assert point.integers(point.words(values, 1)).tolist() == [4, -4, 0, 2, 0]


def test_counts_are_divided_by_their_common_divisor() -> None:
    assert reduced([600, 600, 300]) == [2, 2, 1]


@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_the_sum_keeps_the_shape(shape: tuple[int, ...]) -> None:
    start = np.ones(shape, np.float32)
    unchanged = FedAvg(arithmetic="fixed").aggregate([{"w": start}, {"w": start}], [1, 2], {"w": start}).tensor("w")
    assert (unchanged.shape, unchanged.dtype, unchanged.tobytes()) == (shape, np.float32, start.tobytes())
