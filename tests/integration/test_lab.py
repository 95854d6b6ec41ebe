"""`fl-node lab` as a user has it: a whole run by one command, and no process left however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from fl_node.artifacts import cid
from fl_node.runtime.waiting import wait_until

HANG = 600.0
"""Seconds after which something has hung; what is tested takes a small part of it."""
MARK = "FL_NODE_TEST_MARK"
NODES = ("header", "learner-1", "learner-2")


@dataclass
class Command:
    """One `fl-node` command of a user, and all processes that come of it."""

    process: subprocess.Popen[str]
    output: IO[str]
    mark: str
    lines: list[str] = field(default_factory=list)
    """What it wrote to standard error until now; all of it after :meth:`end`."""

    def __post_init__(self) -> None:
        self._listener = threading.Thread(target=self.listen, daemon=True)
        self._listener.start()

    def listen(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stderr)

    def says(self, text: str) -> bool:
        """Wait until it has written a line with this text."""
        return wait_until(lambda: self.process.poll() is not None or self.said(text), HANG) and self.said(text)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def end(self) -> int:
        """Wait for its end, and until all that it wrote was read; return the exit code."""
        code = self.process.wait(HANG)
        self._listener.join(HANG)
        return code

    def json(self) -> dict[str, Any]:
        """What it wrote to standard output."""
        self.output.seek(0)
        content: dict[str, Any] = json.loads(self.output.read())
        return content

    def family(self) -> list[psutil.Process]:
        """The processes that come of it and run now: they have its mark in their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kinds(self) -> set[str]:
        """What kinds of processes run now."""
        kinds = set()
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                roles = {"header", "learner", "lab", "fl_node.nodes.dev_chain"} & set(command[:5])
                kinds.add(roles.pop() if roles else Path(command[0]).name.partition("-")[0])
        return kinds

    def role(self, node: str) -> psutil.Process:
        """The process of a lab's role."""
        key = str(Path(node) / "role.key")
        (role,) = (p for p in self.family() if any(part.endswith(key) for part in p.cmdline()))
        return role

    def leaves_nothing(self) -> bool:
        # The kernel may need a moment to end the children of a process that was killed.
        return wait_until(lambda: not self.family(), HANG)


Start = Callable[..., Command]


@contextlib.contextmanager
def starter() -> Iterator[Start]:
    """A function that starts commands; whatever they leave behind is killed in the end."""
    commands: list[Command] = []

    def start(*arguments: str | Path) -> Command:
        mark = uuid.uuid4().hex
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", "fl_node", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, MARK: mark},
        )
        commands.append(Command(process, output, mark))
        return commands[-1]

    try:
        yield start
    finally:
        for command in commands:
            command.process.kill()
            command.process.wait()
            for process in command.family():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            command.output.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command."""
    with starter() as one:
        yield one


@dataclass(frozen=True)
class Finished:
    """A lab that has ended."""

    folder: Path
    said: dict[str, Any]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two labs with real nodes beside each other.

    In one the learners are ended from outside; it goes on, stays up for a while and ends with Ctrl-C. The other is
    killed itself.
    """

    troubled: Finished
    doomed: Path
    left: tuple[bool, bool]
    """Whether they left nothing."""
    kinds: set[str]
    """The processes of the one that was killed, before that."""
    status: dict[str, Any]
    """What `fl-node status` said of the one that stayed up."""
    asked: tuple[str, ...]
    """What that command did for it."""


@pytest.fixture(scope="module")
def embedded(lab_run: tuple[Path, dict[str, Any]]) -> Finished:
    return Finished(*lab_run)


@pytest.fixture(scope="module")
def pair(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    runs = tmp_path_factory.mktemp("runs")
    options = ["lab", tiny_plan, "--backend", "processes", "--runs", runs, "--json"]
    with starter() as start:
        troubled = start(*options, "--stay")
        assert troubled.says("starting 3 nodes"), troubled.lines
        doomed = start(*options, "--set", "rounds=1000", "--nodes", "2")
        assert troubled.says("learner-1: round 0: training"), troubled.lines
        troubled.role("learner-1").kill()
        assert troubled.says("learner-2: round 0: training"), troubled.lines
        troubled.role("learner-2").terminate()

        assert doomed.says("header: global weights 1: "), doomed.lines
        kinds = doomed.kinds()
        doomed.process.kill()
        doomed.end()
        left_by_doomed = doomed.leaves_nothing()

        assert troubled.says("The nodes stay up until Ctrl-C"), troubled.lines
        asked = start("status", runs / "tiny", "--json")
        assert asked.end() == 0, asked.lines
        assert asked.leaves_nothing()
        troubled.process.send_signal(signal.SIGINT)
        assert troubled.end() == 0, troubled.lines
        return Pair(
            Finished(runs / "tiny", troubled.json(), tuple(troubled.lines)),
            runs / "tiny-2",
            (troubled.leaves_nothing(), left_by_doomed),
            kinds,
            asked.json(),
            tuple(asked.lines),
        )


@pytest.fixture(params=["embedded", "processes"])
def finished(request: pytest.FixtureRequest) -> Finished:
    """A run in each backend; the second had its troubles."""
    if request.param == "embedded":
        found: Finished = request.getfixturevalue("embedded")
        return found
    pair: Pair = request.getfixturevalue("pair")
    return pair.troubled


# A run


def test_a_run_ends_well_and_says_what_came_out(finished: Finished) -> None:
    assert finished.said["audit"]["passed"]
    assert finished.said["audit"]["rounds"] == 3
    assert finished.said["audit"]["findings"] == []
    assert finished.said["final"]["accuracy"] > 0.5
    assert Path(finished.said["run"]) == finished.folder


def test_the_folder_of_a_run_has_what_the_documentation_names(finished: Finished) -> None:
    folder, said = finished.folder, finished.said
    assert cid.of_file(folder / "final.safetensors") == said["final"]["cid"]
    assert Path(said["model"]) == folder / "final.keras"
    assert (folder / "final.keras").stat().st_size > 0
    assert "The audit passed" in (folder / "report.md").read_text()
    assert Path(said["report"]) == folder / "report.html"
    assert "Audit passed" in Path(said["report"]).read_text()
    assert json.loads((folder / "report.json").read_text())["rounds"][-1]["result"]["cid"] == said["final"]["cid"]
    record = json.loads((folder / "run.json").read_text())
    assert set(record["nodes"]) == set(NODES)
    assert {"python", "keras", "web3"} <= set(record["versions"])
    for node in NODES:
        assert (folder / "logs" / f"{node}.log").read_text()
        assert stat.S_IMODE((folder / "nodes" / node / "role.key").stat().st_mode) == 0o600


def test_the_same_plan_gives_the_same_final_weights_in_every_backend(embedded: Finished, pair: Pair) -> None:
    assert pair.troubled.said["final"]["cid"] == embedded.said["final"]["cid"]


def test_learners_that_were_killed_or_stopped_from_outside_are_started_again(pair: Pair) -> None:
    again = [line for line in pair.troubled.lines if line.endswith("; restarting it")]
    assert any("learner-1 was killed by SIGKILL" in line for line in again), pair.troubled.lines
    assert any("learner-2 was stopped by a signal" in line for line in again), pair.troubled.lines


def test_labs_beside_each_other_have_folders_and_chains_of_their_own(pair: Pair) -> None:
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (pair.troubled.folder, pair.doomed))
    assert first["genesis"] != second["genesis"]
    addresses = [node[key] for run in (first, second) for node in run["nodes"].values() for key in ("rpc", "store")]
    assert len(set(addresses)) == 2 * len(NODES) + 2 * 2


def test_learners_that_share_a_node_have_accounts_of_their_own(pair: Pair) -> None:
    nodes = json.loads((pair.doomed / "run.json").read_text())["nodes"]
    assert nodes["learner-1"]["rpc"] == nodes["learner-2"]["rpc"] != nodes["header"]["rpc"]
    assert len({node["account"] for node in nodes.values()}) == len(NODES)


def test_a_lab_that_stays_can_be_looked_at_until_ctrl_c(pair: Pair) -> None:
    assert pair.status["ended"]
    assert pair.status["rounds"][-1]["result"]["cid"] == pair.troubled.said["final"]["cid"]
    # Its nodes were up; none was brought up for it.
    assert pair.asked == ()


def test_no_process_is_left_by_a_lab_that_ends_or_is_killed(pair: Pair) -> None:
    assert pair.kinds == {"lab", "header", "learner", "geth", "ipfs"}
    assert pair.left == (True, True)


def test_a_lab_that_was_killed_can_be_looked_at(pair: Pair, start: Start) -> None:
    command = start("status", pair.doomed, "--json")
    assert command.end() == 0, command.lines
    assert not command.json()["ended"]
    assert command.json()["round"] >= 1
    assert command.leaves_nothing()


def test_status_brings_the_nodes_up_and_down_again(finished: Finished, start: Start) -> None:
    command = start("status", finished.folder, "--json")
    assert command.end() == 0, command.lines
    assert command.said("restarting the run's nodes")
    status = command.json()
    assert status["ended"]
    assert status["round"] == 3
    assert status["rounds"][-1]["result"]["cid"] == finished.said["final"]["cid"]
    assert command.leaves_nothing()


def test_a_report_can_be_made_anew_from_chain_and_store(finished: Finished, start: Start, tmp_path: Path) -> None:
    command = start("report", finished.folder, "--output", tmp_path / "again", "--json")
    assert command.end() == 0, command.lines
    assert command.json()["ended"]
    assert command.json()["audit"]["passed"]
    names = ("final.keras", "final.safetensors", "plan.json", "report.html", "report.json", "report.md")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == list(names)
    for name in ("final.safetensors", "plan.json", "report.html", "report.md"):
        assert (tmp_path / "again" / name).read_bytes() == (finished.folder / name).read_bytes()
    assert command.leaves_nothing()


def test_the_report_of_a_run_under_way_has_no_final_model(pair: Pair, start: Start, tmp_path: Path) -> None:
    command = start("report", pair.doomed, "--output", tmp_path / "early", "--json")
    assert command.end() == 0, command.lines
    assert (command.json()["ended"], command.json()["model"]) == (False, None)
    assert not (tmp_path / "early" / "final.keras").exists()
    assert command.leaves_nothing()


def test_audit_brings_the_nodes_up_and_down_again(finished: Finished, start: Start) -> None:
    command = start("audit", finished.folder, "--json")
    assert command.end() == 0, command.lines
    # Plan, four global files and six local ones.
    assert {key: command.json()[key] for key in ("passed", "rounds", "files")} == {
        "passed": True,
        "rounds": 3,
        "files": 11,
    }
    assert command.leaves_nothing()


# However it ends


def interrupted(command: Command, *signals: signal.Signals) -> int:
    for one in signals:
        with contextlib.suppress(ProcessLookupError):
            command.process.send_signal(one)
        time.sleep(0.3)
    return command.end()


@pytest.mark.parametrize(
    ("backend", "step", "signals"),
    [
        ("processes", "starting 3 nodes", [signal.SIGINT]),
        ("embedded", "starting 3 nodes", [signal.SIGINT, signal.SIGINT]),
        ("processes", "training", [signal.SIGINT]),
        ("processes", "training", [signal.SIGTERM]),
        ("embedded", "training", [signal.SIGHUP]),
    ],
    ids=["ctrl-c-early", "ctrl-c-twice-early", "ctrl-c", "SIGTERM", "SIGHUP"],
)
def test_a_lab_that_is_interrupted_stops_everything(
    start: Start, tiny_plan: Path, tmp_path: Path, backend: str, step: str, signals: list[signal.Signals]
) -> None:
    command = start("lab", tiny_plan, "--backend", backend, "--runs", tmp_path, "--json")
    assert command.says(step), command.lines
    # A second Ctrl-C may come when all is stopped and Python is about to end.
    assert interrupted(command, *signals) in (130, -signal.SIGINT)
    assert command.leaves_nothing()


def test_a_run_that_never_began_is_told_in_one_line(start: Start, tmp_path: Path) -> None:
    command = start("status", tmp_path)
    assert command.end() == 2
    (line,) = command.lines
    assert line.startswith("fl-node: run ")
