"""What an update reveals, on small layers in NumPy: images come out exactly, and from noise comes nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from fl_node.data import partition
from fl_node.data.datasets import load
from fl_node.errors import ConfigError
from fl_node.leakage.dense import exact_images
from fl_node.leakage.inversion import Inversion, Reconstruction, others
from fl_node.leakage.matching import guess_labels
from fl_node.leakage.membership import candidates, confidence, figure, likelihood_ratio, outsiders, roc
from fl_node.leakage.page import write_inversion
from fl_node.leakage.published import Update, as_change, attackable
from fl_node.plan.schema import DataPlan
from fl_node.protocol.history import History
from fl_node.runtime.tensors import Wide
from tests.helpers.runs import plan

PIXELS, UNITS = 40, 64


def images(count: int) -> Wide:
    return np.random.default_rng(count).integers(0, 256, (count, PIXELS)) / 255


def update(some: Wide) -> tuple[Wide, Wide]:
    """Return what images add to kernel and bias of a layer whose units are active for half of them."""
    random = np.random.default_rng(7)
    delta = random.standard_normal((len(some), UNITS)) * (random.random((len(some), UNITS)) < 0.5)
    return some.T @ delta, delta.sum(axis=0)


def rounded(some: Wide) -> set[bytes]:
    return {np.rint(255 * image).astype(np.uint8).tobytes() for image in some}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_images_come_out_of_a_dense_layer_exactly(count: int) -> None:
    kernel, bias = update(images(count))
    found = exact_images(kernel, bias, 1e-9, 0)
    assert rounded(found) == rounded(images(count))
    assert max(np.abs(images(count) - image).max(axis=1).min() for image in found) < 1e-6


def test_of_many_images_only_those_that_have_a_unit_alone_come_out() -> None:
    some = images(200)
    kernel, bias = update(some)
    assert not len(exact_images(kernel, bias, 1e-9, 0))
    alone = np.outer(some[3], np.ones(1))
    found = exact_images(np.hstack([kernel, alone]), np.append(bias, 1.0), 1e-9, 0)
    assert rounded(found) == rounded(some[3:4])


def test_noise_on_the_update_hides_every_image() -> None:
    kernel, bias = update(images(4))
    noise = np.random.default_rng(0).standard_normal(kernel.shape)
    assert not len(exact_images(kernel + 0.1 * noise, bias, 1e-9, 0))


def test_words_without_any_image_give_none() -> None:
    random = np.random.default_rng(0)
    kernel = random.integers(-(2**31), 2**31, (PIXELS, UNITS)) / 2**16
    assert not len(exact_images(kernel, random.integers(-(2**31), 2**31, UNITS) / 2**16, 1e-9, 0))
    assert not len(exact_images(np.zeros((PIXELS, UNITS)), np.zeros(UNITS), 1e-9, 0))


def test_masked_words_are_read_as_signed_numbers_of_unknown_scale() -> None:
    assert as_change(np.array([0, 2**31, 2**31 - 1, 2**30], np.uint32)) == pytest.approx([0, -1, 1, 0.5])
    assert as_change(np.array([2**63, 2**62], np.uint64)) == pytest.approx([-1, 0.5])


def test_the_output_bias_tells_the_labels() -> None:
    average = np.full(10, 0.1)
    labels = np.array([2, 2, 7, 9])
    bias = 0.3 * (np.bincount(labels, minlength=10) / 4 - average)
    assert guess_labels(bias, average, 4).tolist() == labels.tolist()


def test_the_area_is_that_under_the_curve() -> None:
    random = np.random.default_rng(0)
    scores = np.round(np.concatenate([random.normal(1, 1, 300), random.normal(0, 1, 200)]), 1)  # with ties
    member = np.arange(500) < 300
    one = figure("learner 1", "loss", scores, member)
    pairs = np.sign(scores[member][:, None] - scores[~member])
    assert one.auc == pytest.approx((1 + pairs.mean()) / 2)
    assert roc(scores, member)[-1] == (1, 1)
    assert 0.7 < one.low < one.auc < one.high < 0.85
    assert figure("x", "loss", -scores, member).auc == pytest.approx(1 - one.auc)
    assert figure("x", "loss", np.zeros(500), member).auc == 0.5
    perfect = figure("x", "loss", member.astype(float), member)
    assert (perfect.auc, perfect.recognized) == (1, 1)


@pytest.mark.parametrize(("count", "least", "most"), [(1, 0.15, 0.25), (3, 0.4, 0.7), (300, 0.99, 0.999)])
def test_scores_that_tell_all_apart_have_an_interval_too(count: int, least: float, most: float) -> None:
    member = np.arange(2 * count) < count
    right = figure("x", "loss", member.astype(float), member)
    wrong = figure("x", "loss", -member.astype(float), member)
    assert (right.auc, right.high, wrong.auc, wrong.low) == (1, 1, 0, 0)
    assert least < right.low < most
    assert least < 1 - wrong.high < most


def test_the_likelihood_ratio_is_high_where_the_score_is_as_with_the_image() -> None:
    inside = np.arange(4)[:, None] % 2 == np.zeros(3)
    seen = np.where(inside, 5.0, 1.0) + np.array([[0.5], [0.5], [-0.5], [-0.5]])
    ratio = likelihood_ratio(np.array([5.0, 3.0, 1.0]), seen, inside)
    assert ratio[0] > 0 > ratio[2]
    assert ratio[1] == pytest.approx(0)


def test_confidence_tells_apart_what_is_nearly_certain() -> None:
    sure = np.array([[1 - 1e-7, 1e-7], [1.0, 1e-12]], np.float32)
    low, high = confidence(sure, np.zeros(2, np.int64))
    assert low < high
    assert np.isfinite(confidence(np.array([[1, 0], [0, 1]], np.float32), np.zeros(2, np.int64))).all()


def test_members_are_the_shard_and_others_are_images_that_nobody_has() -> None:
    small, digits = plan(data=DataPlan(name="digits", train=400, test=10, validation=20)), load("digits")
    used = np.concatenate([partition.everyone(small), partition.held_out(small)])
    assert not np.isin(outsiders(small, digits, 1), used).any()
    one, two = candidates(small, digits, 1, 1), candidates(small, digits, 2, 1)
    assert np.array_equal(one.images[one.member], digits.train_images[partition.shard(small, 1)])
    assert one.member.sum() == (~one.member).sum() == 200
    others = [{image.tobytes() for image in some.images[~some.member]} for some in (one, two)]
    assert len(others[0] & others[1]) < 5  # the set has a few images twice


def test_others_are_test_images_where_the_plan_uses_all_training_images() -> None:
    everything = plan(data=DataPlan(name="digits"))
    digits = load("digits")
    some = candidates(everything, digits, 1, 1)
    tests = {image.tobytes() for image in digits.test_images}
    assert all(image.tobytes() in tests for image in some.images[~some.member])
    assert (~some.member).sum() == 360


THREE = plan(learners=3)


def past(*rounds: tuple[int, ...]) -> History:
    """A history in which these learners have published in these rounds, and nobody in the open one."""
    of = [{node_id: object() for node_id in published} for published in (*rounds, ())]
    return cast(History, SimpleNamespace(rounds=[SimpleNamespace(latest=lambda known=known: known) for known in of]))


@pytest.mark.parametrize(
    ("wanted", "found"), [([], (2, [1, 3])), ([1], (2, [1])), ([2], (1, [2])), ([2, 1, 2], (0, [1, 2]))]
)
def test_the_last_round_is_attacked_in_which_the_learners_have_published(
    wanted: list[int], found: tuple[int, list[int]]
) -> None:
    assert attackable(THREE, past((1, 2), (2,), (1, 3), ()), wanted) == found


def test_in_a_given_round_those_are_attacked_who_published_in_it() -> None:
    run = past((1, 2), (2,))
    assert attackable(THREE, run, [], 1) == (1, [2])
    assert attackable(THREE, run, [3, 1], 1) == (1, [1, 3])
    # What is wrong with the round is said when its files are read.
    assert attackable(THREE, run, [], 9) == (9, [1, 2, 3])


def test_where_nobody_has_published_nothing_can_be_attacked() -> None:
    with pytest.raises(ConfigError, match="no round is closed yet"):
        attackable(THREE, past(), [])
    with pytest.raises(ConfigError, match="learners 1, 3 published in no closed round together"):
        attackable(THREE, past((1,), (3,)), [1, 3])
    with pytest.raises(ConfigError, match=r"learner 3 published in no closed round$"):
        attackable(THREE, past((1,)), [3])
    with pytest.raises(ConfigError, match="--learner 4: should be 1 to 3"):
        attackable(THREE, past((1,)), [4])


@pytest.mark.parametrize("validation", [1, 1434])
def test_the_attacker_has_images_of_others_even_where_the_plan_uses_all_training_images(validation: int) -> None:
    digits = load("digits")
    small = plan(data=DataPlan(name="digits", train=3, test=10, validation=validation))
    known = others(small, digits, 1)
    assert np.array_equal(known, digits.test_images) == (validation == 1434)
    assert len(known) >= 10


def inverted(count: int) -> Inversion:
    pixels = np.zeros((4, 4), np.uint8)
    image = Reconstruction(1, True, 0.0, 0.0, 1.0, pixels.astype(np.float64), pixels)
    return Inversion("exact", count, (image,) * count)


def test_the_pictures_of_an_earlier_attack_are_replaced_all_together_or_not_at_all(tmp_path: Path) -> None:
    attacked = cast(Update, SimpleNamespace(round=0, is_masked=False, cid="Qm1", parent_cid="Qm0", node_id=1))
    write_inversion(tmp_path, "run", attacked, inverted(2), {})
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(first) == 6
    (tmp_path / "inversion.html").unlink()
    (tmp_path / "inversion.html").mkdir()
    with pytest.raises(IsADirectoryError):
        write_inversion(tmp_path, "run", attacked, inverted(1), {"seed": 2})
    (tmp_path / "inversion.html").rmdir()
    del first["inversion.html"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    write_inversion(tmp_path, "run", attacked, inverted(1), {})
    assert {path.name for path in tmp_path.iterdir()} == {
        "inversion-1.png",
        "inversion-1-true.png",
        "inversion.html",
        "inversion.json",
    }
