"""A model that costs nothing: what is left of a round is coordination."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Shapes, Tensors
from fl_node.models.keras_trainer import OnEpoch, Score
from fl_node.plan.schema import DataPlan, Plan

# A CNN for MNIST (conv 32, conv 64, dense 128), and a perceptron of 25 MB.
MODELS: dict[str, Shapes] = {
    "small": {
        "conv1/bias": (32,),
        "conv1/kernel": (3, 3, 1, 32),
        "conv2/bias": (64,),
        "conv2/kernel": (3, 3, 32, 64),
        "dense1/bias": (128,),
        "dense1/kernel": (1600, 128),
        "output/bias": (10,),
        "output/kernel": (128, 10),
    },
    "large": {
        "dense1/bias": (2048,),
        "dense1/kernel": (784, 2048),
        "dense2/bias": (2048,),
        "dense2/kernel": (2048, 2048),
        "dense3/bias": (220,),
        "dense3/kernel": (2048, 220),
    },
}


def parameters(model: str) -> int:
    """Return how many float32 values a model has."""
    return sum(math.prod(shape) for shape in MODELS[model].values())


def megabytes(model: str) -> float:
    """Return the size of a model in 10^6 bytes."""
    return 4 * parameters(model) / 1e6


def plan(model: str, rounds: int, learners: int) -> Plan:
    """Return a plan like the paper's, with whose model the roles are told to work."""
    return Plan(name=f"bench-{model}", rounds=rounds, learners=learners, data=DataPlan(name="mnist"))


class StubTrainer:
    """A trainer that changes every value, so that no block of a file is known already."""

    def __init__(self, model: str) -> None:
        self._shapes = MODELS[model]

    def shapes(self) -> Shapes:
        return self._shapes

    def initial(self) -> Tensors:
        generator = np.random.default_rng(1)
        return {name: generator.standard_normal(shape, np.float32) for name, shape in self._shapes.items()}

    def labels(self) -> npt.NDArray[np.int64]:
        return np.arange(60_000) % 10

    def train(
        self, weights: Tensors, samples: npt.NDArray[np.int64], seed: int, on_epoch: OnEpoch, **_: object
    ) -> Tensors:
        step = np.float32(1 + seed % 1000) / np.float32(1e6)
        return {name: tensor + step for name, tensor in weights.items()}

    def evaluate(self, weights: Tensors) -> Score:
        return Score(0.5, 1.0, 1)
