"""A large model on three nodes: memory, time and disk, beside what IPFS alone takes for the same files."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fl_node.errors import ProcessError
from fl_node.nodes import binaries
from fl_node.nodes.ipfs import IpfsNode
from fl_node.protocol.names import HEADER, learner_name
from tests.bench.nodes import Nodes, nodes, wait_for
from tests.bench.results import Part, Row, say
from tests.bench.role import TRANSACTION, Span
from tests.bench.stub import SIZED, megabytes, shapes_of

LEARNERS = 6
HOSTS = 2
MEGABYTES, QUICK = 200, 24
MOST_MEMORY = 300.0
"""MB that the header may need beyond what it has before its first file."""
MOST_TIME = 1.5
"""How many times as long as IPFS alone its transfers, and the whole round, may take."""
LOOK_EVERY = 1.0
PATIENCE = 60.0
SLOWEST = 5.0
"""MB a second, of all files that move in a run together, below which something hangs."""
FILES = {"none": 38, "all": 95}
"""Files of the model's size that all folders of a run have together at most, by ``verification``."""
FETCH = "store fetch"
HEADER_ADDS, HEADER_FETCHES = "the header adds a file", f"the header fetches {LEARNERS} files"
ADD = ("add", "--quieter", "--cid-version=0", "--raw-leaves=false", "--chunker=size-1048576", "--progress=false")
"""As the roles add files."""


def measure(*, quick: bool, size: int = MEGABYTES) -> Part:
    """Run a round of a model of ``size`` MB, and move the same files with the command ``ipfs`` alone."""
    model = f"{SIZED}{QUICK if quick else size}"
    actual, count = megabytes(model), len(shapes_of(model))
    part = Part(f"A model of {actual:.0f} MB ({count} tensors), {LEARNERS} learners on {1 + HOSTS} nodes")
    rounds: dict[str, _Round] = {}
    for verification in FILES:
        try:
            with nodes(LEARNERS, HOSTS) as network:
                _check_room(network.folder, actual * FILES[verification])
                rounds[verification] = round_ = _run(network, model, verification)
            held = _above_idle(round_.memory[HEADER])
            say(
                f"verification {verification}: a round of {round_.seconds:.0f} s, the header {held:.0f} MB above idle"
            )
        except _NoRoomError as error:
            part.notes.append(f"verification {verification}: not measured, {error}")
    with nodes(LEARNERS, HOSTS) as network:
        _check_room(network.folder, actual * FILES["none"])
        alone = _alone(network, actual)
    for verification, round_ in rounds.items():
        part.rows += _rows(verification, round_, alone)
    part.rows += [Row(f"ipfs alone: {what}", took, "s") for what, took in alone.items()]
    return part


class _NoRoomError(ProcessError):
    """The disk is too small for a run."""


def _check_room(folder: Path, wanted: float) -> None:
    free = shutil.disk_usage(folder).free / 1e6
    if wanted > free:
        raise _NoRoomError(f"it takes up to {wanted / 1e3:.0f} GB on disk, and {free / 1e3:.0f} GB are free")


def _alone(network: Nodes, size: float) -> dict[str, float]:
    """Move the files of a round with the command ``ipfs`` of the same nodes, and return the seconds of each step."""
    say(f"moving {LEARNERS + 1} files of {size:.0f} MB with ipfs alone")
    names = [learner_name(node_id) for node_id in range(1, LEARNERS + 1)]
    files = {name: network.folder / f"{name}.file" for name in (HEADER, *names)}
    for path in files.values():
        with path.open("wb") as file:
            for _ in range(round(size)):
                file.write(os.urandom(1_000_000))
    took: dict[str, float] = {}
    with _timed(took, HEADER_ADDS):
        (cid,) = _together([lambda: _ipfs(network, HEADER, *ADD, str(files[HEADER]))])
    with _timed(took, f"{LEARNERS} learners fetch it"):
        _together([_cat(network, name, cid) for name in names])
    with _timed(took, f"{LEARNERS} learners add a file each"):
        cids = _together([lambda name=name: _ipfs(network, name, *ADD, str(files[name])) for name in names])  # type: ignore[misc]
    with _timed(took, HEADER_FETCHES):
        _together([_cat(network, HEADER, cid) for cid in cids])
    return took


@contextmanager
def _timed(took: dict[str, float], what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    took[what] = time.monotonic() - start


def _together(work: list[Callable[[], str]]) -> list[str]:
    """Do pieces of work at the same time and return their results."""
    results: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda number=number, one=one: results.update({number: one()}))
        for number, one in enumerate(work)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(results) < len(work):
        raise ProcessError("a transfer by ipfs alone failed")
    return [results[number] for number in range(len(work))]


def _cat(network: Nodes, name: str, cid: str) -> Callable[[], str]:
    target = network.folder / f"{name}-{cid}"

    def fetch() -> str:
        try:
            with target.open("wb") as file:
                _ipfs(network, name, "cat", "--progress=false", cid, output=file.fileno())
        finally:
            target.unlink()
        return cid

    return fetch


def _ipfs(network: Nodes, name: str, *arguments: str, output: int = subprocess.PIPE) -> str:
    """Run the command ``ipfs`` for a role's node and return what it prints."""
    node = _node_of(network, name)
    command = [str(binaries.install(binaries.KUBO)), *arguments]
    environment = {**os.environ, **node.environment}
    done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, timeout=1800)
    if done.returncode:
        raise ProcessError(f"ipfs {arguments[0]}: {done.stderr.decode()}")
    return "" if done.stdout is None else done.stdout.decode().strip()


def _node_of(network: Nodes, name: str) -> IpfsNode:
    store = network.endpoints[name].store
    return next(node for node in network.backend.ipfs.values() if node.api == store)


@dataclass(frozen=True)
class _Round:
    """What a round took: spans and memory of each role, its seconds, and bytes on disk."""

    spans: Mapping[str, list[Span]]
    memory: Mapping[str, Mapping[str, int]]
    start: float
    end: float
    disk: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """From the first learner's first request until the new global weights are in a block."""
        return self.end - self.start

    def spent(self, name: str, kind: str) -> float:
        """Return the seconds that a role spent on calls of a kind."""
        return sum(last - first for what, first, last in self.spans[name] if what == kind and last <= self.end)

    def fetched(self) -> float:
        """Return the seconds in which the header fetched local weights."""
        begun = [
            first
            for name in self.spans
            if name != HEADER
            for kind, first, _ in self.spans[name]
            if kind == TRANSACTION
        ]
        return _covered(
            [(first, last) for kind, first, last in self.spans[HEADER] if kind == FETCH and last > min(begun)]
        )


def _run(network: Nodes, model: str, verification: str) -> _Round:
    """Run a round."""
    say(f"{LEARNERS} learners, {megabytes(model):.0f} MB, verification {verification}: a round")
    names = [HEADER, *(learner_name(node_id) for node_id in range(1, LEARNERS + 1))]
    contract = network.deploy(model, 1, verification)
    with _Disk(network.folder) as disk:
        children = [network.role(name, contract, model, memory=True) for name in names]
        wait_for(children, PATIENCE + FILES[verification] * megabytes(model) / SLOWEST)
    if contract.round() != 1:
        raise ProcessError("the round did not end")
    spans = {name: network.spans(name)[0] for name in names}
    memory = {name: network.record(name)["memory"] for name in names}
    start = min(begin for name in names[1:] for kind, begin, _ in spans[name] if kind == FETCH)
    end = next(end for kind, _, end in spans[HEADER] if kind == TRANSACTION)
    return _Round(spans, memory, start, end, dict(disk.most))


def _above_idle(memory: Mapping[str, int], kind: str = "") -> float:
    """Return how much more memory a role had at most than before its work, in MB; all of it, or of one kind."""
    return (memory[kind or "peak"] - memory[f"idle_{kind}" if kind else "idle"]) / 1e6


def _rows(verification: str, one: _Round, alone: Mapping[str, float]) -> list[Row]:
    # Verification moves more files than ipfs alone does here, so its times have no target.
    most_time = MOST_TIME if verification == "none" else None
    header, learners = one.memory[HEADER], [name for name in one.memory if name != HEADER]
    files = f"{LEARNERS} files"
    rows = [
        Row("header's peak above idle", _above_idle(header), "MB", MOST_MEMORY, dict(header)),
        Row("of it anonymous memory", _above_idle(header, "anonymous"), "MB"),
        Row("of it mapped files", _above_idle(header, "mapped"), "MB"),
        Row("largest peak of a learner above idle", max(_above_idle(one.memory[name]) for name in learners), "MB"),
        Row("the round", one.seconds, "s"),
        Row("the round / ipfs alone", one.seconds / sum(alone.values()), "×", most_time),
        Row("header adds its file / ipfs alone", one.spent(HEADER, "store add") / alone[HEADER_ADDS], "×", most_time),
        Row(f"header fetches {files} / ipfs alone", one.fetched() / alone[HEADER_FETCHES], "×", most_time),
        Row(f"header checks {files}", one.spent(HEADER, "checking and writing files"), "s"),
        Row("header aggregates them", one.spent(HEADER, "aggregation"), "s"),
        Row("a learner adds its file, median", statistics.median(one.spent(n, "store add") for n in learners), "s"),
        Row("roles' files on disk, most", one.disk["work"] / 1e9, "GB"),
        Row("nodes' files on disk, most", one.disk["nodes"] / 1e9, "GB"),
    ]
    return [replace(row, name=f"verification {verification}: {row.name}") for row in rows]


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return how many seconds lie within any of these spans."""
    total, until = 0.0, 0.0
    for first, last in sorted(spans):
        total += max(last - max(first, until), 0.0)
        until = max(until, last)
    return total


class _Disk:
    """The most that the folders of a network take on disk, in bytes, while this is entered."""

    def __init__(self, folder: Path) -> None:
        self.most = {"work": 0, "nodes": 0}
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Disk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for name in self.most:
                self.most[name] = max(self.most[name], _on_disk(self._folder / name))
            if self._ended.wait(LOOK_EVERY):
                return


def _on_disk(folder: Path) -> int:
    sizes: dict[int, int] = {}  # files with several links count once
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = (Path(root) / name).lstat()
                sizes[status.st_ino] = 512 * status.st_blocks
    return sum(sizes.values())
