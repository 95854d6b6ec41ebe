"""Real Geth and IPFS nodes on loopback, and roles that run on them."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from fl_node.artifacts.address import connect
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ProcessError
from fl_node.nodes.backends import Endpoint, ProcessBackend
from fl_node.nodes.process import Child, stop_all
from fl_node.protocol.names import HEADER, learner_name
from fl_node.roles.deploy import deploy
from tests.bench.results import say
from tests.bench.role import Span
from tests.bench.stub import plan, trainer

CHECK_EVERY = 0.2


class Nodes:
    """A header's node and some for learners, each with a Geth and an IPFS; learners may have to share them."""

    def __init__(self, folder: Path, learners: int, hosts: int) -> None:
        self.folder = folder
        self.learners = learners
        self.hosts = hosts
        self.names = [HEADER, *(learner_name(node_id) for node_id in range(1, learners + 1))]
        self.accounts = {name: create_key(self.key(name)) for name in self.names}
        self.backend = ProcessBackend(folder / "nodes", self.accounts, say, nodes=1 + hosts)
        self.endpoints: dict[str, Endpoint] = {}
        self._runs = 0

    def start(self) -> None:
        """Bring the nodes up."""
        self.endpoints = dict(self.backend.start())

    def key(self, name: str) -> Path:
        """Return the key file of a node's role."""
        return self.folder / "keys" / f"{name}.key"

    def chain(self, name: str) -> Chain:
        """Return a node's chain, with the account of its role."""
        return Chain(self.endpoints[name].rpc, load_key(self.key(name)))

    def deploy(
        self,
        model: str,
        rounds: int,
        verification: str = "all",
        learners: int | None = None,
        *,
        masks: bool = False,
        retention: int | None = None,
    ) -> Contract:
        """Start a run of all learners, or of the first ones: plan, contract, learners and initial weights."""
        learners = learners or self.learners
        ids = {node_id: self.accounts[learner_name(node_id)] for node_id in range(1, learners + 1)}
        store = connect(self.endpoints[HEADER].store)
        self._runs += 1
        folder = self._work(HEADER)
        settings = plan(model, rounds, learners, verification, masks=masks, retention=retention)
        return deploy(self.chain(HEADER), store, folder, settings, ids, trainer(model))

    def role(
        self,
        name: str,
        contract: Contract,
        model: str,
        profiles: Path | None = None,
        *,
        spans: bool = True,
        memory: bool = False,
    ) -> Child:
        """Start the role of a node in a process of its own; without spans it has a journal, as on hosts."""
        python = [sys.executable]
        if profiles is not None:
            profiles.mkdir(parents=True, exist_ok=True)
            python += ["-m", "cProfile", "-o", str(profiles / f"{model}-{self.learners}-{name}.prof")]
        command = [
            *python,
            *("-m", "tests.bench.role", HEADER if name == HEADER else "learner"),
            *("--model", model),
            *("--rpc", self.endpoints[name].rpc),
            *("--store", self.endpoints[name].store),
            *("--contract", contract.address),
            *("--key", str(self.key(name))),
            *("--folder", str(self._work(name))),
            *(("--spans", str(self._work(name) / "spans.json")) if spans else ()),
            *(("--memory",) if memory else ()),
        ]
        return Child(name, command, self.folder / "logs" / f"{name}.log")

    def spans(self, name: str) -> tuple[list[Span], list[float]]:
        """Return the spans that a role left in the latest run, and its seconds of CPU after each transaction."""
        record = self.record(name)
        return [(kind, start, end) for kind, start, end in record["spans"]], record["cpu"]

    def files(self, name: str, pattern: str) -> list[Path]:
        """Return the files that a role left in the latest run."""
        return sorted(self._work(name).glob(pattern))

    def size(self, name: str) -> int:
        """Return the bytes of the files in a role's folder."""
        return sum(path.stat().st_size for path in self._work(name).rglob("*") if path.is_file())

    def peak(self, name: str) -> int:
        """Return the most memory that a role had in the latest run, in bytes."""
        return int(self.record(name)["peak"])

    def record(self, name: str) -> dict[str, Any]:
        """Return all that a role left in the latest run; see :mod:`tests.bench.role`."""
        record: dict[str, Any] = json.loads((self._work(name) / "spans.json").read_text())
        return record

    def cpu(self, kind: str) -> float:
        """Return the seconds of CPU that all nodes' Geth (``geth``) or IPFS (``ipfs``) took until now."""
        children = [child for name, child in self.backend.children.items() if name.endswith(kind)]
        times = [psutil.Process(child.process.pid).cpu_times() for child in children]
        return sum(spent.user + spent.system for spent in times)

    def _work(self, name: str) -> Path:
        folder = self.folder / "work" / str(self._runs) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def nodes(learners: int, hosts: int | None = None) -> Iterator[Nodes]:
    """Bring up the header's node and ``hosts`` more (one a learner if None), and down at the end."""
    with tempfile.TemporaryDirectory(prefix="fl-node-bench-") as name:
        network = Nodes(Path(name), learners, hosts or learners)
        try:
            network.start()
            yield network
        finally:
            network.backend.stop()


def wait_for(children: list[Child], patience: float) -> None:
    """Wait until all processes have ended well.

    Raises
    ------
    ProcessError
        One failed, or it takes longer than ``patience`` seconds; all are stopped then.
    """
    deadline = time.monotonic() + patience
    try:
        while any(child.running for child in children):
            for child in children:
                if not child.running and child.process.returncode != 0:
                    raise ProcessError(f"{child.name} ended with {child.process.returncode}:{child.tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"the run takes longer than {patience:g} s:{children[0].tail()}")
            time.sleep(CHECK_EVERY)
    finally:
        stop_all(children)
    for child in children:
        if child.process.returncode != 0:
            raise ProcessError(f"{child.name} ended with {child.process.returncode}:{child.tail()}")
