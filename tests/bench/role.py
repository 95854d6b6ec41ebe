"""One role in a process of its own, as ``fl-node header`` and ``fl-node learner`` are, with a stub for its model.

The functions that a round spends its time in are wrapped here, in this process alone: each call becomes a span of
kind, start and end (seconds of the machine's monotonic clock), written as JSON when the role ends, beside the seconds
of CPU that the role had taken at the end of each transaction, and the memory that it had at the start and at most.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

import fl_node.roles.loop
import fl_node.roles.masking
import fl_node.roles.synchronous
from fl_node.artifacts import model_file
from fl_node.artifacts.address import connect
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.chain.client import Chain
from fl_node.chain.keys import load_key
from fl_node.roles import factory
from fl_node.roles.journal import Recorder
from fl_node.roles.loop import Site
from fl_node.runtime import logs
from tests.bench.memory import Watch, peak
from tests.bench.stub import trainer as stub_trainer
from tests.helpers.stub import StubTrainer

P = ParamSpec("P")
R = TypeVar("R")

TRANSACTION = "transaction"
OPENING = "opening's transaction"
MASKS = "masks"
Span = tuple[str, float, float]


class Clock:
    """Spans of the calls of this process; of calls within calls, in one thread, the outermost counts."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.cpu: list[float] = []
        self._thread = threading.local()

    def timed(self, kind: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that does the same and leaves a span."""

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if getattr(self._thread, "inside", False):
                return function(*args, **kwargs)
            self._thread.inside = True
            start = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.spans.append((kind, start, time.monotonic()))
                if kind == TRANSACTION:
                    self.cpu.append(time.process_time())
                self._thread.inside = False

        return wrapper

    def watch(self, owner: Any, name: str, kind: str) -> None:
        """Time a function of a module or an object from now on."""
        setattr(owner, name, self.timed(kind, getattr(owner, name)))


def main(
    role: str,
    model: Annotated[str, typer.Option()],
    rpc: Annotated[str, typer.Option()],
    store: Annotated[str, typer.Option()],
    contract: Annotated[str, typer.Option()],
    key: Annotated[Path, typer.Option()],
    folder: Annotated[Path, typer.Option()],
    spans: Annotated[Path | None, typer.Option()] = None,
    memory: Annotated[bool, typer.Option(help="Look at this process's memory ten times a second.")] = False,
) -> None:
    """Run a role until the run has ended or a signal ends it; without spans it has a journal instead."""
    signal.signal(signal.SIGTERM, _stop)
    logs.configure(folder.name)
    clock = Clock()
    chain = Chain(rpc, load_key(key))
    deployed, files = chain.contract(contract), connect(store)
    secret = key.with_suffix(".secret")
    deployed.listen()
    trainer = stub_trainer(model)
    if spans is None:
        share = files.add_named if isinstance(files, IpfsStore) else None
        recorder = Recorder(folder, deployed, role, load_key(key), share)
        _play(role, Site(chain, deployed, files, folder, journal=recorder, secret=secret), trainer)
        return
    site = Site(chain, deployed, files, folder, secret=secret)
    for owner, name, kind in (
        (site.store, "add", "store add"),
        (site.store, "fetch", "store fetch"),
        (site.contract, "set_local_weight", TRANSACTION),
        (site.contract, "set_global_weight", TRANSACTION),
        (site.contract, "open_masks", OPENING),
        (site.contract, "openings_and_next_keys", "reading the chain"),
        (site.contract, "view", "reading the chain"),
        (site.contract, "local_weights", "reading the chain"),
        (site.contract, "local_weight_at", "reading the chain"),
        (site.contract, "state", "reading the chain"),
        (chain, "block_number", "reading the chain"),
        (fl_node.roles.synchronous, "global_file", "aggregation"),
        (fl_node.roles.synchronous, "reveal", "aggregation"),
        (fl_node.roles.synchronous, "unmasked_file", "aggregation"),
        (fl_node.roles.masking, "masked_file", MASKS),
        (fl_node.roles.masking, "open_shares", MASKS),
        (fl_node.roles.loop, "_wait", "waiting"),
        (model_file, "read", "checking and writing files"),
        (model_file, "write", "checking and writing files"),
        (trainer, "train", "stub training"),
    ):
        clock.watch(owner, name, kind)
    watch = Watch() if memory else None
    try:
        _play(role, site, trainer)
    finally:
        seen = watch.record() if watch is not None else {}
        spans.write_text(json.dumps({"spans": clock.spans, "cpu": clock.cpu, "peak": peak(), "memory": seen}))


def _play(role: str, site: Site, trainer: StubTrainer) -> None:
    if role == "header":
        factory.run_header(site, lambda _plan: trainer)
    else:
        factory.run_learner(site, lambda _plan: trainer)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    typer.run(main)
