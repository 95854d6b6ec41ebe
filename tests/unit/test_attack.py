"""Attacks: what they make of images, labels and weights, and that they are the same again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_node.attacks.backdoor import patched
from fl_node.plan.schema import AttackPlan
from fl_node.roles.attack import poison, tamper

IMAGES = np.arange(20 * 28 * 28, dtype=np.uint32).reshape(20, 28, 28).astype(np.uint8)
LABELS = np.arange(20) % 10
PARENT = {"a": np.float32([1, 2])}
TRAINED = {"a": np.float32([2, 4])}


def attack(**settings: Any) -> AttackPlan:
    return AttackPlan.model_validate({"learners": [1], **settings})


def test_a_label_flip_mirrors_the_labels() -> None:
    images, labels = poison(attack(data="label_flip"), 1, 10)(IMAGES, LABELS)
    assert labels[:10].tolist() == list(range(9, -1, -1))
    assert images is IMAGES


def test_a_backdoor_patches_its_share_of_the_images_and_gives_them_its_label() -> None:
    images, labels = poison(attack(data="backdoor", target=7, fraction=0.25), 1, 10)(IMAGES, LABELS)
    changed = [i for i in range(20) if not (images[i] == IMAGES[i]).all()]
    assert len(changed) == 5
    assert (images[changed] == patched(IMAGES[changed])).all()
    assert (labels[changed] == 7).all()
    kept = [i for i in range(20) if i not in changed]
    assert (labels[kept] == LABELS[kept]).all()
    assert (np.arange(20) % 10 == LABELS).all()


def test_a_patch_is_a_small_white_square() -> None:
    blank = np.zeros((1, 28, 28), np.uint8)
    assert (patched(blank) == 255).sum() == 16
    assert not blank.any()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"update": "sign_flip"}, [0, 0]),
        ({"update": "sign_flip", "factor": 3.0}, [-2, -4]),
        ({"update": "scale"}, [6, 12]),
        ({"update": "constant", "value": 0.5}, [0.5, 0.5]),
        ({"update": "copy"}, [1, 2]),
        ({"data": "label_flip"}, [2, 4]),
    ],
)
def test_an_update_is_tampered_with_as_the_plan_says(settings: dict[str, Any], expected: list[float]) -> None:
    weights = tamper(attack(**settings), PARENT, TRAINED, 1)
    assert weights["a"].tolist() == expected
    assert weights["a"].dtype == np.float32


def test_noise_is_of_its_deviation_and_the_same_for_the_same_seed() -> None:
    zeros = {"a": np.zeros(10_000, np.float32)}
    first, again, changed = (tamper(attack(update="noise", deviation=0.5), zeros, zeros, s)["a"] for s in (1, 1, 2))
    assert first.std() == pytest.approx(0.5, rel=0.05)
    assert (first == again).all()
    assert (first != changed).any()
