"""What Flower runs: a server that averages, clients that give back what they get.

This module runs in Flower's own environment, as an app of ``flwr run`` and as a script; it imports nothing of this
project. Its settings are in the JSON file that ``FL_NODE_BENCH_FLOWER`` names: ``shapes``, ``clients``, ``rounds``,
``address`` for gRPC, and ``result``, the file for the moments at which rounds ended (seconds).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient, start_client
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig, start_server
from flwr.server import strategy as legacy
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

SETTINGS = json.loads(Path(os.environ["FL_NODE_BENCH_FLOWER"]).read_text())
CLIENTS, ROUNDS = SETTINGS["clients"], SETTINGS["rounds"]

server_app = ServerApp()
client_app = ClientApp()


def initial() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.standard_normal(shape, np.float32) for shape in SETTINGS["shapes"]]


def write(ends: list[float]) -> None:
    result = Path(SETTINGS["result"])
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(ends))
    partial.replace(result)


class Timed(FedAvg):
    """FedAvg that notes when each round ended."""

    ends: list[float]

    def aggregate_train(self, server_round, replies):
        done = super().aggregate_train(server_round, replies)
        self.ends.append(time.monotonic())
        return done


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    strategy.ends = [time.monotonic()]
    strategy.start(grid=grid, initial_arrays=ArrayRecord(initial()), num_rounds=ROUNDS)
    write(strategy.ends)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


class TimedLegacy(legacy.FedAvg):
    """The same for the gRPC server."""

    ends: list[float]

    def aggregate_fit(self, server_round, results, failures):
        done = super().aggregate_fit(server_round, results, failures)
        self.ends.append(time.monotonic())
        return done


class Client(NumPyClient):
    def fit(self, parameters, config):
        return parameters, 1, {}


def main(what: str) -> None:
    if what == "simulation":
        resources = {"num_cpus": 1, "num_gpus": 0.0}
        # Ray listens on loopback alone, without its dashboard.
        ray = {"num_cpus": CLIENTS, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        run_simulation(
            server_app, client_app, CLIENTS, backend_config={"client_resources": resources, "init_args": ray}
        )
    elif what == "server":
        strategy = TimedLegacy(
            fraction_evaluate=0.0,
            min_fit_clients=CLIENTS,
            min_available_clients=CLIENTS,
            initial_parameters=ndarrays_to_parameters(initial()),
        )
        strategy.ends = [time.monotonic()]
        start_server(server_address=SETTINGS["address"], config=ServerConfig(num_rounds=ROUNDS), strategy=strategy)
        write(strategy.ends)
    elif what == "client":
        start_client(server_address=SETTINGS["address"], client=Client().to_client(), insecure=True)


if __name__ == "__main__":
    main(sys.argv[1])
