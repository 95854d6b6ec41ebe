"""A long run with ``retention`` on real nodes: whether disk and memory stay flat, and nothing is lost."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from fl_node.artifacts.address import connect
from fl_node.artifacts.ipfs_api import IpfsApi
from fl_node.audit.auditor import audit
from fl_node.chain.contract import Contract
from fl_node.errors import ProcessError
from fl_node.nodes.process import Child, stop_all
from fl_node.protocol import history, journal
from fl_node.protocol.names import HEADER, learner_name
from tests.bench.nodes import Nodes, nodes
from tests.bench.results import Part, Row, console, say
from tests.bench.stub import megabytes, trainer

MODEL = "tiny"
LEARNERS = 2
ROUNDS = 2000
"""Rounds, unless ``FL_SOAK_ROUNDS`` gives another number."""
KEPT = 10
SAMPLES = 20
"""Times that disk and memory are measured."""
API_TIMEOUT = 30.0
ROUND_PATIENCE = 30.0
"""Seconds without another round after which the run counts as stuck."""
MEMORY_TARGET = 10.0
"""MB that a role may grow by from a quarter of the run to its end."""
METADATA, PAGE = 600, 4096
"""Bytes of a global file beside its tensors, and of a page on disk."""
DISK_TARGET = 10.0
"""MB that an IPFS node may grow by meanwhile, beyond the global files and the journal."""


@dataclass(frozen=True)
class Sample:
    """What was measured at a round, in bytes by process or folder."""

    round: int
    seconds: float
    memory: Mapping[str, int]
    disk: Mapping[str, int]


def measure(*, quick: bool) -> Part:
    """Run some thousand rounds, and measure all processes and folders now and then."""
    rounds = 60 if quick else int(os.environ.get("FL_SOAK_ROUNDS", str(ROUNDS)))
    what = f"{LEARNERS} learners, files of {megabytes(MODEL):.3f} MB"
    part = Part(f"Soak: {rounds} rounds, retention of {KEPT}, {what}")
    with nodes(LEARNERS) as network:
        contract = network.deploy(MODEL, rounds, retention=KEPT)
        names = [HEADER, *(learner_name(node_id) for node_id in range(1, LEARNERS + 1))]
        roles = {name: network.role(name, contract, MODEL, spans=False) for name in names}
        try:
            samples = _follow(network, contract, roles, rounds)
        finally:
            stop_all(list(roles.values()))
        # A run that is too slow can be ended by SIGTERM to its three roles; what it did until then counts.
        part.name += f"; {contract.round()} rounds were carried out"
        _report(part, samples)
        _audit(part, network, contract)
    return part


def _follow(network: Nodes, contract: Contract, roles: Mapping[str, Child], rounds: int) -> list[Sample]:
    """Measure until the run has ended.

    Raises
    ------
    ProcessError
        A role failed, or no round ends any more.
    """
    samples: list[Sample] = []
    began = seen_at = time.monotonic()
    seen, step = -1, max(rounds // SAMPLES, 1)
    while any(role.running for role in roles.values()):
        for name, role in roles.items():
            if not role.running and role.process.returncode != 0:
                raise ProcessError(f"{name} ended with {role.process.returncode}:{role.tail()}")
        current = contract.round()
        if current != seen:
            seen, seen_at = current, time.monotonic()
        elif time.monotonic() - seen_at > ROUND_PATIENCE:
            raise ProcessError(f"round {current} does not end:{roles[HEADER].tail()}")
        if current >= len(samples) * step and all(role.running for role in roles.values()):
            samples.append(_sample(network, roles, current, time.monotonic() - began))
            _show(samples[-1])
        time.sleep(0.2)
    return samples


def _sample(network: Nodes, roles: Mapping[str, Child], round_: int, seconds: float) -> Sample:
    children = {**roles, **network.backend.children}
    memory = {name: psutil.Process(child.process.pid).memory_info().rss for name, child in children.items()}
    disk = {
        **{f"{name} ipfs": _size(node.folder) for name, node in network.backend.ipfs.items()},
        **{f"{name} geth": _size(network.folder / "nodes" / name / "geth") for name in network.backend.ipfs},
        **{f"{name} work": network.size(name) for name in roles},
        "logs of roles": _size(network.folder / "logs"),
    }
    return Sample(round_, seconds, memory, disk)


def _size(folder: Path) -> int:
    """Return the bytes that the files in a folder take on disk."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512  # noqa: PTH118 - fewer objects
            except FileNotFoundError:
                continue  # deleted meanwhile
    return total


def _show(sample: Sample) -> None:
    figures = {**{f"{name} RSS": size for name, size in sample.memory.items()}, **sample.disk}
    text = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in figures.items())
    say(f"round {sample.round}, {sample.seconds:.0f} s, MB: {text}")


def _report(part: Part, samples: list[Sample]) -> None:
    early, last = samples[len(samples) // 4], samples[-1]
    rounds = last.round - early.round
    every = {"samples": [[one.round, one.seconds, dict(one.memory), dict(one.disk)] for one in samples]}
    part.rows.append(
        Row("seconds per round, mean", last.seconds / max(last.round, 1), "s", None, every),
    )
    for name, size in last.memory.items():
        target = None if " " in name else MEMORY_TARGET
        row = f"memory of {name}, from round {early.round} to {last.round}: {size / 1e6:.1f} MB, growth"
        part.rows.append(Row(row, (size - early.memory[name]) / 1e6, "MB", target))
    # On disk, file and pin take whole pages each.
    pages = math.ceil((1e6 * megabytes(MODEL) + METADATA) / PAGE) + 1
    stays = rounds * pages * PAGE / 1e6
    for name, size in last.disk.items():
        growth = (size - early.disk[name]) / 1e6
        if name.endswith(" ipfs"):
            node = name.removesuffix(" ipfs")
            copy = (last.disk[f"{node} work"] - early.disk[f"{node} work"]) / 1e6
            row = f"disk of {name}, {size / 1e6:.1f} MB: growth beyond {rounds} global files and a journal"
            part.rows.append(Row(row, growth - stays - copy, "MB", DISK_TARGET))
        else:
            part.rows.append(Row(f"disk of {name}, the same rounds: {size / 1e6:.1f} MB, growth", growth, "MB"))


def _audit(part: Part, network: Nodes, contract: Contract) -> None:
    say("auditing")
    store = connect(network.endpoints[learner_name(1)].store)
    journals = [path for name in network.names for path in network.files(name, journal.FILE)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        audited = audit(contract, store, Path(folder), lambda _plan: trainer(MODEL), journals=journals)
    took = time.monotonic() - start
    if not audited.passed:
        raise ProcessError(f"the audit failed: {audited.findings[0]}")
    for note in audited.notes:
        console.print(note)
    part.rows += [
        Row("rounds recomputed by the audit", audited.rounds - len(audited.pruned), "rounds"),
        Row("rounds pruned as agreed", len(audited.pruned), "rounds"),
        Row("audit", took, "s"),
    ]
    part.rows += [Row(f"pins of {name}", count, "pins") for name, count in _pins(network, contract).items()]


def _pins(network: Nodes, contract: Contract) -> dict[str, int]:
    """Return how many local files each node still keeps."""
    published = {str(entry.cid) for entry in history.read(contract).publications}
    counts = {}
    for name, node in network.backend.ipfs.items():
        api = IpfsApi(f"http://127.0.0.1:{node.api_port}/api/v0/", API_TIMEOUT)
        pins = api.answer("pin/ls", {"type": "recursive"})["Keys"]
        counts[name] = len(published & pins.keys())
    return counts
