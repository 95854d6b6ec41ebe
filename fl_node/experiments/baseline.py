"""The same model trained on one node with all images: what federated learning is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fl_node.data import partition
from fl_node.lab.show import rounds_table
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan.schema import Plan
from fl_node.report.collect import comparable, paper, percent
from fl_node.runtime.terminal import Numbers
from fl_node.seeds import derive


@dataclass(frozen=True)
class Baseline:
    """Accuracy on the test images after each epoch, as fractions, and how long it took."""

    accuracy: list[float]
    seconds: float


def run(plan: Plan, trainer: KerasTrainer, epochs: int, on_epoch: Callable[[int, float], None]) -> Baseline:
    """Train the plan's initial weights on all images of the plan, with one optimizer throughout.

    Parameters
    ----------
    plan
        Its rounds and learners do not count here.
    trainer
        The plan's model and data.
    epochs
        How often each image is seen.
    on_epoch
        Called with the number of each epoch, from 1, and its accuracy on the test images.
    """
    start = time.monotonic()
    samples = partition.everyone(plan)
    accuracy: list[float] = []

    def after(epoch: int, _accuracy: float, _loss: float) -> None:
        accuracy.append(trainer.evaluate_current().accuracy)
        on_epoch(epoch, accuracy[-1])

    trainer.train(trainer.initial(), samples, derive(plan.seed, "baseline"), after, epochs=epochs)
    return Baseline(accuracy, time.monotonic() - start)


def table(plan: Plan, result: Baseline) -> Numbers:
    """Return the table of epochs for a console, beside the paper's where the plan is the paper's."""
    figures = paper()["single_node_accuracy"]
    beside = comparable(plan) and len(result.accuracy) == len(figures)
    rows = [["epoch", "single node", *(["paper"] if beside else [])]]
    for epoch, accuracy in enumerate(result.accuracy):
        rows.append([str(epoch + 1), percent(accuracy), *([percent(figures[epoch])] if beside else [])])
    return rounds_table(rows)
