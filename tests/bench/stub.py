"""A model that costs nothing: what is left of a round is coordination."""

from __future__ import annotations

import math
from typing import Any

from fl_node.artifacts.model_file import Shapes
from fl_node.plan.schema import DataPlan, Plan
from tests.helpers.stub import StubTrainer, add_step_of_seed

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


COMMITTEE = 3
"""Learners that verify a round where a committee does."""


def parameters(model: str) -> int:
    """Return how many float32 values a model has."""
    return sum(math.prod(shape) for shape in MODELS[model].values())


def megabytes(model: str) -> float:
    """Return the size of a model in 10^6 bytes."""
    return 4 * parameters(model) / 1e6


def plan(model: str, rounds: int, learners: int, verification: str = "all", *, masks: bool = False) -> Plan:
    """Return a plan like the paper's, with whose model the roles are told to work."""
    settings: dict[str, Any] = {"rounds": rounds, "learners": learners, "verification": verification}
    if masks:
        settings |= {"aggregation": {"rule": "fedavg", "arithmetic": "fixed"}}
        settings |= {"privacy": {"secure_aggregation": True}}
    if verification == "committee":
        settings["committee"] = COMMITTEE
    return Plan.model_validate({"name": f"bench-{model}", "data": DataPlan(name="mnist"), **settings})


def trainer(model: str) -> StubTrainer:
    """Return a trainer that changes every value, so that no block of a file is known already."""
    return StubTrainer(plan(model, 1, 1), MODELS[model], add_step_of_seed)
