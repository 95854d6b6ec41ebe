"""``fl-node trainer``: the bits of Keras are those of a learner with a process of its own, whoever trained before."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_node.artifacts.model_file import Tensors
from fl_node.data import datasets, partition
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.models.shared_trainer import SharedTrainer
from fl_node.plan.schema import Plan


def plan_of(seed: int) -> Plan:
    return Plan.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "data": {"name": "digits", "train": 200, "test": 50},
            "model": {"name": "mlp"},
            "training": {"epochs": 1, "batch_size": 32},
        }
    )


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        path = Path(folder) / "trainer.sock"
        command = [sys.executable, "-P", "-m", "fl_node", "trainer", "--socket", str(path)]
        with subprocess.Popen(command) as process:
            try:
                yield process, path
            finally:
                process.send_signal(signal.SIGTERM)


def is_same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_learners_of_several_runs_get_the_bits_that_they_would_train_themselves(
    process: tuple[subprocess.Popen[bytes], Path],
) -> None:
    running, path = process
    for run in (1, 2):
        # The second is another plan, for which the process starts anew.
        plan = plan_of(run)
        first, second = SharedTrainer(plan, path), SharedTrainer(plan, path)
        shards = {1: partition.shard(plan, 1), 2: partition.shard(plan, 2)}
        shared = [
            trainer.train(trainer.initial(), shards[node_id], node_id)
            for trainer, node_id in ((first, 1), (second, 2), (first, 1))
        ]
        own = KerasTrainer(plan, datasets.load("digits"))
        assert is_same(first.initial(), own.initial())
        assert is_same(shared[0], own.train(own.initial(), shards[1], 1))
        assert is_same(shared[2], shared[0])
        assert not is_same(shared[1], shared[0])
        assert second.evaluate(shared[1]) == own.evaluate(shared[1])
    assert running.poll() is None
