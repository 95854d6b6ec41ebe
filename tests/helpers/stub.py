"""The trainer of tests and benchmarks in which the model is not the point: it needs NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Shapes, Tensors
from fl_node.data.partition import permutation
from fl_node.models.trainer import OnEpoch, Score
from fl_node.plan.schema import Plan
from fl_node.seeds import derive

Update = Callable[[Plan, Tensors, npt.NDArray[np.int64], int, OnEpoch], Tensors]
"""What training makes of weights: called with the plan, the weights, the numbers of the samples, the seed and a
function to call after each epoch."""


def noise(shapes: Shapes, seed: int) -> Tensors:
    """Return tensors that follow from a seed."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shapes[name], np.float32) for name in sorted(shapes)}


def add_noise(plan: Plan, weights: Tensors, samples: npt.NDArray[np.int64], seed: int, on_epoch: OnEpoch) -> Tensors:
    """Add noise that follows from the seed."""
    added = noise({name: tensor.shape for name, tensor in weights.items()}, seed)
    return {name: tensor + added[name] for name, tensor in weights.items()}


def add(step: float) -> Update:
    """Return an update that adds a number to each value, and reports one epoch."""

    def update(plan: Plan, weights: Tensors, samples: npt.NDArray[np.int64], seed: int, on_epoch: OnEpoch) -> Tensors:
        on_epoch(1, 0.5, 0.25)
        return {name: tensor + np.float32(step) for name, tensor in weights.items()}

    return update


def add_step_of_seed(
    plan: Plan, weights: Tensors, samples: npt.NDArray[np.int64], seed: int, on_epoch: OnEpoch
) -> Tensors:
    """Change every value at little cost, so that no block of a file was stored before."""
    step = np.float32(1 + seed % 1000) / np.float32(1e6)
    return {name: tensor + step for name, tensor in weights.items()}


def depend_on_everything(
    plan: Plan, weights: Tensors, samples: npt.NDArray[np.int64], seed: int, on_epoch: OnEpoch
) -> Tensors:
    """Change the weights by all that real training depends on: plan, weights, samples, seed and epoch."""
    step = np.float32(samples.sum() % 101 / 101)
    for epoch in range(plan.training.epochs):
        weights = {
            name: values * np.float32(0.9) + step * scrambled(values.shape, derive(seed, name, epoch))
            for name, values in weights.items()
        }
        on_epoch(epoch + 1, 0.5, 0.25)
    return weights


def scrambled(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Return fractions in an order that follows from the seed."""
    count = int(np.prod(shape))
    return (permutation(count, seed) / np.float32(count)).astype(np.float32).reshape(shape)


class StubTrainer:
    """A trainer whose training is one function.

    Parameters
    ----------
    plan
        The plan of the run.
    initial
        The initial weights, or only their shapes, for noise that follows from the plan's seed.
    update
        What training makes of weights.
    accuracy, loss
        What each evaluation measures.
    """

    SHAPES: ClassVar[Shapes] = {"dense/bias": (4,), "dense/kernel": (3, 4)}
    data: None = None

    def __init__(
        self,
        plan: Plan,
        initial: Tensors | Shapes | None = None,
        update: Update = add_noise,
        *,
        accuracy: float = 0.5,
        loss: float = 1.25,
    ) -> None:
        self.plan = plan
        self.trainings: list[tuple[int, int]] = []
        """Of each training the count of samples and the seed."""
        self._initial = self.SHAPES if initial is None else initial
        self._update = update
        self._score = accuracy, loss

    def shapes(self) -> Shapes:
        return {name: given if isinstance(given, tuple) else given.shape for name, given in self._initial.items()}

    def initial(self) -> Tensors:
        tensors = noise(self.shapes(), derive(self.plan.seed, "initial"))
        return {name: tensors[name] if isinstance(given, tuple) else given for name, given in self._initial.items()}

    def labels(self) -> npt.NDArray[np.int64]:
        return np.arange(60_000) % 10

    def train(
        self, weights: Tensors, samples: npt.NDArray[np.int64], seed: int, on_epoch: OnEpoch, **_: object
    ) -> Tensors:
        self.trainings.append((len(samples), seed))
        return self._update(self.plan, weights, samples, seed, on_epoch)

    def evaluate(self, weights: Tensors) -> Score:
        return Score(*self._score, self.plan.data.test)
