"""What a dishonest learner may do, for the laboratory: to its images before it trains, or to its weights after.

Each attack is a function of arrays and a seed, so a round that is trained again is the same round. The plan says who
attacks and how. A plan comes from the chain, so a learner obeys it only where its operator allows attacks, as a
laboratory does; real attackers ask nobody, and the rules of :mod:`fl_node.aggregation` are there for them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fl_node.artifacts.model_file import Tensors
from fl_node.data.datasets import Images, Labels
from fl_node.errors import ConfigError
from fl_node.plan.schema import CLASSES, AttackPlan, Plan
from fl_node.seeds import derive, permutation

Poison = Callable[[Images, Labels], tuple[Images, Labels]]

PATCH = 4
"""Pixels of the backdoor's white square, in the lower right corner."""


def check_allowed(plan: Plan, *, allowed: bool) -> None:
    """Raise a ConfigError if a plan has learners attack the run and this learner's operator did not allow that."""
    if plan.attack is not None and not allowed:
        raise ConfigError(
            f"the plan {plan.name} has an [attack] section, which is for laboratories; "
            "a learner takes part in it with --allow-attacks only"
        )


def poison(attack: AttackPlan, seed: int, classes: int = CLASSES) -> Poison:
    """Return what an attack does to the images that a learner trains on."""

    def poisoned(images: Images, labels: Labels) -> tuple[Images, Labels]:
        match attack.data:
            case "label_flip":
                return images, classes - 1 - labels
            case "backdoor":
                count = round((attack.fraction or 1.0) * len(images))
                some = permutation(len(images), derive(seed, "backdoor"))[:count]
                images, labels = images.copy(), labels.copy()
                images[some] = patched(images[some])
                labels[some] = attack.target or 0
        return images, labels

    return poisoned


def patched(images: Images) -> Images:
    """Return images with the backdoor's patch, shape ``(count, 28, 28)``."""
    images = images.copy()
    images[:, -PATCH - 1 : -1, -PATCH - 1 : -1] = 255
    return images


def tamper(attack: AttackPlan, parent: Tensors, trained: Tensors, seed: int) -> Tensors:
    """Return what an attack makes of local weights that were trained from the global weights ``parent``."""
    factor = np.float32(attack.factor or 1.0)
    match attack.update:
        case "sign_flip":
            return {name: parent[name] - factor * (tensor - parent[name]) for name, tensor in trained.items()}
        case "scale":
            return {name: parent[name] + factor * (tensor - parent[name]) for name, tensor in trained.items()}
        case "noise":
            generator = np.random.Generator(np.random.Philox(key=derive(seed, "noise")))
            deviation = np.float32(attack.deviation or 0.0)
            return {
                name: tensor + deviation * generator.standard_normal(tensor.shape, np.float32)
                for name, tensor in sorted(trained.items())
            }
        case "constant":
            return {name: np.full_like(tensor, attack.value or 0.0) for name, tensor in trained.items()}
        case "copy":
            return {name: parent[name] for name in trained}
    return trained
