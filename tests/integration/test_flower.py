"""The aggregation rules beside Flower's strategies, whose arithmetic is another: they agree to 1e-6."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.aggregation import RULES
from tests.bench import flower

SETTINGS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"num_malicious": 2},
    "krum": {"num_malicious": 2},
    "multi_krum": {"num_malicious": 2},
    "fedavgm": {"server_learning_rate": 0.7, "momentum": 0.9},
    "fedadam": {"server_learning_rate": 0.05, "momentum": 0.9, "beta_2": 0.99, "tau": 0.001},
}
"""The rules that Flower has too; norm clipping and the asynchronous rules it has not."""
COUNTS = [600, 600, 1200, 300, 900, 700, 500, 800, 400]
VALUES, ROUNDS = 50, 3


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """Three rounds of nine learners, one of which is far from the others."""
    generator = np.random.default_rng(7)
    initial = generator.normal(size=VALUES).astype(np.float32)
    rounds = initial + generator.normal(scale=0.1, size=(ROUNDS, len(COUNTS), VALUES)).astype(np.float32)
    rounds[:, 4] += 5
    return {
        "names": list(SETTINGS),
        "initial": initial.tolist(),
        "rounds": rounds.tolist(),
        "counts": COUNTS,
        "num_malicious": 2,
    }


@pytest.fixture(scope="module")
def of_flower(asked: dict[str, Any]) -> dict[str, list[list[float]]]:
    """The weights after each round by Flower, by the rule's name."""
    script = Path(__file__).with_name("flower_reference.py")
    ended = subprocess.run(
        [flower.environment() / "python", script],
        input=json.dumps(asked),
        env={"FLWR_TELEMETRY_ENABLED": "0", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, list[list[float]]] = json.loads(ended.stdout)
    return found


@pytest.mark.nightly  # installs Flower, hundreds of megabytes, into an environment of its own
@pytest.mark.parametrize("name", SETTINGS)
def test_a_rule_makes_what_flowers_strategy_makes(
    name: str, asked: dict[str, Any], of_flower: dict[str, list[list[float]]]
) -> None:
    rule = RULES[name].model_validate({"rule": name, **SETTINGS[name]})
    initial = np.float32(asked["initial"])
    parent = {"a": initial} | {f"{kind}/a": np.zeros_like(initial) for kind in rule.state}
    for clients, expected in zip(asked["rounds"], of_flower[name], strict=True):
        made = rule.aggregate([{"a": np.float32(values)} for values in clients], COUNTS, parent)
        parent = {tensor: made.tensor(tensor) for tensor in parent}
        np.testing.assert_allclose(parent["a"], expected, rtol=0, atol=1e-6)
