"""A whole run on one machine: nodes, header and learners as processes, then audit and report."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_node import events
from fl_node.artifacts.address import connect
from fl_node.artifacts.model_file import Shapes
from fl_node.artifacts.store import Store
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.keys import create_key, load_key
from fl_node.data import loading
from fl_node.errors import ChainUnreachable, ProcessError
from fl_node.lab import run_folder as run
from fl_node.lab.fault_model import ROUND, Outcome, Scenario, Trace
from fl_node.lab.run_folder import Node, Run
from fl_node.models.ensemble import trainer_for
from fl_node.models.trainer import Score, Trainer
from fl_node.nodes import backends, binaries
from fl_node.nodes.backends import Backend, EmbeddedBackend, Endpoint, OwnChain, OwnChainBackend, ProcessBackend
from fl_node.nodes.ipfs import IpfsNode
from fl_node.nodes.process import Child, python, stop_all
from fl_node.plan.schema import Plan
from fl_node.protocol.names import HEADER, learner_name, standby_name
from fl_node.report.finalize import finalize
from fl_node.roles.deploy import deploy
from fl_node.runtime import logs

RESTARTS = 20
CHECK_EVERY = 0.5
ENVIRONMENT = {logs.FORMAT: "json", **dict.fromkeys(("FL_NODE_TRAINER", "FL_NODE_ACCEPT", "FL_NODE_LEARNERS"), "")}
"""Of the roles: logs that can be read again, and nothing that this machine has set for the role of another run."""
SILENCE = 180.0
"""Seconds without an event of any role after which a scenario that waits for one fails."""


@dataclass
class Progress:
    """What a lab is doing, for display."""

    plan: Plan
    step: str = ""
    doing: dict[str, str] = field(default_factory=dict)
    local: dict[int, dict[int, float | None]] = field(default_factory=dict)
    """Accuracy of local weights by round and nodeId; None for masked ones."""
    globals_: dict[int, float] = field(default_factory=dict)
    """Accuracy of global weights by their round."""
    round: int = 0


Watch = Callable[[Progress, Mapping[str, Any] | None], None]
"""Called after each step with the state and, if a role spoke, its event."""


@dataclass(frozen=True)
class _Due:
    """What a scenario does when a role has logged an event."""

    node: str
    event: Mapping[str, object]
    deed: Callable[[], None]
    what: str
    """What did not happen if the event does not come."""


class Lab:
    """One run in a folder of its own.

    Parameters
    ----------
    plan
        The run's plan.
    backend
        ``embedded`` or ``processes``; it does not count with ``own_chain``.
    folder
        The run's folder, which must be there.
    data_dir
        Where the data set is; looked for as :func:`fl_node.data.datasets.load` does if None.
    modules
        Where custom modules are; else ``FL_NODE_MODULES`` counts.
    watch
        Called as the lab goes on.
    scenario
        Injects a fault into the run, and tells afterwards what came of it in :attr:`trace`.
    tensorboard
        Where learners write event files, below the run's folder; nowhere if None.
    own_chain
        The user's own chain, if the run is on it.
    standby
        Give each learner a standby header.
    nodes
        Geth and IPFS nodes, the header's included, that the learners of ``processes`` share; one for each learner if
        None.
    """

    def __init__(
        self,
        plan: Plan,
        backend: str,
        folder: Path,
        data_dir: Path | None,
        watch: Watch,
        scenario: Scenario | None = None,
        modules: Path | None = None,
        tensorboard: Path | None = None,
        own_chain: OwnChain | None = None,
        *,
        standby: bool = False,
        nodes: int | None = None,
    ) -> None:
        self.folder = folder
        self.trace = Trace()
        self.shapes: Shapes = {}
        self.roles: dict[str, Child] = {}
        self._scenario = scenario
        self._held: set[str] = set()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._due: list[_Due] = []
        self._heard = 0.0
        self._began = 0.0
        self._ended: float | None = None
        self._record: Run | None = None
        self._plan = plan
        self._data_dir = data_dir
        self._modules = modules
        self._tensorboard = folder / tensorboard if tensorboard else None
        self._watch = watch
        self._progress = Progress(plan)
        self._nodes = [HEADER, *(learner_name(n) for n in range(1, plan.learners + 1))]
        self._standby = standby
        self._accounts = {node: create_key(self._key(node)) for node in self._nodes}
        self._backend: Backend = backends.of(backend, folder / "nodes", self._accounts, self._step, own_chain, nodes)
        self._node_count = nodes or len(self._nodes)
        self._events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._stopped: set[str] = set()
        self._unfit: dict[int, set[str]] = {}
        self._restarts = 0
        self._commands: dict[str, list[str]] = {}
        self._scores: dict[str, Score] = {}

    def run(self, *, stay: Callable[[Outcome, Run], None] | None = None) -> Outcome:
        """Carry out the run, and stop all processes at its end.

        Parameters
        ----------
        stay
            Called at the end while all nodes are still up.

        Raises
        ------
        ProcessError
            A node or a role does not start, or ended with an error.
        ChainUnreachable
            A node of the chain does not answer.
        FLNodeError
            Another permanent error, such as data that can't be loaded.
        """
        try:
            with ThreadPoolExecutor(1) as pool:
                # TensorFlow takes as long to come up as the nodes do.
                trainer_comes = pool.submit(self._trainer)
                self._step(f"starting {self._node_count} node{'s'[: self._node_count != 1]} ({self._backend.name})")
                endpoints = self._backend.start()
                self._step("loading the model")
                trainer = trainer_comes.result()
            contract, store, record = self._deploy(endpoints, trainer)
            self._follow(record, endpoints)
            seconds = (self._ended or time.monotonic()) - self._began
            outcome = self._finish(contract, store, record, trainer, seconds)
            if stay is not None:
                stay(outcome, record)
            return outcome
        except ChainUnreachable as error:
            if isinstance(self._backend, EmbeddedBackend) and (ended := self._backend.ended):
                raise ProcessError(ended) from error
            raise
        finally:
            try:
                self._step("stopping")
            finally:
                # Roles first, so that none complains of a node that is gone.
                stop_all(list(self.roles.values()))
                self._backend.stop()

    # What a scenario may do.

    @property
    def plan(self) -> Plan:
        """The run's plan."""
        return self._plan

    @property
    def nodes(self) -> list[str]:
        """The names of header and learners."""
        return list(self._nodes)

    def hold(self, node: str) -> None:
        """End a role and don't start it again until it is released; before the start: don't start it."""
        self._held.add(node)
        if node in self.roles:
            self.roles[node].stop()

    def release(self, node: str) -> None:
        """Start a role that was held."""
        if node in self._held:
            self._held.discard(node)
            self._stopped.discard(node)
            self._start(node)

    def later(self, seconds: float, deed: Callable[[], None]) -> None:
        """Do something after some seconds; the lab does not end before."""
        self._timers.append((time.monotonic() + seconds, deed))

    def when(
        self, node: str, event: type[events.Event], deed: Callable[[], None], what: str, **fields: object
    ) -> None:
        """Do something when a role has logged an event; the lab fails if no role logs anything for long.

        Parameters
        ----------
        node, event, deed, what
            As for :meth:`fl_node.lab.fault_model.Controls.when`.
        **fields
            Values that fields of the event must have.
        """
        if next(self.trace.matching(node, event.name, **fields), None) is not None:
            deed()
        else:
            self._due.append(_Due(node, {"event": event.name, **fields}, deed, what))

    def daemons(self) -> Mapping[str, Child]:
        """Return the processes of the nodes, by names such as ``learner-1 geth``."""
        return self._backend.children if isinstance(self._backend, ProcessBackend) else {}

    def swarm(self) -> Mapping[str, IpfsNode]:
        """Return the nodes of the swarm, by the names of their nodes."""
        return self._backend.ipfs if isinstance(self._backend, ProcessBackend) else {}

    def split(self, alone: str | None) -> None:
        """Connect a node's Geth to no other, or all to one another if None."""
        if isinstance(self._backend, ProcessBackend):
            self._backend.split(alone)

    def date_back(self, seconds: float) -> None:
        """Put the clock of the embedded chain back by so many seconds."""
        if isinstance(self._backend, EmbeddedBackend):
            self._backend.date_back(seconds)

    def seconds(self) -> float:
        """Return the seconds since the start of the roles."""
        return time.monotonic() - self._began

    def as_node(self, node: str) -> tuple[Contract, Store]:
        """Return contract and store as a node sees them, with the account of its role.

        Raises
        ------
        ProcessError
            The run is not deployed yet.
        """
        if self._record is None:
            raise ProcessError("the run is not deployed")
        recorded = self._record.nodes[node]
        chain = Chain(recorded.rpc, load_key(self._key(node)))
        return chain.contract(self._record.contract), connect(recorded.store)

    def _step(self, text: str) -> None:
        self._progress.step = text
        self._tell(None)

    def _tell(self, event: Mapping[str, Any] | None) -> None:
        """Show how the lab goes on; a full disk under what it prints is no reason to give the run up."""
        with contextlib.suppress(OSError):
            self._watch(self._progress, event)

    def _key(self, node: str) -> Path:
        return self.folder / "nodes" / node / "role.key"

    def _trainer(self) -> Trainer:
        self._plan, data = loading.load_complete(self._plan, self._data_dir, self._modules, self._step)
        return trainer_for(self._plan, data, self._modules)

    def _deploy(self, endpoints: Mapping[str, Endpoint], trainer: Trainer) -> tuple[Contract, Store, Run]:
        self._step("deploying the contract")
        end = endpoints[HEADER]
        chain = Chain(end.rpc, load_key(self._key(HEADER)))
        store = connect(end.store)
        learners = {n: self._accounts[learner_name(n)] for n in range(1, self._plan.learners + 1)}
        work = self._work(HEADER)
        contract = deploy(chain, store, work, self._plan, learners, trainer)
        versions = run.versions()
        if self._backend.name == "processes":
            versions |= {name: binaries.pin(name).full_version for name in ("geth", "kubo")}
        elif self._backend.name == OwnChainBackend.name:
            versions["chain"] = chain.client()
        record = Run(
            name=self.folder.name,
            backend=self._backend.name,
            plan=contract.plan(),
            contract=contract.address,
            chain_id=chain.chain_id(),
            genesis=chain.genesis(),
            nodes={
                node: Node(self._accounts[node], endpoints[node].rpc, endpoints[node].store) for node in self._nodes
            },
            versions=versions,
        )
        record.save(self.folder)
        self._record, self.shapes = record, trainer.shapes()
        return contract, store, record

    def _work(self, node: str) -> Path:
        folder = self.folder / "nodes" / node / run.WORK
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _follow(self, record: Run, endpoints: Mapping[str, Endpoint]) -> None:
        """Run header and learners until they have ended."""
        self._began = self._heard = time.monotonic()
        if self._scenario is not None:
            self._scenario.begin(self, self.trace)
        roles = [(node, node, HEADER if node == HEADER else "learner") for node in self._nodes]
        if self._standby:
            roles += [(standby_name(n), learner_name(n), "standby") for n in range(1, self._plan.learners + 1)]
        for name, node, role in roles:
            self._commands[name] = self._command(record, endpoints[node], name, node, role)
            self._progress.doing[name] = "starting"
            if name not in self._held:
                self._start(name)
        self._step("training")
        checked = time.monotonic()
        while any(role.running for role in self.roles.values()) or not self._events.empty() or self._timers:
            with contextlib.suppress(queue.Empty):
                self._take(*self._events.get(timeout=CHECK_EVERY))
            self._do_what_is_due()
            if time.monotonic() - checked >= CHECK_EVERY:
                self._check()
                checked = time.monotonic()
        self._check()

    def _command(self, record: Run, end: Endpoint, name: str, node: str, role: str) -> list[str]:
        """Return the command that runs a role.

        Parameters
        ----------
        record
            The run.
        end
            Where the role's node is reached.
        name
            The role's own name, such as ``standby-1``.
        node
            The node whose key it has.
        role
            ``header``, ``learner`` or ``standby``.
        """
        command = [
            *python("fl_node", "learner" if role == "learner" else HEADER, "--json"),
            *("--rpc", end.rpc),
            *("--store", end.store),
            *("--contract", record.contract),
            *("--key", str(self._key(node))),
            *("--folder", str(self._work(name))),
        ]
        if role == "standby":
            command += ["--standby", "--no-evaluate"]
        if self._data_dir is not None:
            command += ["--data-dir", str(self._data_dir)]
        if self._modules is not None:
            command += ["--modules", str(self._modules)]
        if self._plan.attack is not None and role == "learner":
            # The user gave this plan to a laboratory.
            command += ["--allow-attacks"]
        if self._tensorboard is not None and role == "learner":
            command += ["--tensorboard", str(self._tensorboard)]
        return command

    def _do_what_is_due(self) -> None:
        """Do what a scenario wants at this time.

        Raises
        ------
        ProcessError
            What it waits for does not happen.
        """
        if self._due and time.monotonic() - self._heard > SILENCE:
            raise ProcessError(f"{self._due[0].what}: no role logged anything for {SILENCE:g} s")
        for timer in [timer for timer in self._timers if timer[0] <= time.monotonic()]:
            self._timers.remove(timer)
            timer[1]()

    def _start(self, node: str) -> None:
        child = Child(node, self._commands[node], self.folder / "logs" / f"{node}.log", ENVIRONMENT, capture=True)
        self.roles[node] = child
        threading.Thread(target=self._listen, args=(node, child), daemon=True).start()

    def _listen(self, node: str, child: Child) -> None:
        for line in child.output:
            if (event := logs.parse(line)) is not None:  # else a library has printed it
                self._events.put((node, event))

    def _check(self) -> None:
        """Restart roles that were killed or stopped.

        Raises
        ------
        ProcessError
            A role ended with an error, or too many were restarted.
        """
        self._backend.check()
        for node, role in self.roles.items():
            code = role.process.poll()
            if code is None or node in self._held or (code == 0 and node not in self._stopped):
                continue
            if code > 0:
                raise ProcessError(f"{node} ended with exit code {code}:{role.tail()}")
            ended = f"{node} was " + (f"killed by {signal.Signals(-code).name}" if code else "stopped by a signal")
            self._restarts += 1
            if self._restarts > RESTARTS:
                raise ProcessError(f"{ended}; giving up after {RESTARTS} restarts")
            self._step(f"{ended}; restarting it")
            role.stop()
            self._stopped.discard(node)
            self._start(node)

    def _take(self, node: str, event: dict[str, Any]) -> None:
        """Update the progress with a role's event.

        Raises
        ------
        ProcessError
            Too few learners can still use the global weights.
        """
        progress = self._progress
        kind = event["event"]
        progress.doing[node] = str(event.get("message", ""))
        if kind == events.GlobalWeightsEvaluated.name:
            progress.globals_[int(event["round"])] = event["accuracy"]
            count, error = self._plan.data.test, event.get("calibration_error")
            self._scores[event["cid"]] = Score(event["accuracy"], event["loss"], count, error)
        elif kind == events.UpdateAccepted.name:
            progress.local.setdefault(int(event["round"]), {})[int(event["learner"])] = event.get("accuracy")
        elif kind == events.GlobalWeightsPublished.name:
            progress.round = int(event["round"])
            progress.globals_.pop(progress.round, None)  # of weights that were withdrawn
            if progress.round == self._plan.rounds:
                self._ended = time.monotonic()
        elif kind == events.RoleStopped.name:
            self._stopped.add(node)
        elif kind == events.GlobalWeightsUnusable.name:
            unfit = self._unfit.setdefault(int(event["round"]), set())
            unfit.add(node)
            needed = 1 if self._plan.mode == "async" else self._plan.required_learners
            if self._plan.learners - len(unfit) < needed:
                # They wait for better global weights, and nobody is left to make any.
                raise ProcessError(f"{node}: {event['message']}")
        self._tell({**event, "node": node})
        self._harm(node, event)

    def _harm(self, node: str, event: Mapping[str, Any]) -> None:
        """Add to the trace, and let the scenario inject its fault when its trigger occurs."""
        scenario, trace = self._scenario, self.trace
        trace.events.append((self.seconds(), node, event))
        self._heard = time.monotonic()
        for one in [one for one in self._due if one.node == node and events.matches(event, one.event)]:
            self._due.remove(one)
            one.deed()
        if scenario is None or trace.fault is not None or event.get("round") != ROUND:
            return
        if (node, event["event"]) == scenario.trigger:
            trace.fault = self.seconds()
            self._step(f"scenario {scenario.name}: injecting the fault")
            scenario.fault(self, trace)

    def _finish(self, contract: Contract, store: Store, record: Run, trainer: Trainer, seconds: float) -> Outcome:
        conclusion = finalize(
            contract,
            store,
            self.folder,
            record.name,
            trainer,
            record.versions,
            scores=self._scores,
            journals=run.journals(self.folder, contract.address),
            step=self._step,
        )
        model = conclusion.model
        if not conclusion.result.ended:
            raise ProcessError(f"the roles ended, but the run is still in round {conclusion.result.round}")
        if model is None:
            raise ProcessError(f"the final global weights are invalid; see {conclusion.report}")
        return Outcome(self.folder, conclusion.result, conclusion.audit, conclusion.report, model, seconds)
