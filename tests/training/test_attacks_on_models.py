"""Attacks on what Keras really trains: an image comes out of a plain update, and out of a noisy one none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_node.data import partition
from fl_node.data.datasets import DataSet, load
from fl_node.errors import ConfigError
from fl_node.leakage.inversion import invert
from fl_node.leakage.membership import candidates, figure, lira_scores, loss_scores
from fl_node.leakage.published import Update
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.seeds import derive
from tests.helpers.checkout import ROOT


def given(name: str, *settings: str) -> tuple[Plan, DataSet, KerasTrainer]:
    plan = plans.load(ROOT / "plans" / f"{name}.toml", settings)
    digits = load("digits")
    return plan, digits, KerasTrainer(plan, digits)


def update(plan: Plan, digits: DataSet, trainer: KerasTrainer, **options: Any) -> Update:
    """Return what learner 2 would publish in round 0."""
    shard = partition.shard(plan, 2, digits.labels)
    trained = trainer.train(trainer.initial(), shard, derive(plan.seed, 2, 0), **options)
    return Update(2, 0, "", "", trained, trainer.initial())


def test_an_image_is_read_out_of_the_shipped_plan_with_the_error_of_float32() -> None:
    run = given("inversion")
    found = invert(*run, update(*run))
    assert found.method == "exact"
    (image,) = found.images
    assert image.verdict == "exact"
    assert image.error < 1e-6


def test_of_one_step_on_eight_images_two_or_more_are_read_exactly() -> None:
    run = given("inversion", "data.train=24")
    found = invert(*run, update(*run), "exact")
    assert found.samples == 8
    assert len(found.images) >= 2
    assert {image.verdict for image in found.images} == {"exact"}


@pytest.mark.nightly
def test_optimization_finds_a_recognizable_image() -> None:
    run = given("inversion")
    (image,) = invert(*run, update(*run), "matching", steps=400).images
    assert image.verdict == "recognizable"
    assert image.error < image.guess / 4


@pytest.mark.nightly
def test_optimization_finds_nothing_under_noise() -> None:
    run = given("inversion", "privacy.dp.noise_multiplier=1")
    (image,) = invert(*run, update(*run, secret=bytes(32)), "matching", steps=100).images
    assert image.verdict == "nothing"


def test_differential_privacy_leaves_no_image() -> None:
    run = given("inversion", "privacy.dp.noise_multiplier=1")
    assert invert(*run, update(*run, secret=bytes(32)), "exact").images == ()


def test_a_model_without_a_dense_first_layer_reveals_nothing_exactly() -> None:
    run = given("inversion", "model.name=separable_cnn")
    with pytest.raises(ConfigError, match=r"separable_cnn has no dense first layer"):
        invert(*run, update(*run), "exact")
    adam = given("inversion", "training.optimizer=adam")
    with pytest.raises(ConfigError, match=r"optimizer adam"):
        invert(*adam, update(*adam), "exact")


@pytest.mark.nightly
def test_members_of_an_overfitted_model_are_told_from_others() -> None:
    plan, digits, trainer = given("membership", "data.train=90", "training.learning_rate=0.01")
    mine = update(plan, digits, trainer)
    some = candidates(plan, digits, 2, 1)
    loss = figure("learner 2", "loss", loss_scores(trainer, mine.local, some), some.member)
    lira = figure("learner 2", "lira", lira_scores(plan, digits, mine, some, 4, 1), some.member)
    untrained = figure("none", "loss", loss_scores(trainer, mine.parent, some), some.member)
    assert loss.auc > 0.6
    assert lira.auc > loss.auc
    assert untrained.low < 0.5 < untrained.high
    assert np.array_equal(lira_scores(plan, digits, mine, some, 4, 1), lira_scores(plan, digits, mine, some, 4, 1))
