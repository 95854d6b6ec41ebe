"""A model that costs nothing: what is left of a round is coordination."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Shapes, Tensor, Tensors
from fl_node.models.trainer import OnEpoch
from fl_node.plan.schema import DataPlan, Plan
from fl_node.runtime.tensors import Sliceable, flat, shape_of
from tests.helpers.stub import StubTrainer, add_step_of_seed

# A linear model, a CNN for MNIST (conv 32, conv 64, dense 128), and a perceptron of 25 MB.
MODELS: dict[str, Shapes] = {
    "tiny": {"dense/bias": (10,), "dense/kernel": (784, 10)},
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


COMMITTEE = 3
"""Learners that verify a round where a committee does."""


LAYERS, VOCABULARY, CONTEXT = 12, 50_257, 1024
"""Of GPT-2, which has 148 tensors."""
SIZED = "transformer-"
"""Prefix of a model that is given by its size, such as ``transformer-1000`` for one of about 1000 MB."""


def transformer(megabytes: float) -> Shapes:
    """Return the shapes of GPT-2's 148 tensors, with a width that gives about this size in 10^6 bytes."""
    linear, square = VOCABULARY + CONTEXT + 13 * LAYERS + 2, 12 * LAYERS
    root = math.sqrt(linear**2 + 4 * square * megabytes * 1e6 / 4)
    width = round((root - linear) / (2 * square))
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/tokens": (VOCABULARY, width),
        "embedding/positions": (CONTEXT, width),
        "norm/scale": (width,),
        "norm/shift": (width,),
    }
    for layer in range(LAYERS):
        block = f"layer-{layer:02}"
        for name, inputs, outputs in (
            ("attention/in", width, 3 * width),
            ("attention/out", width, width),
            ("dense/in", width, 4 * width),
            ("dense/out", 4 * width, width),
        ):
            shapes |= {f"{block}/{name}/kernel": (inputs, outputs), f"{block}/{name}/bias": (outputs,)}
        for name in ("norm-1", "norm-2"):
            shapes |= {f"{block}/{name}/scale": (width,), f"{block}/{name}/shift": (width,)}
    return shapes


def shapes_of(model: str) -> Shapes:
    """Return the shapes of a model's tensors."""
    return transformer(float(model.removeprefix(SIZED))) if model.startswith(SIZED) else MODELS[model]


def parameters(model: str) -> int:
    """Return how many float32 values a model has."""
    return sum(math.prod(shape) for shape in shapes_of(model).values())


def megabytes(model: str) -> float:
    """Return the size of a model in 10^6 bytes."""
    return 4 * parameters(model) / 1e6


def plan(
    model: str,
    rounds: int,
    learners: int,
    verification: str = "all",
    *,
    masks: bool = False,
    retention: int | None = None,
) -> Plan:
    """Return a plan like the paper's, with whose model the roles are told to work."""
    settings: dict[str, Any] = {"rounds": rounds, "learners": learners, "verification": verification}
    if masks:
        settings |= {"aggregation": {"rule": "fedavg", "arithmetic": "fixed"}}
        settings |= {"privacy": {"secure_aggregation": True}}
    if retention is not None:
        settings["retention"] = {"rounds": retention}
    if verification == "committee":
        settings["committee"] = min(COMMITTEE, learners)
    return Plan.model_validate({"name": f"bench-{model}", "data": DataPlan(name="mnist"), **settings})


def trainer(model: str) -> StubTrainer:
    """Return a trainer that changes every value, so that no block of a file is known already."""
    if model.startswith(SIZED):
        return OnDemandTrainer(plan(model, 1, 1), shapes_of(model))
    return StubTrainer(plan(model, 1, 1), MODELS[model], add_step_of_seed)


class Computed(Sliceable):
    """Tensors that are computed whenever they are asked for, so that no process holds a model.

    Parameters
    ----------
    shapes
        Their shapes by name.
    values
        Returns values of a tensor, given its name, the first of them, and the one after the last.
    """

    def __init__(self, shapes: Shapes, values: Callable[[str, int, int], Tensor]) -> None:
        self._shapes = shapes
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        return self._values(name, 0, math.prod(shape)).reshape(shape)

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Return some values of a tensor."""
        return self._values(name, start, stop)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class OnDemandTrainer(StubTrainer):
    """A trainer for large models: initial and trained weights are computed while they are written."""

    def initial(self) -> Tensors:
        """Return weights no block of which equals another."""
        shapes = self.shapes()
        first = dict(zip(shapes, range(0, 131 * len(shapes), 131), strict=True))

        def values(name: str, start: int, stop: int) -> Tensor:
            places = np.arange(start, stop, dtype=np.int64) * 7919 + first[name]
            return (places % 1_000_003 / np.float32(1_000_003) - np.float32(0.5)).astype(np.float32)

        return Computed(shapes, values)

    def train(
        self, weights: Tensors, samples: npt.NDArray[np.int64], seed: int, on_epoch: OnEpoch, **_: object
    ) -> Tensors:
        """Change every value by a number that follows from the seed."""
        on_epoch(1, 0.5, 0.25)
        step = np.float32(1 + seed % 1000) / np.float32(1e6)
        return Computed(
            {name: shape_of(weights, name) for name in weights},
            lambda name, start, stop: flat(weights, name, start, stop) + step,
        )
