"""Seeds and shuffles are pinned: another stream would make every old run impossible to check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.seeds import derive, permutation

SEEDS = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize(
    ("seed", "purpose", "derived"),
    [
        (1, ("initial",), 2470890806455136165),
        (1, (1, 0), 9174091924518382202),
        (1, ("partition",), 6993370139408732849),
        (1, ("choose",), 553674790915648939),
        (2**63 - 1, ("x",), 9174296132895599929),
    ],
)
def test_a_seed_for_a_purpose_is_the_same_for_ever(seed: int, purpose: tuple[str | int, ...], derived: int) -> None:
    assert derive(seed, *purpose) == derived


@pytest.mark.parametrize(
    ("seed", "order"), [(1, [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]), (2**63 - 1, [8, 1, 6, 9, 3, 2, 7, 4, 0, 5])]
)
def test_a_permutation_is_the_same_for_ever(seed: int, order: list[int]) -> None:
    assert permutation(10, seed).tolist() == order


@given(seed=SEEDS, node_id=st.integers(1, 1000), round_=st.integers(0, 10**6))
def test_a_derived_seed_can_be_derived_from_again(seed: int, node_id: int, round_: int) -> None:
    derived = derive(seed, node_id, round_)
    assert 0 <= derived < 2**63
    assert derive(derived, "dropout", "layer") < 2**63


def test_every_purpose_node_and_round_has_a_seed_of_its_own() -> None:
    derived = [derive(seed, n, r) for seed in (1, 2, 11) for n in range(1, 30) for r in range(30)]
    derived += [derive(seed, name) for seed in (1, 2, 11) for name in ("initial", "choose", "partition", "baseline")]
    assert len(set(derived)) == len(derived)


@given(count=st.integers(0, 300), seed=SEEDS)
def test_a_permutation_has_each_number_once(count: int, seed: int) -> None:
    order = permutation(count, seed)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, permutation(count, seed))
