"""Shapley values: of known games, and of rounds from stored files."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.artifacts.model_file import Tensors
from fl_node.errors import ConfigError, WeightsError
from fl_node.report.contribution import MOST_LEARNERS, as_content, contributions, shapley, totals
from tests.helpers.runs import Run, World, plan

SETS = [frozenset(n for n in range(4) if mask >> n & 1) for mask in range(16)]


def test_the_glove_game_has_its_known_values() -> None:
    # Players 1 and 2 have a left glove each, player 3 a right one; a pair is worth 1.
    values = shapley([1, 2, 3], lambda members: int(3 in members and len(members) > 1))
    assert values == {1: Fraction(1, 6), 2: Fraction(1, 6), 3: Fraction(2, 3)}


@given(worth=st.lists(st.integers(-1000, 1000), min_size=16, max_size=16))
def test_values_add_up_to_what_all_reach_together(worth: list[int]) -> None:
    game = dict(zip(SETS, worth, strict=True))
    assert sum(shapley(range(4), game.__getitem__).values()) == game[SETS[-1]] - game[SETS[0]]


@given(worth=st.lists(st.integers(-1000, 1000), min_size=8, max_size=8))
def test_who_never_changes_anything_is_worth_nothing_and_twins_are_worth_the_same(worth: list[int]) -> None:
    small = dict(zip(SETS[:8], worth, strict=True))
    values = shapley(range(4), lambda members: small[members - {3}])
    assert values[3] == 0
    twins = shapley(range(2), lambda members: worth[len(members)])
    assert twins[0] == twins[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as world:
        yield world


def value(tensors: Tensors) -> int:
    return int(1000 * float(np.tanh(tensors["dense/bias"]).mean()))


def played(world: World) -> Run:
    run = world.deploy(plan(learners=3))
    run.close_round()
    run.close_round()
    return run


def test_the_values_of_a_run_add_up_to_its_gain_round_by_round(world: World, tmp_path: Path) -> None:
    run = played(world)
    before = value(run.read(str(run.contract.global_weight_at(0))).tensors())
    values = contributions(run.contract, run.store, tmp_path, run.plan, run.trainer.shapes(), value)
    assert [round_.round for round_ in values] == [0, 1]
    for round_ in values:
        assert round_.before == before
        assert sum(round_.values.values()) == round_.after - round_.before
        assert sorted(round_.values) == [1, 2, 3]
        before = round_.after
    assert before == value(run.current().tensors())
    together = totals(values)
    assert together[2] == values[0].values[2] + values[1].values[2]
    content = as_content(values, 1000)
    assert content["total"]["1"]["images"] == str(together[1])
    assert not list(tmp_path.iterdir())


def test_a_global_file_that_is_not_made_of_its_files_is_refused(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan(learners=3))
    forged = run.average(run.publish_locals(), tensors=lambda given: {n: t + 1 for n, t in given.items()})
    run.publish_global(forged)
    with pytest.raises(WeightsError, match="global weights 1 differ from the aggregate of their files"):
        contributions(run.contract, run.store, tmp_path, run.plan, run.trainer.shapes(), value)


def test_an_asynchronous_run_is_refused(world: World, tmp_path: Path) -> None:
    run = played(world)
    nobody_waits = plan(learners=3, mode="async")
    with pytest.raises(ConfigError, match="asynchronous; contributions need"):
        contributions(run.contract, run.store, tmp_path, nobody_waits, run.trainer.shapes(), value)


def test_more_learners_than_can_be_tried_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = played(world)
    assert MOST_LEARNERS == 8
    monkeypatch.setattr("fl_node.report.contribution.MOST_LEARNERS", 2)
    with pytest.raises(ConfigError, match="round 0 has 3 files; exact values support up to 2"):
        contributions(run.contract, run.store, tmp_path, run.plan, run.trainer.shapes(), value)
