"""The actions of a malicious learner, for laboratory use, if its operator allows them; see :mod:`fl_node.attacks`."""

from __future__ import annotations

from fl_node.attacks.attack import Poison
from fl_node.errors import ConfigError
from fl_node.plan.schema import AttackPlan, Plan
from fl_node.runtime.tensors import Images, Labels, Tensors


def check_allowed(plan: Plan, *, allowed: bool) -> None:
    """Check that the learner's operator allows an attack, if the plan has one.

    Raises
    ------
    ConfigError
        The plan has an attack, and it is not allowed.
    """
    if plan.attack is not None and not allowed:
        raise ConfigError(f"the plan {plan.name} has an [attack] section; set --allow-attacks to take part")


def poison(attack: AttackPlan, seed: int, classes: int) -> Poison:
    """Return the function that poisons a learner's training images.

    Parameters
    ----------
    attack
        The plan's attack.
    seed
        Decides everything random in the attack.
    classes
        The number of classes.
    """

    def poisoned(images: Images, labels: Labels) -> tuple[Images, Labels]:
        if attack.on_data is None:
            return images, labels
        return attack.on_data.poison(images, labels, seed, classes)

    return poisoned


def tamper(attack: AttackPlan, parent: Tensors, trained: Tensors, seed: int) -> Tensors:
    """Return the weights that a malicious learner publishes.

    Parameters
    ----------
    attack
        The plan's attack.
    parent
        The global weights that it trained from, by name, float32.
    trained
        Its local weights, by name, float32.
    seed
        Decides everything random in the attack.
    """
    return trained if attack.on_update is None else attack.on_update.tamper(parent, trained, seed)
