"""What tests of whole runs share: a chain in a process of its own, keys, and runs in which a test plays any part."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from fl_node import events
from fl_node.artifacts import model_file as weights
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import LocalMeta, Rejection, Tensors, WeightsFile
from fl_node.artifacts.store import Store
from fl_node.audit.auditor import audit
from fl_node.audit.result import Audit
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.keys import create_key, load_key
from fl_node.chain.transactions import Receipt
from fl_node.data.partition import shard_size
from fl_node.models.trainer import Trainer
from fl_node.nodes.backends import EmbeddedBackend
from fl_node.plan.models import SingleModel
from fl_node.plan.schema import DataPlan, Plan
from fl_node.privacy.secret import beside
from fl_node.protocol import journal
from fl_node.protocol.global_files import global_file
from fl_node.protocol.names import HEADER, learner_name
from fl_node.protocol.terms import terms_of
from fl_node.report.collect import Result, collect
from fl_node.roles import factory
from fl_node.roles.deploy import deploy
from fl_node.roles.journal import Recorder
from fl_node.roles.loop import Site, Timing
from fl_node.seeds import derive
from tests.helpers.clock import SkippingClock
from tests.helpers.stub import StubTrainer
from tests.helpers.waiting import eventually

LEARNERS = 5
PATIENCE = 600.0
"""Seconds that a test waits for what a role should do; a role that does it is never waited for as long."""


def plan(**settings: Any) -> Plan:
    """Return a plan of two rounds for two learners, with other settings where given."""
    common = {
        "name": "small",
        "rounds": 2,
        "learners": 2,
        "fetch_timeout": 0.3,
        "data": DataPlan(name="digits", train=101, test=10),
        "model": SingleModel(name="mlp"),
    }
    return Plan(**(common | settings))


class World:
    """An embedded chain with funded accounts for header, five learners and mallory, who is nobody.

    Any number of runs is deployed there, one after the other.
    """

    patience = 0.0
    """Seconds until a transaction of one node is known to all; they share one chain here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        nodes = [HEADER, *(learner_name(n) for n in range(1, LEARNERS + 1)), "mallory"]
        self.keys = {node: folder / "keys" / f"{node}.key" for node in nodes}
        self.accounts = {node: create_key(path) for node, path in self.keys.items()}
        self._backend = EmbeddedBackend(folder / "chain", self.accounts)
        self._runs = 0
        self.rpc = ""

    def __enter__(self) -> Self:
        self.rpc = self._backend.start()["header"].rpc
        return self

    def __exit__(self, *_: object) -> None:
        self._backend.stop()

    def chain(self, node: str) -> Chain:
        """Return the chain as a node sees it, with the node's account."""
        return Chain(self.rpc, load_key(self.keys[node]))

    def deploy(
        self, plan: Plan, make_trainer: Callable[[Plan], Trainer] = StubTrainer, learners: Sequence[int] | None = None
    ) -> Run:
        """Start a run for a plan: its contract, its learners registered (all, or those given), round 0 begun."""
        self._runs += 1
        folder = self.folder / f"run-{self._runs}"
        nodes = range(1, plan.learners + 1) if learners is None else learners
        contract = deploy(
            self.chain("header"),
            FolderStore(folder / "files"),
            folder / "header",
            plan,
            {n: self.accounts[learner_name(n)] for n in nodes},
            make_trainer(plan),
        )
        return Run(self, plan, contract.address, folder, make_trainer(plan))

    def pass_time(self, seconds: int) -> None:
        """Let the chain's clock go on: each block is a second or more after its parent."""
        chain = self.chain("mallory")
        end = chain.timestamp(chain.block_number()) + seconds
        for nonce in range(chain.nonce(), chain.nonce() + seconds):
            if chain.timestamp(chain.block_number()) >= end:
                return
            account = load_key(self.keys["mallory"])
            transfer = {
                "type": 2,
                "chainId": chain.chain_id(),
                "nonce": nonce,
                "gas": 21_000,
                "maxPriorityFeePerGas": 1,
                "maxFeePerGas": 10**11,
                "value": 0,
                "to": account.address,
            }
            chain.web3.eth.send_raw_transaction(account.sign_transaction(transfer).raw_transaction)


class Run:
    """One run, and all that its nodes can do in it, rightly or not."""

    def __init__(self, world: World, plan: Plan, address: str, folder: Path, trainer: Trainer) -> None:
        self.world = world
        self.plan = plan
        self.address = address
        self.folder = folder
        self.trainer = trainer
        self.files = folder / "files"
        self.store = FolderStore(self.files)
        self.contract = self.as_node("header")
        self.plan_cid = self.contract.plan()
        self.clock = SkippingClock()
        """That of all its roles."""
        self._files = 0

    def as_node(self, node: str) -> Contract:
        """Return the contract with a node's account."""
        return self.world.chain(node).contract(self.address)

    # Files

    def path(self) -> Path:
        """Return where a new file can be written."""
        self._files += 1
        folder = self.folder / "made"
        folder.mkdir(exist_ok=True)
        return folder / f"{self._files}.safetensors"

    def read(self, name: str) -> WeightsFile:
        """Return a model file in the store, as it is."""
        return weights.read(self.files / name)

    def current(self) -> WeightsFile:
        """Return the current global weights."""
        return self.read(str(self.contract.state().global_cid))

    def local(self, learner_id: int, tensors: Tensors | None = None, **changes: Any) -> WeightsFile:
        """Write what a learner should publish now, or with other tensors or metadata; not stored yet."""
        parent = self.current()
        number = parent.global_meta.round
        if tensors is None:
            tensors = self.trainer.train(
                {name: parent.tensor(name) for name in self.trainer.shapes()},
                np.arange(1),
                derive(self.plan.seed, learner_id, number),
                lambda _e, _a, _l: None,
            )
        meta = LocalMeta(
            plan=self.plan_cid,
            node_id=learner_id,
            round=number,
            parent=parent.cid,
            samples=shard_size(self.plan, learner_id) if learner_id <= self.plan.learners else 7,
            accuracy=0.5,
            loss=1.25,
        )
        return weights.write(self.path(), replace(meta, **changes), tensors)

    def average(
        self,
        inputs: Sequence[WeightsFile],
        refused: Sequence[Rejection] = (),
        absent: Sequence[int] = (),
        tensors: Callable[[dict[str, weights.Tensor]], Tensors] = lambda given: given,
        **changes: Any,
    ) -> WeightsFile:
        """Write what the header should publish now, or with other tensors or metadata; not stored yet."""
        parent = self.current()
        file = global_file(
            self.path(),
            self.plan,
            self.plan_cid,
            round_=parent.global_meta.round + 1,
            parent=parent.cid,
            inputs=inputs,
            parent_file=parent,
            refused=refused,
            absent=absent,
        )
        return weights.write(self.path(), replace(file.global_meta, **changes), tensors(file.tensors()))

    # Publications

    def publish_local(self, node_id: int, file: WeightsFile | Path | str, node: str | None = None) -> str:
        """Publish a file as a learner, or a hash without a file; a file is stored first."""
        name = self._name(file)
        self._send(
            node or learner_name(node_id),
            lambda contract, nonce: contract.set_local_weight(node_id, name, nonce),
            lambda contract: contract.local_weight_at(contract.round(), node_id) == name,
        )
        return name

    def publish_global(self, file: WeightsFile | Path | str, node: str = HEADER) -> str:
        """Publish a file as the header, or a hash without a file; a file is stored first."""
        name = self._name(file)
        self._send(
            node,
            lambda contract, nonce: contract.set_global_weight(name, nonce),
            lambda contract: contract.state().global_cid == name,
        )
        return name

    def _send(
        self,
        node: str,
        transact: Callable[[Contract, int], Receipt | None],
        is_sealed: Callable[[Contract], bool],
    ) -> None:
        """Send a node's transaction, again where the node has to learn of other nodes' blocks first."""
        contract = self.as_node(node)

        def is_sent() -> bool:
            return transact(contract, contract.chain.nonce()) is not None or is_sealed(contract)

        eventually(is_sent, self.world.patience)

    def publish_locals(self, *node_ids: int) -> list[WeightsFile]:
        """Publish good local weights of these learners, or of all."""
        files = [self.local(node_id) for node_id in node_ids or range(1, self.plan.learners + 1)]
        for file in files:
            self.publish_local(file.local_meta.node_id, file)
        return files

    def close_round(self) -> None:
        """Play one round as it should be."""
        self.publish_global(self.average(self.publish_locals()))

    def time_out(self) -> None:
        """Close the current round without the learners that have not published, after the plan's timeout."""
        self.world.pass_time(terms_of(self.plan).round_timeout)
        assert self.contract.close_round(self.contract.chain.nonce()) is not None

    def reject(self, node_id: int, round_: int, code: str) -> None:
        """Reject the global weights of a round as a learner."""
        contract = self.as_node(learner_name(node_id))
        name = str(contract.global_weight_at(round_))
        assert contract.reject(round_, name, contract.chain.nonce(), code=code) is not None

    def attest(self) -> None:
        """Attest the current global weights as all learners."""
        state = self.contract.state()
        for node_id in self.contract.learners():
            contract = self.as_node(learner_name(node_id))
            contract.attest(state.round, str(state.global_cid), contract.chain.nonce())

    def wait_for_copies(self, name: str, node_ids: Sequence[int]) -> None:
        """Wait until each of these learners has a file for its verification, and what it fetched before that file."""
        folders = [self.folder / learner_name(n) / "role" / "verification" for n in node_ids]
        eventually(lambda: all((folder / f"{name}.safetensors").exists() for folder in folders), PATIENCE)

    def lose_patience(self, learners: Sequence[Role]) -> None:
        """Let the plan's ``header_timeout`` pass until these learners have replaced the header, and no more often."""
        header = self.contract.header()

        def is_replaced() -> bool:
            self.clock.skip(self.plan.header_timeout + 1)
            self._look(learners)  # whoever votes now has voted then
            return self.contract.header() != header

        eventually(is_replaced, PATIENCE)

    def _look(self, roles: Sequence[Role]) -> None:
        """Let each of these roles take a whole step, in which it reads the contract's state as it is now."""
        for _ in range(3):  # looks: after a wait, before a step, after the next wait
            before = {role: role.looks for role in roles}
            self.clock.skip(Timing.look_again)
            for role, looks in before.items():
                eventually(lambda role=role, looks=looks: role.looks > looks or role.has_ended, PATIENCE)

    def finish(self, header: Role) -> None:
        """Wait until a header has ended, which waits for the learners to attest the last global weights."""
        header.wait_for(events.GlobalWeightsPublished, round=self.plan.rounds)
        self.attest()
        header.finish()

    def register(self, node_id: int, node: str) -> None:
        """Register a node's account as a learner."""
        account = self.world.accounts[node]
        assert self.contract.register_learner(node_id, account, self.contract.chain.nonce()) is not None

    def _name(self, file: WeightsFile | Path | str) -> str:
        if isinstance(file, str):
            return file
        return self.store.add(file.path if isinstance(file, WeightsFile) else file)

    # Roles and audit

    def audit(
        self,
        contract: Contract | None = None,
        store: Store | None = None,
        accounts: Mapping[int, str] = MappingProxyType({}),
        statements: Sequence[Path] = (),
    ) -> Audit:
        """Audit the run as anybody can, or with a contract or store that misbehaves, or by who knows accounts."""
        folder = self.folder / f"audit-{time.monotonic_ns()}"
        folder.mkdir()
        return audit(
            contract or Chain(self.world.rpc).contract(self.address),
            store or self.store,
            folder,
            lambda _plan: self.trainer,
            plan_timeout=0.1,
            journals=self.journals(),
            accounts=accounts,
            statements=statements,
        )

    def journals(self) -> list[Path]:
        """Return the journals of the roles that were started."""
        return sorted(self.folder.glob(f"*/*/{journal.FILE}"))

    def collect(self) -> Result:
        """Return what a report would say, with every global file measured."""
        folder = self.folder / f"report-{time.monotonic_ns()}"
        folder.mkdir()
        return collect(self.contract, self.store, folder, evaluate=self.trainer.evaluate, model=self.trainer.shapes())

    @contextlib.contextmanager
    def header(self, until: Callable[[Event], bool] | None = None) -> Iterator[Role]:
        """Run the header in a thread until it ends or the block does, or right after such an event."""

        def play(site: Site) -> None:
            factory.run_header(site, lambda _plan: self.trainer, evaluate=False)

        with Role(self, "header", play, until=until) as role:
            yield role

    @contextlib.contextmanager
    def standby(self, node_id: int) -> Iterator[Role]:
        """Run a learner's standby header in a thread until it ends or the block does."""

        def play(site: Site) -> None:
            factory.run_header(site, lambda _plan: self.trainer, evaluate=False, standby=True)

        with Role(self, learner_name(node_id), play, "standby") as role:
            yield role

    @contextlib.contextmanager
    def learner(self, node_id: int, until: Callable[[Event], bool] | None = None) -> Iterator[Role]:
        """Run a learner in a thread until it ends or the block does, or right after such an event."""
        name = learner_name(node_id)

        def play(site: Site) -> None:
            factory.run_learner(site, lambda _plan: self.trainer, allow_attacks=True)

        with Role(self, name, play, until=until) as role:
            yield role


@dataclass(frozen=True)
class Event:
    """What a role said."""

    name: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class _Stopped(BaseException):
    """The test wants a role to end."""


class _StoppableChain(Chain):
    """A chain that ends the role that looks at it, once it is told to."""

    stopped = False
    looks = 0

    def newest(self) -> object:
        self._check()
        self.looks += 1
        return super().newest()

    def nonce(self) -> int:
        self._check()
        return super().nonce()

    def _check(self) -> None:
        if self.stopped:
            raise _Stopped


class Role(logging.Handler):
    """A role in a thread, and what it said so far.

    With ``until`` it goes no step further after the first event of which that is true, however late the test sees it.
    """

    def __init__(
        self,
        run: Run,
        node: str,
        play: Callable[[Site], None],
        what: str = "role",
        until: Callable[[Event], bool] | None = None,
    ) -> None:
        super().__init__(logging.INFO)
        self._until = until
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self._said = threading.Condition()
        self._chain = _StoppableChain(run.world.rpc, load_key(run.world.keys[node]))
        folder = run.folder / node / what
        folder.mkdir(parents=True, exist_ok=True)
        self.store = FolderStore(run.files)
        contract, account = self._chain.contract(run.address), load_key(run.world.keys[node])
        recorder = Recorder(folder, contract, HEADER if what == "standby" or node == HEADER else "learner", account)
        secret = beside(run.world.keys[node])
        timing = Timing(clock=run.clock)
        self._site = Site(self._chain, contract, self.store, folder, timing=timing, secret=secret, journal=recorder)
        self._play = play
        self._thread = threading.Thread(target=self._run, name=f"{node}'s {what} of {run.address}", daemon=True)

    def __enter__(self) -> Self:
        self._log = logging.getLogger("fl_node")
        self._level = self._log.level
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._chain.stopped = True
        self._thread.join(PATIENCE)
        self._log.removeHandler(self)
        self._log.setLevel(self._level)
        assert not self._thread.is_alive(), "the role did not end"
        if self.error is not None and kind is None:
            raise self.error

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName == self._thread.name:
            with self._said:
                event = Event(getattr(record, "event", ""), record.getMessage(), getattr(record, "fields", {}))
                self.events.append(event)
                if self._until is not None and self._until(event):
                    self._chain.stopped = True
                self._said.notify_all()

    def of(self, kind: type[events.Event]) -> list[Event]:
        """Return the events of a kind."""
        with self._said:
            return [event for event in self.events if event.name == kind.name]

    def wait_for(self, kind: type[events.Event], **fields: object) -> Event:
        """Return the first event of this kind that has these fields, as soon as there is one."""

        def found() -> Event | None:
            return next((e for e in self.events if e.name == kind.name and events.matches(e.fields, fields)), None)

        with self._said:
            event = self._said.wait_for(lambda: found() or self.error, PATIENCE)
        assert isinstance(event, Event), f"no event {kind.name} {fields}: {self.error}\n{self.told()}"
        return event

    @property
    def has_ended(self) -> bool:
        """Whether its thread has ended, or has not begun."""
        return not self._thread.is_alive()

    @property
    def looks(self) -> int:
        """How often its loop has looked for a new block: before each step and after each wait."""
        return self._chain.looks

    def stop(self) -> None:
        """End the role, as a signal would."""
        self._chain.stopped = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the role did not end"

    def finish(self) -> None:
        """Wait until the role has ended by itself."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"did not end:\n{self.told()}"
        if self.error is not None:
            raise self.error

    def told(self) -> str:
        """Return all that was said, a line each."""
        return "\n".join(f"{event.name}: {event.message}" for event in self.events)

    def _run(self) -> None:
        try:
            self._play(self._site)
        except _Stopped:
            pass
        except BaseException as error:
            with self._said:
                self.error = error
                self._said.notify_all()


def wait_until_closed(run: Run, number: int) -> list[WeightsFile]:
    """Wait until a round is closed, and return its local weights in the order of nodeId."""
    eventually(lambda: run.contract.state().round == number and run.contract.state().closed, PATIENCE)
    names = run.contract.local_weights(number, run.contract.learners())
    return [run.read(names[node_id]) for node_id in sorted(names)]
