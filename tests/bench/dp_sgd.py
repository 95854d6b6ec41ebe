"""What clipping example by example and noise add to a training step; both kinds of step take turns in one process.

Run as a program, it trains, in a process of its own, and prints the seconds of processor time per step as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

from fl_node.data.datasets import DataSet
from fl_node.errors import ProcessError
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan.schema import Plan
from tests.bench.results import Part, Row, say

MODELS = ("mlp", "cnn")
AIM = 6.0
BATCH, BATCHES = 64, 20
TURNS = 5
PATIENCE = 900.0
KEY = bytes(range(32))


def measure(*, quick: bool) -> Part:
    """Compare a private step with a plain one, for each of two models."""
    part = Part(f"DP-SGD: a step of {BATCH} examples, on average, of processor time")
    for model in MODELS:
        say(f"training {model} with and without DP-SGD")
        command = [sys.executable, "-m", "tests.bench.dp_sgd", model, str(2 if quick else TURNS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise ProcessError(f"the training of {model} failed: {done.stderr[-500:]}")
        seconds = json.loads(done.stdout.splitlines()[-1])
        part.rows += [
            Row(f"{model}, plain step", 1000 * seconds["plain"], "ms"),
            Row(f"{model}, private step", 1000 * seconds["private"], "ms"),
            Row(f"{model}, private ÷ plain", seconds["private"] / seconds["plain"], "×", AIM),
        ]
    return part


def _plan(model: str, *, private: bool) -> Plan:
    content: dict[str, Any] = {
        "name": "bench",
        "data": {"name": "mnist"},
        "model": {"name": model},
        "training": {"epochs": 1, "batch_size": BATCH},
    }
    if private:
        content["privacy"] = {"dp": {"noise_multiplier": 1.0}}
    return Plan.model_validate(content)


def _take_turns(model: str, turns: int) -> dict[str, float]:
    """Return the least seconds per step of each kind; the first turn, in which TensorFlow compiles, is left out."""
    random = np.random.default_rng(1)
    count = BATCH * BATCHES
    images, labels = random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count)
    data = DataSet("mnist", "random images", images, labels, images[:10], labels[:10])
    trainers = {kind: KerasTrainer(_plan(model, private=kind == "private"), data) for kind in ("plain", "private")}
    seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
    for _ in range(turns + 1):
        for kind, trainer in trainers.items():
            began = time.process_time()
            trainer.train(trainer.initial(), np.arange(count), 1, secret=KEY)
            seconds[kind].append((time.process_time() - began) / BATCHES)
    return {kind: min(some[1:]) for kind, some in seconds.items()}


if __name__ == "__main__":
    print(json.dumps(_take_turns(sys.argv[1], int(sys.argv[2]))))
