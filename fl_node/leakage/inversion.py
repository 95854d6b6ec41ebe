"""Reconstruction of training images from one update, and how far they are from the true ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_node.data import partition
from fl_node.data.datasets import DataSet
from fl_node.errors import ConfigError
from fl_node.leakage import dense, matching
from fl_node.leakage.matching import OnStep
from fl_node.leakage.membership import outsiders
from fl_node.leakage.published import Update
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan.schema import Plan
from fl_node.runtime.tensors import Images, Wide
from fl_node.seeds import derive

MOST_MATCHED = 8
"""Images up to which the optimization is tried."""
METHODS = ("auto", "exact", "matching")
RECOGNIZED = 0.5
"""A reconstruction counts if its error is at most this share of the error of a guess that uses no update."""


@dataclass(frozen=True)
class Reconstruction:
    """One reconstructed image beside the true one that it is nearest to.

    Errors are those of pixels from 0 to 1: the root of the mean square, and the largest. ``guess`` is the error of
    the average image of the data set, which an attacker has without any update. ``exact`` is what the attacker
    says, without the truth.
    """

    label: int
    exact: bool
    error: float
    largest: float
    guess: float
    pixels: Wide
    true: Images

    @property
    def verdict(self) -> str:
        """What the reconstruction is worth, in a word."""
        if self.exact and self.largest < 0.5 / 255:
            return "exact"
        return "recognizable" if self.error <= RECOGNIZED * self.guess else "nothing"


@dataclass(frozen=True)
class Inversion:
    """What one update reveals: the method, the number of the learner's images, and the reconstructed images."""

    method: str
    samples: int
    images: tuple[Reconstruction, ...]
    note: str = ""


def invert(
    plan: Plan,
    dataset: DataSet,
    trainer: KerasTrainer,
    update: Update,
    method: str = "auto",
    steps: int = 2000,
    seed: int = 1,
    on_step: OnStep = lambda _done, _all: None,
) -> Inversion:
    """Reconstruct images from an update.

    Parameters
    ----------
    plan, dataset, trainer
        The run's plan, its data and its model. Images of the learner are looked at only to report the error.
    update
        What the learner published.
    method
        ``exact`` from the first dense layer, ``matching`` by optimization, or ``auto``: the first that finds any.
    steps
        The number of steps of the optimization.
    seed
        Decides where searches start.
    on_step
        Called now and then with the number of steps done and of all.

    Raises
    ------
    ConfigError
        ``exact`` is wanted, and the model or the optimizer does not allow it.
    """
    samples = partition.shard(plan, update.node_id, dataset.labels)
    problem = exact_problem(plan, trainer)
    if method == "exact" and problem:
        raise ConfigError(f"--method exact: {problem}")
    if method != "matching" and not problem:
        reconstructed = _exact(trainer, update, seed)
        if len(reconstructed) or method == "exact":
            return Inversion("exact", len(samples), _compared(plan, dataset, samples, reconstructed, exact=True))
        problem = "the first layer reveals no image exactly"
    if len(samples) > MOST_MATCHED:
        note = f"{problem or 'optimization'}; optimization supports up to {MOST_MATCHED} images"
        return Inversion("none", len(samples), (), f"{note}, the learner has {len(samples)}")
    reconstructed = _matched(plan, dataset, trainer, update, len(samples), steps, seed, on_step)
    return Inversion(
        "matching", len(samples), _compared(plan, dataset, samples, reconstructed, exact=False), problem or ""
    )


def others(plan: Plan, dataset: DataSet, seed: int) -> Images:
    """Return images of the data set that no learner has: training images, or test images if none are left.

    Parameters
    ----------
    plan, dataset
        The run's plan and data.
    seed
        Decides the order.
    """
    unused = outsiders(plan, dataset, seed)
    return dataset.train_images[unused] if len(unused) else dataset.test_images


def exact_problem(plan: Plan, trainer: KerasTrainer) -> str | None:
    """Return why an update reveals no image exactly, whatever it is; None if it may."""
    if dense.first_dense(trainer.model) is None:
        return f"the model {plan.model.name} has no dense first layer; the perceptron (model.name = mlp) has one"
    if plan.training.optimizer != "sgd":
        return (
            f"the optimizer {plan.training.optimizer} scales each value by itself; training.optimizer = sgd does not"
        )
    if plan.training.proximal_mu:
        return "training.proximal_mu adds to the update what does not come from images"
    return None


def _exact(trainer: KerasTrainer, update: Update, seed: int) -> Wide:
    names = dense.first_dense(trainer.model)
    assert names is not None
    kernel, bias = (update.change()[name] for name in names)
    rounding = float(np.abs(update.local[names[0]]).max()) * 2.0**-25
    return dense.exact_images(kernel, bias, rounding, derive(seed, "factorize"))


def _matched(
    plan: Plan,
    dataset: DataSet,
    trainer: KerasTrainer,
    update: Update,
    count: int,
    steps: int,
    seed: int,
    on_step: OnStep,
) -> Wide:
    change = update.change()
    known = others(plan, dataset, seed)[:500]
    average = trainer.predict(update.parent, known).mean(axis=0).astype(np.float64)
    labels = matching.guess_labels(change["output/bias"], average, count)
    random = np.random.default_rng(derive(seed, "start"))
    start = np.clip(known.mean(axis=0) / 255 + 0.1 * random.standard_normal((count, *known.shape[1:])), 0, 1)
    training = derive(plan.seed, update.node_id, update.round)
    reconstructed = matching.match(trainer.model, update.parent, change, labels, start, training, steps, on_step)
    return reconstructed.reshape(count, -1)


def _compared(
    plan: Plan, dataset: DataSet, samples: np.typing.NDArray[np.int64], reconstructed: Wide, *, exact: bool
) -> tuple[Reconstruction, ...]:
    """Pair each reconstruction with the true image that makes the sum of the errors smallest."""
    from scipy.optimize import linear_sum_assignment

    if not len(reconstructed):
        return ()
    images, labels = dataset.training(samples)
    true = images.reshape(len(images), -1) / 255
    guess = others(plan, dataset, 1).mean(axis=0).ravel() / 255
    errors = np.sqrt(((reconstructed[:, None] - true[None]) ** 2).mean(axis=2))
    paired = []
    for row, column in zip(*linear_sum_assignment(errors), strict=True):
        paired.append(
            Reconstruction(
                label=int(labels[column]),
                exact=exact,
                error=float(errors[row, column]),
                largest=float(np.abs(reconstructed[row] - true[column]).max()),
                guess=float(np.sqrt(((guess - true[column]) ** 2).mean())),
                pixels=reconstructed[row].reshape(images.shape[1:]),
                true=images[column],
            )
        )
    return tuple(sorted(paired, key=lambda image: image.error))
