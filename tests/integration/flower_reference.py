"""What Flower's strategies make of given arrays; run by the Python of Flower's own environment.

Reads a JSON object from standard input: ``rounds``, a list of rounds with the updates of each client, ``counts`` of
examples, ``initial`` weights and ``num_malicious``. Writes the weights after each round for each strategy.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.supercore.task_identity import TaskIdentity

LATE = 1_000_000
"""A round in which the correction of Adam's first steps is 1; the algorithm of Reddi et al. has none."""


def replies(clients: list[list[float]], counts: list[int]) -> list[Message]:
    """Return what clients send after they have trained."""
    return [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"a": Array(np.array(values, np.float64))}),
                    "metrics": MetricRecord({"num-examples": count}),
                }
            ),
            dst_node_id=number,
            message_type="train",
        )
        for number, (values, count) in enumerate(zip(clients, counts, strict=True), 1)
    ]


def carried_out(given: dict[str, Any], name: str) -> list[list[float]]:
    """Return the weights after each round."""
    files, malicious = len(given["counts"]), given["num_malicious"]
    made: Any = {
        "fedavg": strategy.FedAvg,
        "median": strategy.FedMedian,
        "trimmed_mean": lambda: strategy.FedTrimmedAvg(beta=malicious / files),
        "krum": lambda: strategy.Krum(num_malicious_nodes=malicious),
        "multi_krum": lambda: strategy.MultiKrum(
            num_malicious_nodes=malicious, num_nodes_to_select=files - malicious
        ),
        "fedavgm": lambda: strategy.FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
        "fedadam": lambda: strategy.FedAdam(eta=0.05, beta_1=0.9, beta_2=0.99, tau=0.001),
    }[name]()
    initial = {"a": np.array(given["initial"], np.float64)}
    made.current_arrays = ArrayRecord({"a": Array(initial["a"])}) if name == "fedavgm" else initial
    after = []
    for clients in given["rounds"]:
        arrays, _ = made.aggregate_train(LATE, replies(clients, given["counts"]))
        (weights,) = arrays.to_numpy_ndarrays()
        if name == "fedadam":
            made.current_arrays = {"a": weights}
        after.append(weights.tolist())
    return after


if __name__ == "__main__":
    logging.disable()
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as the process of a ServerApp has
    asked = json.load(sys.stdin)
    json.dump({name: carried_out(asked, name) for name in asked["names"]}, sys.stdout)
