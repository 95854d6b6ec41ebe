"""`fl-node sweep` with a scheduler and workers that are processes of their own, on loopback, over TLS."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fl_node.experiments import sweep_keys
from fl_node.nodes.backends import Ports

PLAN = """
name = "small"
rounds = 1
learners = 3
[data]
name = "digits"
train = 300
test = 200
[model]
name = "mlp"
[training]
epochs = 1
"""
OPTIONS = ("--rules", "fedavg", "--attacks", "sign_flip", "--attackers", "0.3", "--seeds", "1")
"""Two runs, one without attackers."""
PATIENCE = 600.0


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


class Machines:
    """The processes of a test, each with its log; those that are left end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        sweep_keys.create(self.keys, ["here", "scheduler", "one", "two"], 1)
        self._ports = Ports()
        self.address = f"tls://{self.place()}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-P", "-m", "fl_node", *arguments]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        return self.processes[name]

    def place(self) -> str:
        """Return an address on which a process can listen."""
        (port,) = self._ports.take(1)
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self._ports.close()

    def scheduler(self) -> subprocess.Popen[bytes]:
        place = self.address.removeprefix("tls://")
        started = self.start("scheduler", "sweep-scheduler", "--listen", place, "--tls", str(self.keys / "scheduler"))
        until(lambda: "listening" in self.log("scheduler"))
        return started

    def worker(self, name: str) -> subprocess.Popen[bytes]:
        where = ["--listen", self.place(), "--tls", str(self.keys / name), "--name", name]
        started = self.start(name, "sweep-worker", self.address, *where)
        until(lambda: "connected" in self.log(name))
        return started

    def sweep(self, results: str, *more: str) -> subprocess.Popen[bytes]:
        (self.folder / "small.toml").write_text(PLAN)
        where = ["--scheduler", self.address, "--tls", str(self.keys / "here")]
        where += ["--results", str(self.folder / results)]
        return self.start(results, "sweep", str(self.folder / "small.toml"), *OPTIONS, *where, *more)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def children(self, name: str) -> list[psutil.Process]:
        """Return the processes of the runs of a worker."""
        return psutil.Process(self.processes[name].pid).children(recursive=True)

    def cells(self, results: str) -> dict[str, Any]:
        found = {path.name: json.loads(path.read_text()) for path in (self.folder / results).rglob("cells/*.json")}
        for cell in found.values():
            del cell["seconds"]
        return found


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_workers_give_the_same_cells_and_a_lost_worker_only_time(machines: Machines) -> None:
    machines.scheduler()
    one = machines.worker("one")
    machines.worker("two")
    client = machines.sweep("remote")
    until(lambda: machines.children("one") and machines.children("two"))
    runs = machines.children("one")
    one.kill()
    assert client.wait(PATIENCE) == 0, machines.log("remote")
    assert not psutil.wait_procs(runs, timeout=PATIENCE)[1]
    log = machines.log("remote")
    assert "2 of 2: " in log
    here = machines.start(
        "local", "sweep", str(machines.folder / "small.toml"), *OPTIONS, "--results", f"{machines.folder}/local"
    )
    assert here.wait(PATIENCE) == 0, machines.log("local")
    assert machines.cells("remote") == machines.cells("local")
    assert len(machines.cells("remote")) == 2
    (remote,) = (machines.folder / "remote").rglob("sweep.json")
    (local,) = (machines.folder / "local").rglob("sweep.json")
    assert remote.read_bytes() == local.read_bytes()


def test_a_lost_scheduler_is_reported_and_the_next_call_resumes(machines: Machines) -> None:
    scheduler = machines.scheduler()
    worker = machines.worker("one")
    more = ("--attacks", "sign_flip,scale")
    client = machines.sweep("remote", *more)
    until(lambda: machines.cells("remote") and machines.children("one"))
    runs = machines.children("one")
    scheduler.kill()
    assert client.wait(PATIENCE) == 9, machines.log("remote")
    assert worker.wait(PATIENCE) == 9
    assert "Traceback" not in machines.log("remote") + machines.log("one")
    assert not psutil.wait_procs(runs, timeout=PATIENCE)[1]
    kept = machines.cells("remote").keys()
    assert 0 < len(kept) < 3
    scheduler.wait()
    machines.scheduler()
    machines.worker("two")
    assert machines.sweep("remote", *more).wait(PATIENCE) == 0, machines.log("remote")
    assert machines.log("remote").count("(kept)") == len(kept)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_the_sweep_ends_early_its_runs_on_workers_end(machines: Machines, number: signal.Signals) -> None:
    machines.scheduler()
    machines.worker("one")
    client = machines.sweep("remote")
    until(lambda: machines.children("one"))
    client.send_signal(number)
    assert client.wait(PATIENCE) == (130 if number != signal.SIGKILL else -number)
    until(lambda: not machines.children("one"))
    for name in ("one", "scheduler"):
        machines.processes[name].send_signal(signal.SIGTERM)
        assert machines.processes[name].wait(PATIENCE) == 0, machines.log(name)
    assert not list(machines.folder.rglob("*.partial"))


def test_a_run_whose_workers_are_all_lost_is_repeated_at_most_a_few_times(machines: Machines) -> None:
    machines.scheduler()
    client = machines.sweep("remote", "--attackers", "0")
    for _ in range(4):
        worker = machines.worker("one")
        until(lambda: machines.children("one"))
        worker.kill()
        worker.wait()
    assert client.wait(PATIENCE) == 9
    assert "4 workers were lost" in machines.log("remote")
    assert not machines.cells("remote")


def test_a_run_that_takes_too_long_is_ended_and_named(machines: Machines) -> None:
    machines.scheduler()
    machines.worker("one")
    client = machines.sweep("remote", "--time-limit", "1")
    assert client.wait(PATIENCE) == 9
    assert machines.log("remote").count("--time-limit sets another limit") == 2
    until(lambda: not machines.children("one"))


def test_nobody_without_keys_of_the_same_authority_is_served(machines: Machines, tmp_path: Path) -> None:
    machines.scheduler()
    sweep_keys.create(tmp_path / "other", ["here"], 1)
    host, port = machines.address.removeprefix("tls://").split(":")
    contexts = []
    for keys in (None, tmp_path / "other" / "here"):
        context = ssl.create_default_context(cafile=machines.keys / "here" / "ca.pem")
        context.check_hostname = False
        if keys:
            context.load_cert_chain(keys / "cert.pem", keys / "key.pem")
        contexts.append(context)
    for context in contexts:
        with (
            socket.create_connection((host, int(port)), PATIENCE) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(plain).recv(1)
    ports = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(machines.processes["scheduler"].pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in ports} == {"127.0.0.1"}
    wrong = machines.start(
        "wrong",
        "sweep-worker",
        machines.address,
        "--listen",
        machines.place(),
        "--tls",
        f"{tmp_path}/other/here",
    )
    assert wrong.wait(PATIENCE) == 9
    assert "Traceback" not in machines.log("wrong")
