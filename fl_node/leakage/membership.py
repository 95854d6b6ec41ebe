"""Membership inference: whether an image is among those that a learner trained on.

Two attacks give each image a score; the scores of members are compared with those of images that nobody trained on.

- ``loss``: the smaller the loss, the more likely a member (Yeom et al. 2018, https://arxiv.org/abs/1709.01604).
- ``lira``: the likelihood ratio of the loss under models that were trained with the image and models that were
  trained without it (Carlini et al. 2022, https://arxiv.org/abs/2112.03570). These shadow models start from the same
  global weights and train as the plan says.

The area under the ROC curve (AUC) is the probability that a member has a higher score than another image: 0.5 is
guessing, 1 is certainty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fl_node.data import partition
from fl_node.data.datasets import DataSet, Images, Labels
from fl_node.errors import ConfigError
from fl_node.leakage.published import Update
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.models.trainer import Probabilities
from fl_node.plan.schema import Plan
from fl_node.runtime.tensors import Indices, Tensors, Wide
from fl_node.seeds import derive, permutation

FALSE_POSITIVES = 0.01
"""At this share of false accusations the share of members that are recognized is reported too."""

OnShadow = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidates:
    """Images whose membership an attack guesses; ``member`` is the truth, shape ``(count,)``."""

    images: Images
    labels: Labels
    member: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """How well an attack tells members from others.

    ``target`` is the file that was attacked. ``low`` and ``high`` bound the AUC with 95 % confidence (Hanley &
    McNeil 1982). ``recognized`` is the share of members above the score that 1 % of the others reach. ``curve`` has
    the rates of false and true positives.
    """

    target: str
    attack: str
    members: int
    others: int
    auc: float
    low: float
    high: float
    recognized: float
    curve: tuple[tuple[float, float], ...]


def outsiders(plan: Plan, dataset: DataSet, seed: int) -> Indices:
    """Return the training images that no node of the run has, in an order that follows from the seed.

    Parameters
    ----------
    plan, dataset
        The run's plan and data.
    seed
        Decides the order.
    """
    used = np.concatenate([partition.everyone(plan), partition.held_out(plan), partition.public_set(plan)])
    unused = np.setdiff1d(np.arange(len(dataset.train_images)), used)
    return unused[permutation(len(unused), derive(seed, "outsiders"))]


def candidates(plan: Plan, dataset: DataSet, node_id: int, seed: int) -> Candidates:
    """Return a learner's images and as many that nobody trained on.

    Those are training images that the plan leaves out, and test images if there are not enough; another learner's
    candidates contain others as long as there are enough.

    Parameters
    ----------
    plan, dataset
        The run's plan and data.
    node_id
        The learner.
    seed
        Decides which images of the others are taken.

    Raises
    ------
    ConfigError
        The plan leaves no image out.
    """
    mine, mine_labels = dataset.training(partition.shard(plan, node_id, dataset.labels))
    unused = outsiders(plan, dataset, seed)
    images = np.concatenate([dataset.train_images[unused], dataset.test_images])
    labels = np.concatenate([dataset.train_labels[unused], dataset.test_labels])
    if not len(images):
        raise ConfigError(f"plan {plan.name} uses every image of {plan.data.name}; the attack needs some others")
    wanted = min(len(mine), len(images))
    # Unseen training images first: test images may come from other writers.
    pool = len(unused) if len(unused) >= wanted else len(images)
    chosen = (np.arange(wanted) + (node_id - 1) * wanted) % pool
    return Candidates(
        np.concatenate([mine, images[chosen]]),
        np.concatenate([mine_labels, labels[chosen]]),
        np.arange(len(mine) + wanted) < len(mine),
    )


def confidence(probabilities: Probabilities, labels: Labels) -> Wide:
    """Return the log-odds of the label of each image: high where the loss is small, and never saturated at 1."""
    sure = np.maximum(probabilities.astype(np.float64), 1e-30)
    of_label = sure[np.arange(len(labels)), labels]
    others = np.maximum(sure.sum(axis=1) - of_label, 1e-30)
    odds: Wide = np.log(of_label) - np.log(others)
    return odds


def loss_scores(trainer: KerasTrainer, weights: Tensors, some: Candidates) -> Wide:
    """Return the score of each candidate in the loss attack.

    Parameters
    ----------
    trainer
        The run's model.
    weights
        The attacked weights, by name.
    some
        The candidates.
    """
    return confidence(trainer.predict(weights, some.images), some.labels)


def check_shadows(shadows: int) -> None:
    """Check that each image can be in half of the shadow models, and that there are several of each kind.

    Raises
    ------
    ConfigError
        The number is odd or too small, and not 0.
    """
    if shadows and (shadows < 4 or shadows % 2):
        raise ConfigError(f"--shadows {shadows}: should be 0 or an even number from 4")


def lira_scores(
    plan: Plan,
    dataset: DataSet,
    update: Update,
    some: Candidates,
    shadows: int,
    seed: int,
    on_shadow: OnShadow = lambda _done, _all: None,
) -> Wide:
    """Return the score of each candidate in the likelihood-ratio attack.

    Each image is in half of the shadow models. Its mean confidence with and without it is its own; the deviations are
    those of all images together, as Carlini et al. do where shadow models are few.

    Parameters
    ----------
    plan, dataset
        The run's plan and data.
    update
        What the learner published.
    some
        The candidates.
    shadows
        The number of shadow models; even, at least 4.
    seed
        Decides which images each shadow model has.
    on_shadow
        Called after each with the number done and of all.
    """
    count = len(some.labels)
    # A trainer of its own, whose training images are the candidates.
    trainer = KerasTrainer(plan, replace(dataset, train_images=some.images, train_labels=some.labels))
    inside = np.zeros((shadows, count), np.bool_)
    seen = np.empty((shadows, count))
    for number in range(shadows):
        order = permutation(count, derive(seed, "shadow", update.node_id, update.round, number // 2))
        half = np.sort(order[: count // 2] if number % 2 == 0 else order[count // 2 :])
        inside[number, half] = True
        purpose = derive(seed, "train", update.node_id, update.round, number)
        # The attacker's own secret, for noise like the learner's.
        secret = hashlib.sha256(str(purpose).encode()).digest() if plan.dp_sgd is not None else None
        trained = trainer.train(update.parent, half, purpose, secret=secret)
        seen[number] = loss_scores(trainer, trained, some)
        on_shadow(number + 1, shadows)
    return likelihood_ratio(loss_scores(trainer, update.local, some), seen, inside)


def likelihood_ratio(scores: Wide, seen: Wide, inside: npt.NDArray[np.bool_]) -> Wide:
    """Return the logarithm of how much more likely each score is with the image than without it.

    Parameters
    ----------
    scores
        Of the attacked model, shape ``(count,)``.
    seen
        Of each shadow model, shape ``(shadows, count)``.
    inside
        Which images each shadow model was trained on; same shape.
    """
    ratio = np.zeros(len(scores))
    for mask, sign in ((inside, 1), (~inside, -1)):
        mean = np.where(mask, seen, 0).sum(axis=0) / mask.sum(axis=0)
        deviation = max(float(np.sqrt(((seen - mean)[mask] ** 2).mean())), 1e-9)
        ratio += sign * (-((scores - mean) ** 2) / (2 * deviation**2) - np.log(deviation))
    return ratio


def figure(target: str, attack: str, scores: Wide, member: npt.NDArray[np.bool_]) -> Figure:
    """Return how well scores tell members from others.

    Parameters
    ----------
    target, attack
        What the result is called.
    scores
        The higher, the more likely a member; shape ``(count,)``.
    member
        The truth, same shape.
    """
    ones, zeros = int(member.sum()), int((~member).sum())
    curve = roc(scores, member)
    auc = float(np.trapezoid([true for _, true in curve], [false for false, _ in curve]))
    low, high = _bounds(auc, ones, zeros)
    recognized = max((true for false, true in curve if false <= FALSE_POSITIVES), default=0.0)
    return Figure(target, attack, ones, zeros, auc, low, high, recognized, tuple(curve))


def _bounds(auc: float, ones: int, zeros: int) -> tuple[float, float]:
    """Return the interval of an AUC with 95 % confidence.

    An AUC of 0 or 1 has no variance of its own. Its interval ends where an AUC is 1.96 of its deviations away
    (Newcombe 2006, https://doi.org/10.1002/sim.2324).
    """

    def half(area: float) -> float:
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        variance = area * (1 - area) + (ones - 1) * (q1 - area**2) + (zeros - 1) * (q2 - area**2)
        return 1.96 * float(np.sqrt(max(variance, 0) / (ones * zeros)))

    if 0 < auc < 1:
        return max(auc - half(auc), 0.0), min(auc + half(auc), 1.0)
    outside, inside = 1 - auc, auc
    for _ in range(50):
        middle = (outside + inside) / 2
        if abs(auc - middle) > half(middle):
            outside = middle
        else:
            inside = middle
    return min(auc, outside), max(auc, outside)


def roc(scores: Wide, member: npt.NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Return the rates of false and true positives for each threshold, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    true, false = np.cumsum(member[order]), np.cumsum(~member[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores count together
    rates = zip((false[last] / false[-1]).tolist(), (true[last] / true[-1]).tolist(), strict=True)
    return [(0.0, 0.0), *rates]


def together(parts: Sequence[tuple[Wide, npt.NDArray[np.bool_]]]) -> tuple[Wide, npt.NDArray[np.bool_]]:
    """Return the scores of several learners' candidates as those of one attack."""
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([member for _, member in parts])
