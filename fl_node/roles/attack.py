"""What a malicious learner does, for the laboratory, if its operator allows it; see :mod:`fl_node.attacks`."""

from __future__ import annotations

from fl_node.attacks.attack import Poison
from fl_node.errors import ConfigError
from fl_node.plan.schema import AttackPlan, Plan
from fl_node.runtime.tensors import Images, Labels, Tensors


def check_allowed(plan: Plan, *, allowed: bool) -> None:
    """Raise a ConfigError if a plan has learners attack the run and this learner's operator did not allow that."""
    if plan.attack is not None and not allowed:
        raise ConfigError(
            f"the plan {plan.name} has an [attack] section, which is for laboratories; "
            "a learner takes part in it with --allow-attacks only"
        )


def poison(attack: AttackPlan, seed: int, classes: int) -> Poison:
    """Return what an attack does to the images that a learner trains on."""

    def poisoned(images: Images, labels: Labels) -> tuple[Images, Labels]:
        if attack.on_data is None:
            return images, labels
        return attack.on_data.poison(images, labels, seed, classes)

    return poisoned


def tamper(attack: AttackPlan, parent: Tensors, trained: Tensors, seed: int) -> Tensors:
    """Return what an attack makes of local weights that were trained from the global weights ``parent``."""
    return trained if attack.on_update is None else attack.on_update.tamper(parent, trained, seed)
