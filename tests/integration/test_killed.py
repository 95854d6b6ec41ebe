"""Killed anywhere, it goes on: header and learners at each step, Geth and IPFS under them.

A stub stands in for the model, so that every step of a loop can be tried; chain, store and roles are real. The
roles are forked from the tests' process, which has imported already what takes long. At the end are a few kills of
processes with TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import pytest

from fl_node import events
from fl_node.artifacts.address import connect
from fl_node.artifacts.store import Store
from fl_node.audit.auditor import audit
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.keys import load_key
from fl_node.errors import ChainError
from fl_node.nodes.backends import EmbeddedBackend, Endpoint, ProcessBackend
from fl_node.plan import loading as plans
from fl_node.plan.schema import DataPlan, Plan, TrainingPlan
from fl_node.protocol import history
from fl_node.protocol.terms import terms_of
from fl_node.roles import factory
from fl_node.roles.deploy import register
from fl_node.roles.loop import Site
from fl_node.runtime.waiting import wait_until
from tests.helpers import warm
from tests.helpers.stub import StubTrainer, depend_on_everything

HANG = 600.0
"""Seconds after which something has hung; what is tested takes a small part of it."""
RUN_HANG = 600.0
"""The same for a whole run with many kills."""
AWAY = 1.0
"""Seconds in which a node under a role is away."""

PLAN = Plan(
    name="stub",
    rounds=3,
    learners=2,
    data=DataPlan(name="digits", train=40, test=10),
    training=TrainingPlan(epochs=2),
    # A header that is killed comes back sooner, and must not be replaced.
    header_timeout=RUN_HANG,
)

STEPS = {
    "header": [
        one.name
        for one in (
            events.RoundStarted,
            events.UpdateAccepted,
            events.UpdatesAggregated,
            events.FileStored,
            events.GlobalWeightsPublished,
            events.GlobalWeightsEvaluated,
            events.RunFinished,
        )
    ],
    "learner": [
        one.name
        for one in (
            events.GlobalWeightsVerified,
            events.TrainingStarted,
            events.EpochEnded,
            events.TrainingEnded,
            events.LocalWeightsEvaluated,
            events.LocalWeightsWritten,
            events.FileStored,
            events.LocalWeightsPublished,
            events.GlobalWeightsAttested,
            events.RunFinished,
        )
    ],
}
"""The events of all that the roles do, in the order in which they do it."""

# Of a client that is older than its urllib3; see IpfsStore.
pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")


def make_trainer(plan: Plan) -> StubTrainer:
    """Return a trainer of a few numbers, with training that depends on all that a real one depends on."""
    return StubTrainer(plan, {"bias": np.zeros(3, np.float32), "kernel": (40,)}, depend_on_everything)


@dataclass(frozen=True)
class Trap:
    """Where a process gets a signal: at what it says (of a round), at a call, or after so many lines of this package.

    The calls are ``send`` before a transaction is sent, ``_receipt`` after that, and ``replace``, by which a file
    that was written appears in its place.
    """

    what: str
    round: int | None = None
    count: int = 1
    signal: signal.Signals = signal.SIGKILL

    def set(self) -> None:
        """Set it in this process."""
        if self.what == "line":
            self._trace()
        elif self.what == "replace":
            self._before(Path, "replace")
        elif self.what in ("send", "_receipt"):
            self._before(Chain, self.what)
        else:
            logging.getLogger("fl_node").addHandler(_AtEvent(self))

    def spring(self) -> None:
        os.kill(os.getpid(), self.signal)

    def _before(self, owner: Any, name: str) -> None:
        calls = itertools.count(1)
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == self.count:
                self.spring()
            return original(*args, **kwargs)

        setattr(owner, name, call)

    def _trace(self) -> None:
        lines = itertools.count(1)

        def line(_frame: FrameType, event: str, _arg: Any) -> Any:
            if event == "line" and next(lines) == self.count:
                self.spring()
            return line

        sys.settrace(lambda frame, _event, _arg: line if "fl_node" in frame.f_code.co_filename else None)


class _AtEvent(logging.Handler):
    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self._trap = trap

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = getattr(record, "fields", {})
        if getattr(record, "event", "") == self._trap.what and self._trap.round in (None, fields.get("round")):
            # Only once: one that is stopped here may come here again.
            logging.getLogger("fl_node").removeHandler(self)
            self._trap.spring()


class _ToFile(logging.FileHandler):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"event": getattr(record, "event", ""), "message": record.getMessage()})


@dataclass
class Meanwhile:
    """What the tests do while a role is in its trap, and a while after it goes on."""

    then: Callable[[], None]
    later: Callable[[], None] = lambda: None


@dataclass
class Run:
    """One run of the stub's plan, with each role a process."""

    ends: Mapping[str, Endpoint]
    keys: Mapping[str, Path]
    folder: Path
    plan: Plan = PLAN
    address: str = ""
    _children: dict[str, ForkProcess] = field(default_factory=dict)
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def deploy(self) -> None:
        """Do what comes before the roles; the initial weights are left to the header."""
        chain = Chain(self.ends["header"].rpc, load_key(self.keys["header"]))
        plan_file = self.folder / "plan.json"
        plan_file.write_bytes(self.plan.to_bytes())
        plan_cid = connect(self.ends["header"].store).add(plan_file)
        self.address = str(chain.deploy(plan_cid, terms_of(self.plan)).contract)
        ids = range(1, self.plan.learners + 1)
        register(self.contract(), {n: str(load_key(self.keys[f"learner-{n}"]).address) for n in ids})
        for node in self.keys:
            assert wait_until(functools.partial(self._has_contract, node), HANG)

    def _has_contract(self, node: str) -> bool:
        # Another node has it a moment later.
        with contextlib.suppress(ChainError):
            return bool(self.contract(node))
        return False

    def contract(self, node: str = "header") -> Contract:
        return Chain(self.ends[node].rpc, load_key(self.keys[node])).contract(self.address)

    def store(self) -> Store:
        return connect(self.ends["header"].store)

    def go(
        self, traps: Mapping[str, Sequence[Trap]] | None = None, meanwhile: Mapping[Trap, Meanwhile] | None = None
    ) -> None:
        """Run the roles to the end.

        A role that its trap killed is started again, with its next trap; one that its trap stopped goes on. Before
        that, what is to be done meanwhile is done.
        """
        waiting = {node: deque((traps or {}).get(node, ())) for node in self.keys}
        end = time.monotonic() + RUN_HANG
        try:
            for node in self.keys:
                self._start(node, waiting[node])
            while self._children:
                assert time.monotonic() < end, f"hangs with {waiting}: {self._tails()}"
                multiprocessing.connection.wait([child.sentinel for child in self._children.values()], 0.02)
                for node, child in list(self._children.items()):
                    self._look(node, child, waiting[node], meanwhile or {})
                self._do_what_is_due()
        finally:
            for child in self._children.values():
                child.kill()
                child.join()
            self._do_what_is_due(everything=True)

    def _look(self, node: str, child: ForkProcess, traps: deque[Trap], meanwhile: Mapping[Trap, Meanwhile]) -> None:
        code = child.exitcode
        killed = code == -signal.SIGKILL
        if code is not None:
            del self._children[node]
        if traps and (killed or (code is None and traps[0].signal == signal.SIGSTOP and _is_stopped(child))):
            trap = traps.popleft()
            if trap in meanwhile:
                meanwhile[trap].then()
                self._later.append((time.monotonic() + AWAY, meanwhile[trap].later))
            if killed:
                self._start(node, traps)
            else:
                os.kill(int(child.pid or 0), signal.SIGCONT)
        elif code is not None:
            assert code == 0, f"{node} ended with {code}: {self._tails()}"
            left = [trap for trap in traps if trap.what != "line"]
            assert not left, f"{node} ended and did not come to {left}: {self._tails()}"

    def _do_what_is_due(self, *, everything: bool = False) -> None:
        # Here and not in a thread: a child of the backends ends with the thread that started it.
        for due, later in list(self._later):
            if everything or time.monotonic() >= due:
                self._later.remove((due, later))
                later()

    def _start(self, node: str, traps: Sequence[Trap]) -> None:
        child = multiprocessing.get_context("fork").Process(target=self._play, args=(node, next(iter(traps), None)))
        child.daemon = True
        child.start()
        self._children[node] = child

    def _play(self, node: str, trap: Trap | None) -> None:
        """Be a role."""
        logger = logging.getLogger("fl_node")
        logger.handlers[:] = [_ToFile(self.folder / f"{node}.log")]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        work = self.folder / node
        work.mkdir(exist_ok=True)
        site = Site(
            Chain(self.ends[node].rpc, load_key(self.keys[node])),
            self.contract(node),
            connect(self.ends[node].store),
            work,
            patience=HANG,
        )
        if trap:
            trap.set()
        if node == "header":
            factory.run_header(site, make_trainer)
        else:
            factory.run_learner(site, make_trainer)
        sys.settrace(None)

    def said(self, node: str) -> Counter[str]:
        """How often a role said what, over all its processes."""
        lines = (self.folder / f"{node}.log").read_text().splitlines()
        return Counter(json.loads(line)["event"] for line in lines)

    def _tails(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "".join(f"\n{log.name}:\n" + "\n".join(log.read_text().splitlines()[-8:]) for log in logs)


def _is_stopped(child: ForkProcess) -> bool:
    try:
        return bool(psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def check(run: Run, final: str) -> None:
    """Check that a run has ended as the undisturbed one did, with no round lost or doubled."""
    contract, plan = run.contract(), run.plan
    log = contract.log()
    published = [entry for entry in log if entry.name == "GlobalWeightSet"]
    assert [entry.round for entry in published] == list(range(plan.rounds + 1))
    local = Counter((entry.round, entry.node_id) for entry in log if entry.name == "LocalWeightSet")
    assert local == {(r, n): 1 for r in range(plan.rounds) for n in range(1, plan.learners + 1)}
    assert history.read(run.contract()).is_finalized(plan.rounds)
    assert published[-1].cid == final
    folder = run.folder / "audit"
    folder.mkdir()
    result = audit(contract, run.store(), folder, make_trainer)
    assert result.passed, result.findings
    assert result.notes == []


MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def embedded(
    accounts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmbeddedBackend, Mapping[str, Endpoint]]]:
    """An embedded chain and a folder for files; each test has a contract of its own there."""
    running = EmbeddedBackend(tmp_path_factory.mktemp("embedded"), accounts)
    try:
        yield running, running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def undisturbed(
    embedded: tuple[EmbeddedBackend, Mapping[str, Endpoint]],
    keys: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A run in which nothing happens."""
    run = Run(embedded[1], keys, tmp_path_factory.mktemp("undisturbed"))
    run.deploy()
    run.go()
    return run


@pytest.fixture(scope="module")
def final(undisturbed: Run) -> str:
    """The CID that every run of the plan has to end with."""
    return str(undisturbed.contract().global_weight_at(PLAN.rounds))


@pytest.fixture
def run(embedded: tuple[EmbeddedBackend, Mapping[str, Endpoint]], keys: dict[str, Path], tmp_path: Path) -> Run:
    """A run in the embedded backend, deployed."""
    made = Run(embedded[1], keys, tmp_path)
    made.deploy()
    return made


@pytest.fixture
def real_run(backend: ProcessBackend, keys: dict[str, Path], tmp_path: Path) -> Run:
    """A run on real Geth and IPFS nodes, deployed."""
    return _on(backend, keys, tmp_path, PLAN)


def _on(backend: ProcessBackend, keys: dict[str, Path], folder: Path, plan: Plan) -> Run:
    ends = {node: Endpoint(backend.geth[node].rpc, backend.ipfs[node].api) for node in keys}
    made = Run(ends, keys, folder, plan)
    made.deploy()
    return made


IN_BACKGROUND = (events.GlobalWeightsEvaluated.name, events.GlobalWeightsVerified.name)
"""Steps that have no place in the order of the others."""
OF_GLOBAL_WEIGHTS = (*IN_BACKGROUND, events.GlobalWeightsPublished.name)
"""Steps that are named by the round that global weights start, also by that of the last ones."""


def rounds_of(step: str) -> list[int]:
    """The rounds in which a role says that it has done a step."""
    if step in (events.RunFinished.name, events.GlobalWeightsAttested.name):
        return [PLAN.rounds]
    return list(range(PLAN.rounds + (step in OF_GLOBAL_WEIGHTS)))


def each_step(role: str) -> list[Trap]:
    """A trap at each step in each round, in the order in which a process that starts again and again meets them."""
    traps = [(round_, step) for step in STEPS[role] for round_ in rounds_of(step) if step not in IN_BACKGROUND]
    if role == "header":
        # What the header publishes starts the next round.
        traps.sort(key=lambda trap: (trap[0], [events.GlobalWeightsPublished.name, *STEPS[role]].index(trap[1])))
    else:
        traps.sort(key=lambda trap: (trap[0], STEPS[role].index(trap[1])))
    return [Trap(step, round_) for round_, step in traps]


# The embedded backend: every step


def test_the_run_that_all_others_are_compared_with_is_sound(undisturbed: Run, final: str, tmp_path: Path) -> None:
    check(undisturbed, final)


@pytest.mark.parametrize("role", STEPS)
def test_the_steps_are_all_that_a_role_says(undisturbed: Run, role: str) -> None:
    said = undisturbed.said("header" if role == "header" else "learner-1")
    assert set(said) - {events.Waiting.name} == set(STEPS[role])


@pytest.mark.parametrize(("role", "step"), [(role, step) for role, steps in STEPS.items() for step in steps])
def test_a_role_is_killed_at_a_step_in_each_round(run: Run, final: str, tmp_path: Path, role: str, step: str) -> None:
    node = "header" if role == "header" else "learner-1"
    run.go({node: [Trap(step, round_) for round_ in rounds_of(step)]})
    check(run, final)


@pytest.mark.parametrize("node", ["header", "learner-1"])
def test_a_role_is_killed_before_it_sends_a_transaction(run: Run, final: str, tmp_path: Path, node: str) -> None:
    # Its successor sends that one and dies before its own second, so that each is in another round.
    run.go({node: [Trap("send"), Trap("send", count=2), Trap("send", count=2)]})
    check(run, final)


@pytest.mark.parametrize("node", ["header", "learner-1"])
def test_a_role_is_killed_when_it_has_sent_a_transaction_and_seen_no_receipt(
    run: Run, final: str, tmp_path: Path, node: str
) -> None:
    run.go({node: [Trap("_receipt")] * 3})
    check(run, final)


@pytest.mark.parametrize(("node", "files"), [("header", 6), ("learner-1", 5)])
def test_a_role_is_killed_before_a_file_that_it_wrote_is_in_its_place(
    run: Run, final: str, tmp_path: Path, node: str, files: int
) -> None:
    run.go({node: [Trap("replace", count=count) for count in range(1, files + 1)]})
    check(run, final)


def test_all_roles_are_killed_at_every_step_of_one_run(run: Run, final: str, tmp_path: Path) -> None:
    run.go({node: each_step("header" if node == "header" else "learner") for node in run.keys})
    check(run, final)


@pytest.mark.parametrize("seed", range(3))
def test_all_roles_are_killed_at_any_line_of_code(run: Run, final: str, tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    run.go({node: [Trap("line", count=choice.randint(1, 5000)) for _ in range(10)] for node in run.keys})
    check(run, final)


def test_a_role_that_lost_its_folder_goes_on(run: Run, final: str, tmp_path: Path) -> None:
    traps = {
        "header": Trap("updates_aggregated", 1),
        "learner-1": Trap("local_weights_written", 1),
        "learner-2": Trap("training_started", 2),
    }

    def empty(node: str) -> None:
        shutil.rmtree(tmp_path / node)
        (tmp_path / node).mkdir()

    lost = {trap: Meanwhile(functools.partial(empty, node)) for node, trap in traps.items()}
    run.go({node: [trap] for node, trap in traps.items()}, lost)
    check(run, final)


@pytest.mark.parametrize(("node", "step"), [("header", "updates_aggregated"), ("learner-1", "file_stored")])
def test_the_embedded_chain_is_killed_under_a_role(
    accounts: dict[str, str], keys: dict[str, Path], final: str, tmp_path: Path, node: str, step: str
) -> None:
    # A chain of its own: one that starts again carries out all its blocks, also those of other tests' runs.
    (tmp_path / "run").mkdir()
    backend = EmbeddedBackend(tmp_path / "chain", accounts)
    try:
        run = Run(backend.start(), keys, tmp_path / "run")
        run.deploy()
        chain = backend._child
        assert chain is not None

        def kill() -> None:
            chain.process.kill()
            chain.process.wait(HANG)

        trap = Trap(step, 1, signal=signal.SIGSTOP)
        run.go({node: [trap]}, {trap: Meanwhile(kill, backend.check)})
        check(run, final)
    finally:
        backend.stop()


# Real Geth and IPFS


def _away(backend: ProcessBackend, name: str, how: signal.Signals) -> Meanwhile:
    """A node's Geth or IPFS ends and is started again."""

    def end() -> None:
        backend.children[name].process.send_signal(how)
        backend.children[name].process.wait(HANG)

    return Meanwhile(end, functools.partial(backend.restart, name))


def test_all_roles_are_killed_at_every_step_of_one_run_on_real_nodes(real_run: Run, final: str) -> None:
    real_run.go({node: each_step("header" if node == "header" else "learner") for node in real_run.keys})
    check(real_run, final)


def test_roles_are_killed_when_they_have_sent_a_transaction_to_real_geth(real_run: Run, final: str) -> None:
    real_run.go({node: [Trap("_receipt")] * 3 for node in real_run.keys})
    check(real_run, final)


@pytest.mark.parametrize(
    ("child", "node", "step", "how"),
    [
        ("header geth", "header", "updates_aggregated", signal.SIGKILL),
        ("header geth", "header", "file_stored", signal.SIGKILL),
        ("learner-1 geth", "learner-1", "training_started", signal.SIGKILL),
        ("learner-1 geth", "learner-1", "file_stored", signal.SIGTERM),
        ("header ipfs", "header", "round_started", signal.SIGKILL),
        ("header ipfs", "header", "updates_aggregated", signal.SIGKILL),
        ("learner-1 ipfs", "learner-1", "local_weights_written", signal.SIGKILL),
        ("learner-1 ipfs", "learner-1", "file_stored", signal.SIGTERM),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_geth_or_ipfs_of_a_node_is_away_for_a_while(
    backend: ProcessBackend, real_run: Run, final: str, child: str, node: str, step: str, how: signal.Signals
) -> None:
    # The role stands still until its node is gone, so that it is in the middle of a step when it finds out.
    trap = Trap(step, 1, signal=signal.SIGSTOP)
    real_run.go({node: [trap]}, {trap: _away(backend, child, how)})
    check(real_run, final)


@pytest.mark.parametrize("node", ["header", "learner-1"])
def test_geth_is_killed_right_after_it_took_a_transaction(
    backend: ProcessBackend, real_run: Run, final: str, node: str
) -> None:
    trap = Trap("_receipt", count=2, signal=signal.SIGSTOP)
    real_run.go({node: [trap]}, {trap: _away(backend, f"{node} geth", signal.SIGKILL)})
    check(real_run, final)


def test_a_file_that_is_away_for_longer_than_the_plan_allows_is_taken_when_it_is_back(
    backend: ProcessBackend, keys: dict[str, Path], tmp_path: Path
) -> None:
    run = _on(backend, keys, tmp_path, PLAN.model_copy(update={"fetch_timeout": AWAY / 4}))
    # At its second publication the learner has verified what it trained from, for which it needs its IPFS.
    trap = Trap("send", count=2, signal=signal.SIGSTOP)
    away = _away(backend, "learner-1 ipfs", signal.SIGKILL)

    def back() -> None:
        refused = wait_until(lambda: run.said("header")["update_rejected"] > 0, HANG)
        away.later()
        assert refused

    run.go({"learner-1": [trap]}, {trap: Meanwhile(away.then, back)})
    check(run, str(run.contract().global_weight_at(PLAN.rounds)))


# Processes with TensorFlow


def test_a_learner_killed_within_an_epoch_and_a_header_killed_at_aggregation_change_nothing(
    lab_run: tuple[Path, dict[str, Any]],
    tiny_plan: Path,
    embedded: tuple[EmbeddedBackend, Mapping[str, Endpoint]],
    keys: dict[str, Path],
    tmp_path: Path,
) -> None:
    run = Run(embedded[1], keys, tmp_path, plans.load(tiny_plan))
    run.deploy()
    traps = {"header": ("updates_aggregated", 1), "learner-1": ("batch", 1), "learner-2": ("batch", 2)}

    def play(node: str) -> None:
        where, round_ = traps[node]
        arguments = [node.partition("-")[0], "--contract", run.address, "--key", keys[node]]
        arguments += ["--rpc", run.ends[node].rpc, "--store", run.ends[node].store]
        arguments += ["--folder", tmp_path / node, "--patience", str(HANG)]
        killed = warm.run("tests.helpers.killed_role", where, str(round_), *arguments)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        ended = warm.fl_node(*arguments)
        assert ended.returncode == 0, ended.stderr

    with ThreadPoolExecutor() as roles:
        for played in [roles.submit(play, node) for node in traps]:
            played.result()
    assert run.contract().global_weight_at(run.plan.rounds) == lab_run[1]["final"]["cid"]
    assert [e.round for e in run.contract().log() if e.name == "GlobalWeightSet"] == list(range(run.plan.rounds + 1))
