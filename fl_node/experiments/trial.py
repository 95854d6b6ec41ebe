"""A run of a sweep as a worker of Dask carries it out: a process of its own, with a time limit."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from fl_node.errors import ConfigError, ProcessError
from fl_node.nodes.process import Child, python
from fl_node.runtime import scratch, strict_json

POLL = 1.0
"""Seconds between two looks at a process: has it taken too long, is it still wanted."""
_OF_MACHINE = ("python", "machine", "not pinned")


@dataclass(frozen=True)
class Trial:
    """What a worker is told of a run."""

    title: str
    plan: bytes
    """In canonical form."""
    limit: float
    """Seconds that it may take."""
    backend: str = "embedded"
    has_backdoor: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    """The packages that the worker must have; empty if it is part of this process."""


def required_versions() -> dict[str, str]:
    """Return the versions of packages on which the bits of a result depend, those of this process."""
    from fl_node.lab import run_folder

    return {name: version for name, version in run_folder.versions().items() if name not in _OF_MACHINE}


def carry_out(trial: Trial) -> dict[str, Any]:
    """Carry a run out on the worker that calls this, and return its result.

    Raises
    ------
    ConfigError
        The worker was not started by ``fl-node``, or has other versions of packages.
    ProcessError
        The run failed or took too long.
    """
    worker = get_worker()
    runner = worker.plugins.get(TrialRunner.name)
    if not isinstance(runner, TrialRunner):
        raise ConfigError(f"worker {worker.name} can't carry out runs; start it with fl-node sweep-worker")
    if trial.versions:
        own = required_versions()
        if wrong := [name for name, version in trial.versions.items() if own.get(name) != version]:
            differences = ", ".join(
                f"{name} {own.get(name, 'missing')}, not {trial.versions[name]}" for name in wrong
            )
            raise ConfigError(f"worker {worker.name} has other packages, so its bits may differ: {differences}")
    return runner.run(trial, str(worker.get_current_task()))


class TrialRunner(WorkerPlugin):
    """Carries out the runs of a worker; their processes end with it, or when nobody wants their results."""

    name = "fl-node-trials"

    def __init__(self, data_dir: Path | None, modules: Path | None = None) -> None:
        self._data = [] if data_dir is None else ["--data-dir", str(data_dir)]
        self._data += [] if modules is None else ["--modules", str(modules)]
        self._running: dict[str, Child | None] = {}
        self._unwanted: set[str] = set()

    def transition(self, key: Any, start: str, finish: str, **_more: Any) -> None:
        """End the process of a run that was cancelled; Dask calls this whenever the state of a task changes.

        Parameters
        ----------
        key
            The name of the task.
        start, finish
            Its state before, and the one that is asked for.
        _more
            What later versions of Dask may add.
        """
        if start == "executing" and finish == "released":
            self._end(str(key))

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - the interface of Dask
        """End all processes; Dask calls this when the worker ends."""
        for key in list(self._running):
            self._end(key)

    def run(self, trial: Trial, key: str) -> dict[str, Any]:
        """Carry a run out and return its result.

        Parameters
        ----------
        trial
            The run.
        key
            The name of the task that this is for Dask.

        Raises
        ------
        ProcessError
            The run failed, took too long, or is no longer wanted.
        """
        self._running[key] = None
        try:
            with scratch.folder("fl-sweep-") as folder:
                return self._run(trial, key, folder)
        finally:
            self._running.pop(key, None)
            self._unwanted.discard(key)

    def _end(self, key: str) -> None:
        if key in self._running:
            self._unwanted.add(key)
            if child := self._running[key]:
                child.terminate()

    def _run(self, trial: Trial, key: str, work: Path) -> dict[str, Any]:
        plan, folder, log = work / "plan.json", work / "run", work / "log"
        plan.write_bytes(trial.plan)
        simulate = python("fl_node.lab.simulate", str(plan), "--folder", str(folder), *self._data)
        start = time.monotonic()

        def process(command: Sequence[str]) -> None:
            self._process(trial, key, command, log, start + trial.limit)

        if trial.backend == "embedded":
            process(simulate)
            result: dict[str, Any] = strict_json.read(folder / "result.json")
            return result
        lab = python("fl_node", "lab", str(plan), "--backend", trial.backend, "--json")
        process([*lab, "--runs", str(work), "--name", folder.name, *self._data])
        result = _of_lab(folder, time.monotonic() - start)
        if trial.has_backdoor:
            # A lab's report does not say how often a backdoor works.
            process([*simulate, "--final", str(folder / "final.safetensors")])
            (last,) = strict_json.read(folder / "result.json")["rounds"]
            result["rounds"][-1]["backdoor"] = last["backdoor"]
        return result

    def _process(self, trial: Trial, key: str, command: Sequence[str], log: Path, end: float) -> None:
        child = Child(trial.title, command, log)
        self._running[key] = child
        try:
            while True:
                try:
                    code = child.process.wait(POLL)
                    break
                except subprocess.TimeoutExpired:
                    if key in self._unwanted:
                        child.stop()
                    elif time.monotonic() > end:
                        raise TookTooLong(
                            f"{trial.title} took longer than {trial.limit:g} s; --time-limit sets another limit"
                        ) from None
        finally:
            child.stop()
        if key in self._unwanted:
            raise ProcessError(f"{trial.title} is no longer wanted")
        if code:
            raise ProcessError(f"{trial.title} ended with exit code {code}:{child.tail()}")


class TookTooLong(ProcessError):
    """A run did not end within its time limit; others may."""


def _of_lab(folder: Path, seconds: float) -> dict[str, Any]:
    """Return what a lab's report says, in the form of a simulated run's result."""
    report = strict_json.read(folder / "report.json")
    results = [report["initial"], *(entry["result"] for entry in report["rounds"])]
    rounds = [{**result, "round": number} for number, result in enumerate(results)]
    return {"plan": report["plan"], "rounds": rounds, "seconds": seconds, "versions": report.get("versions", {})}
