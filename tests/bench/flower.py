"""What a round costs with Flower, with the same weights and clients that do nothing.

Flower is installed from ``requirements/flower.txt`` into an environment of its own in the cache, once for each state
of that file. All of it listens on loopback; its telemetry and Ray's are off.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from fl_node.errors import ProcessError
from fl_node.nodes.backends import free_ports
from fl_node.nodes.binaries import cache_folder
from fl_node.nodes.process import Child
from tests.bench.results import Part, say, seconds
from tests.bench.stub import MODELS, megabytes, parameters

CHECKOUT = Path(__file__).parents[2]
LOCK = CHECKOUT / "requirements" / "flower.txt"
APP = Path(__file__).with_name("flower_app.py")
INSTALL_PATIENCE = 1800.0
START_PATIENCE = 120.0
CHECK_EVERY = 0.1
WARM_UP = 3

PROJECT = """\
[project]
name = "bench"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "flower_app:server_app"
clientapp = "flower_app:client_app"

[tool.flwr.app.config]
"""


class NotInstalled(Exception):
    """Flower can't be had here; the text says why."""


def environment() -> Path:
    """Return the folder of Flower's programs, installed if need be.

    Raises
    ------
    NotInstalled
        The package index does not give it, or it is not for this Python.
    """
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"flower-{digest}"
    if not (folder / "installed").exists():
        say(f"installing Flower into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        python = str(folder / "bin" / "python")
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_PATIENCE)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NotInstalled(str(error)) from error
            if done.returncode:
                raise NotInstalled((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
        compile_bytecode(python, folder / "lib")
        (folder / "installed").touch()
    return folder / "bin"


def compile_bytecode(python: str, folder: Path) -> None:
    """Compile a folder's Python files now, so that no process does it within what is measured."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([python, "-m", "compileall", "-q", str(folder)], env=clean, stdout=subprocess.DEVNULL)


def measure(*, quick: bool) -> Part:
    """Measure Flower's three ways with 2 clients and the small model."""
    part = Part("Flower: seconds a round, clients that do nothing")
    try:
        programs = environment()
    except NotInstalled as error:
        part.notes.append(f"Flower can't be installed here: {error}")
        return part
    version = subprocess.run(
        [str(programs / "python"), "-c", "import importlib.metadata as m; print(m.version('flwr'))"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    ways: tuple[tuple[str, Callable[[Path, Settings], Iterator[Child]], int, int], ...] = (
        ("deployment engine (SuperLink, SuperNodes, flwr run)", _deployment, 2 if quick else 8, 1),
        ("simulation engine", _simulation, 5 if quick else 30, WARM_UP),
        ("gRPC (start_server, start_client)", _grpc, 5 if quick else 30, WARM_UP),
    )
    for name, way, rounds, warm_up in ways:
        title = (
            f"Flower {version}, {name}, {parameters('small'):,} parameters ({megabytes('small'):.1f} MB), 2 clients"
        )
        say(f"{title}: {rounds} rounds after {warm_up}")
        try:
            ends = _run(programs, way, rounds + warm_up)
        except ProcessError as error:
            part.notes.append(f"Flower {version}, {name}: {error}")
            continue
        lengths = [end - start for start, end in itertools.pairwise(ends)][warm_up:]
        part.rows.append(seconds(title, lengths, version=version))
    return part


class Settings:
    """One run of Flower in a folder."""

    def __init__(self, programs: Path, folder: Path, rounds: int) -> None:
        self.folder = folder
        self.result = folder / "result.json"
        self.ports = free_ports(4)
        file = folder / "settings.json"
        self.environment = {
            "FL_NODE_BENCH_FLOWER": str(file),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": str(folder / "home"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(folder),
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        file.write_text(
            json.dumps(
                {
                    "shapes": list(MODELS["small"].values()),
                    "clients": 2,
                    "rounds": rounds,
                    "address": f"127.0.0.1:{self.ports[0]}",
                    "result": str(self.result),
                }
            )
        )

    def child(self, name: str, *command: str) -> Child:
        """Start a process of this run."""
        return Child(name, command, self.folder / f"{name.replace(' ', '-')}.log", self.environment)


def _run(programs: Path, way: Callable[[Path, Settings], Iterator[Child]], rounds: int) -> list[float]:
    children: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="fl-node-flower-", ignore_cleanup_errors=True) as name:
        settings = Settings(programs, Path(name), rounds)
        try:
            deadline = time.monotonic() + START_PATIENCE + 30 * rounds
            for child in way(programs, settings):
                children.append(child)
            while not settings.result.exists():
                for child in children:
                    if child.process.poll():
                        raise ProcessError(f"{child.name} ended with {child.process.returncode}:{child.tail()}")
                if time.monotonic() > deadline:
                    raise ProcessError(f"no result in time:{children[-1].tail()}")
                time.sleep(CHECK_EVERY)
            ends: list[float] = json.loads(settings.result.read_text())
        finally:
            # What Flower starts is detached from what started it: it is found while its parents still run.
            started = [process for child in children for process in _descendants(child.process.pid)]
            for child in reversed(children):
                child.terminate()
            for child in reversed(children):
                child.stop()
            for process in psutil.wait_procs(started, timeout=5)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    return ends


def _descendants(process: int) -> list[psutil.Process]:
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _deployment(programs: Path, settings: Settings) -> Iterator[Child]:
    link, *nodes = settings.ports[:3]
    home = settings.folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    app = settings.folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    shutil.copy(APP, app)
    at = ("--insecure", "--host", "127.0.0.1")
    superlink = settings.child(
        "superlink",
        *(str(programs / "flower-superlink"), *at, "--port", str(link), "--disable-runtime-dependency-installation"),
    )
    yield superlink
    _listening(superlink, link)
    for number, port in enumerate(nodes, 1):
        yield settings.child(
            f"supernode {number}",
            *(str(programs / "flower-supernode"), *at, "--port", str(port), "--superlink", f"127.0.0.1:{link}"),
        )
    yield settings.child("flwr run", str(programs / "flwr"), "run", str(app), "bench")


def _simulation(programs: Path, settings: Settings) -> Iterator[Child]:
    yield settings.child("simulation", str(programs / "python"), str(APP), "simulation")


def _grpc(programs: Path, settings: Settings) -> Iterator[Child]:
    server = settings.child("server", str(programs / "python"), str(APP), "server")
    yield server
    _listening(server, settings.ports[0])
    for number in (1, 2):
        yield settings.child(f"client {number}", str(programs / "python"), str(APP), "client")


def _listening(child: Child, port: int) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        if not child.running:
            raise ProcessError(f"{child.name} ended with {child.process.returncode}:{child.tail()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(CHECK_EVERY)
    raise ProcessError(f"{child.name} does not listen after {START_PATIENCE:g} s:{child.tail()}")
