"""Anybody's check of a run, from the chain and the store alone.

Every file is fetched and compared with its hash on chain, every global file is made again from its local files
and compared bit for bit, and what the header says of learners that it left out is compared with the chain's log.
What an audit can't see: whether a learner trained on the data it should have, and whether the accuracy that it
reports is true; its weights are there for whoever wants to measure them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fl_node import history, weights
from fl_node import plan as plans
from fl_node.aggregate import global_file
from fl_node.chain import Contract, LogEntry
from fl_node.deploy import initial_file
from fl_node.errors import FileMissing, PlanError, StoreError, WeightsError
from fl_node.history import History, Round
from fl_node.model import Trainer
from fl_node.partition import shard_size
from fl_node.plan import Plan
from fl_node.store import Store
from fl_node.weights import GlobalMeta, Input, Refusal, WeightsFile

LATE = 30
"""Seconds, by the chain's clock, before a round closed in which a publication may have crossed its closing."""


@dataclass(frozen=True)
class Finding:
    """Something in a run that is not as it should be: where, which field, and what.

    ``round`` is that of the global weights that are wrong, or that the wrong local weights were made from;
    ``node`` is ``header`` or ``learner N``.
    """

    round: int | None
    node: str
    field: str
    message: str

    def __str__(self) -> str:
        where = self.node if self.round is None else f"round {self.round}, {self.node}"
        return f"{where}, {self.field}: {self.message}"


@dataclass
class Audit:
    """The result: findings that make the audit fail, and notes that don't."""

    contract: str
    plan_cid: str = ""
    rounds: int = 0
    files: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


MakeTrainer = Callable[[Plan], Trainer]


def audit(
    contract: Contract,
    store: Store,
    folder: Path,
    make_trainer: MakeTrainer,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Audit:
    """Audit a run.

    Parameters
    ----------
    contract, store
        The run's contract and the store, as some node sees them.
    folder
        An empty folder for the files.
    make_trainer
        Called with the plan; makes the model whose initial weights are compared.
    progress
        Called after each round with the number of rounds done and of all.

    Raises
    ------
    ChainError, StoreError
        A node can't be reached, so that nothing can be said.
    """
    return _Auditor(contract, store, folder).run(make_trainer, progress)


class _Auditor:
    def __init__(self, contract: Contract, store: Store, folder: Path) -> None:
        self._contract = contract
        self._store = store
        self._folder = folder
        self._result = Audit(contract.address)

    def run(self, make_trainer: MakeTrainer, progress: Callable[[int, int], None]) -> Audit:
        result = self._result
        past = history.read(self._contract)
        result.plan_cid = past.plan_cid
        result.rounds = max(len(past.rounds) - 1, 0)
        if not self._contract.has_known_code():
            self._find(None, "header", "contract", "its code is not that of FederatedLearning.sol")
        plan = self._plan(past)
        if plan is None:
            return result
        self._compare_state(past)
        if not past.rounds:
            result.notes.append("the run has not begun: there are no initial weights")
            return result
        if result.rounds < plan.rounds:
            result.notes.append(f"the run has closed {result.rounds} of {plan.rounds} rounds")
        if result.rounds > plan.rounds:
            self._find(result.rounds, "header", "round", f"the plan ends after {plan.rounds} rounds")
        parent = self._initial(past, plan, make_trainer(plan))
        progress(0, result.rounds)
        for closed, opened in zip(past.rounds, past.rounds[1:], strict=False):
            parent = self._global(past, plan, closed, opened.started, parent)
            progress(opened.number, result.rounds)
        return result

    def _find(self, round_: int | None, node: str, field_: str, message: str) -> None:
        self._result.findings.append(Finding(round_, node, field_, message))

    def _plan(self, past: History) -> Plan | None:
        path = self._folder / "plan.json"
        try:
            self._store.fetch(past.plan_cid, path, plans.MAX_PLAN_BYTES, 30.0)
            plan = plans.from_bytes(path.read_bytes(), f"plan {past.plan_cid}")
        except (FileMissing, PlanError, StoreError) as error:
            self._find(None, "header", "plan", str(error))
            return None
        self._result.files += 1
        return plan

    def _compare_state(self, past: History) -> None:
        """Compare what the contract's functions answer with the log that the audit goes by."""
        state = self._contract.state()
        if past.rounds and state.round != len(past.rounds) - 1:
            self._find(None, "header", "round", f"the contract says {state.round}, its log {len(past.rounds) - 1}")
        for one in past.rounds:
            if self._contract.global_weight_at(one.number) != one.started.cid:
                self._find(one.number, "header", "globalWeightAt", "differs from the log")
            for node_id, entry in one.latest().items():
                if self._contract.local_weight_at(one.number, node_id) != entry.cid:
                    self._find(one.number, f"learner {node_id}", "localWeightAt", "differs from the log")

    def _fetch(self, name: str, plan: Plan, expected: weights.Shapes | None) -> WeightsFile:
        path = self._folder / f"{name}.safetensors"
        limit = weights.MAX_GLOBAL_BYTES if expected is None else weights.size_of(expected)
        self._store.fetch(name, path, limit, plan.fetch_timeout)
        file = weights.read(path, expected)
        self._result.files += 1
        self._result.bytes += path.stat().st_size
        return file

    def _initial(self, past: History, plan: Plan, trainer: Trainer) -> WeightsFile | None:
        name = str(past.rounds[0].started.cid)
        try:
            file = self._fetch(name, plan, trainer.shapes())
            meta = weights.check_global(file, plan=past.plan_cid, round_=0)
        except (FileMissing, StoreError, WeightsError) as error:
            self._find(0, "header", "file", f"{name}: {error}")
            return None
        expected = initial_file(self._folder, past.plan_cid, trainer)
        if file.cid != expected.cid:
            self._differ(0, meta, file, expected, "the plan's seed gives")
        return file

    def _global(
        self, past: History, plan: Plan, closed: Round, entry: LogEntry, parent: WeightsFile | None
    ) -> WeightsFile | None:
        """Check the global weights that closed a round, and return them if they can be read."""
        number, name = closed.number + 1, str(entry.cid)
        try:
            file = self._fetch(name, plan, parent.shapes if parent else None)
            meta = weights.check_global(file, plan=past.plan_cid, round_=number)
        except (FileMissing, StoreError, WeightsError) as error:
            self._find(number, "header", "file", f"{name}: {error}")
            return None
        if meta.parent != closed.started.cid:
            self._find(number, "header", "parent", f"is {meta.parent}, should be {closed.started.cid}")
        if meta.rule != plan.aggregation.rule:
            self._find(number, "header", "rule", f"is {meta.rule}, the plan says {plan.aggregation.rule}")
        if len(meta.inputs) < plan.required_learners:
            self._find(
                number,
                "header",
                "inputs",
                f"{len(meta.inputs)} local files, the plan asks for {plan.required_learners}",
            )
        self._members(past, plan, closed, entry, meta)
        inputs = [self._local(past, plan, closed, entry, one, file.shapes) for one in meta.inputs]
        for refusal in meta.refused:
            self._refusal(past, plan, closed, entry, refusal, file.shapes)
        if inputs and None not in inputs:
            again = global_file(
                self._folder / "again.safetensors",
                plan,
                past.plan_cid,
                round_=number,
                parent=str(closed.started.cid),
                inputs=[one for one in inputs if one is not None],
                refused=meta.refused,
                absent=meta.absent,
            )
            if again.cid != file.cid:
                self._differ(number, meta, file, again, "its local files give")
        self._remove(inputs)
        return file

    def _members(self, past: History, plan: Plan, closed: Round, entry: LogEntry, meta: GlobalMeta) -> None:
        """Check that a global file speaks of every learner once, and of nobody else."""
        number = meta.round
        named = [*(i.node_id for i in meta.inputs), *(r.node_id for r in meta.refused), *meta.absent]
        for node_id in sorted(set(named)):
            if named.count(node_id) > 1:
                self._find(number, f"learner {node_id}", "inputs", "is named more than once")
            known = past.learners.get(node_id)
            if known is None or known > entry:
                self._find(number, f"learner {node_id}", "inputs", "takes part and is not registered")
        for node_id, registered in past.learners.items():
            published = [p for p in closed.published if p.node_id == node_id and p < entry]
            if node_id not in named and published:
                self._find(number, f"learner {node_id}", "inputs", "published local weights and is left out")
            elif node_id not in named and self._before(registered, entry):
                self._find(number, f"learner {node_id}", "inputs", "is registered and not named")
            elif node_id in meta.absent and published:
                if self._before(published[0], entry):
                    self._find(number, f"learner {node_id}", "absent", "is called absent and had published")
                else:
                    self._result.notes.append(f"round {closed.number}: learner {node_id} published as it closed")
        if meta.absent and not plan.round_timeout:
            self._find(number, "header", "absent", "learners are left out, and the plan has no round_timeout")

    def _before(self, entry: LogEntry, closing: LogEntry) -> bool:
        """Return whether an event came long enough before the closing of a round to be known to the header."""
        chain = self._contract.chain
        return chain.timestamp(entry.block) + LATE < chain.timestamp(closing.block)

    def _local(
        self, past: History, plan: Plan, closed: Round, entry: LogEntry, one: Input, shapes: weights.Shapes
    ) -> WeightsFile | None:
        """Check one input of a global file, and return it if it can be read."""
        node = f"learner {one.node_id}"
        if not any(p.node_id == one.node_id and p.cid == one.cid and p < entry for p in closed.published):
            self._find(closed.number, node, "cid", f"did not publish {one.cid} in this round")
        try:
            file = self._fetch(one.cid, plan, shapes)
        except (FileMissing, StoreError, WeightsError) as error:
            self._find(closed.number, node, "file", f"{one.cid}: {error}")
            return None
        try:
            self._check_local(file, past, plan, closed, one.node_id)
        except WeightsError as error:
            self._find(closed.number, node, "metadata", str(error).removeprefix("metadata: "))
            return None
        return file

    def _check_local(self, file: WeightsFile, past: History, plan: Plan, closed: Round, node_id: int) -> None:
        known = 1 <= node_id <= plan.learners
        weights.check_local(
            file,
            plan=past.plan_cid,
            node_id=node_id,
            round_=closed.number,
            parent=str(closed.started.cid),
            samples=shard_size(plan, node_id) if known else None,
        )

    def _refusal(
        self, past: History, plan: Plan, closed: Round, entry: LogEntry, one: Refusal, shapes: weights.Shapes
    ) -> None:
        """Check that a file that the header refused deserved it."""
        node = f"learner {one.node_id}"
        if not any(p.node_id == one.node_id and p.cid == one.cid and p < entry for p in closed.published):
            self._find(closed.number, node, "refused", f"did not publish {one.cid} in this round")
            return
        try:
            file = self._fetch(one.cid, plan, shapes)
            self._check_local(file, past, plan, closed, one.node_id)
        except (FileMissing, StoreError, WeightsError) as error:
            self._result.notes.append(
                f"round {closed.number}: {node}'s {one.cid} was refused ({one.reason}); here: {error}"
            )
            return
        if one.reason == "missing":
            # It may have been away then; nobody can tell afterwards.
            self._result.notes.append(
                f"round {closed.number}: {node}'s {one.cid} was refused as missing and is there now"
            )
        else:
            self._find(closed.number, node, "refused", f"{one.cid} is good and was refused: {one.reason}")

    def _differ(self, number: int, meta: GlobalMeta, file: WeightsFile, again: WeightsFile, source: str) -> None:
        """Say in which field two global files differ."""
        for name, found, right in (
            (name, getattr(meta, name), getattr(again.global_meta, name))
            for name in ("parent", "rule", "inputs", "refused", "absent")
        ):
            if name == "inputs" and found != right:
                self._shares(number, found, right)
            elif found != right and name not in {"parent", "rule"}:  # those are compared with the chain
                self._find(number, "header", name, f"is {found}, should be {right}")
        for name in file.shapes:
            found, right = file.tensor(name), again.tensor(name)
            if found.tobytes() != right.tobytes():
                count = int((found.view(np.uint32) != right.view(np.uint32)).sum())
                self._find(
                    number,
                    "header",
                    f"tensor {name}",
                    f"differs in {count} of {found.size} values from what {source}",
                )

    def _shares(self, number: int, found: tuple[Input, ...], right: tuple[Input, ...]) -> None:
        if [one.node_id for one in found] != [one.node_id for one in right]:
            self._find(number, "header", "inputs", "are not in the order of nodeId")
        for one, other in zip(found, right, strict=True):
            for name in ("samples", "share"):
                if one.node_id == other.node_id and getattr(one, name) != getattr(other, name):
                    self._find(
                        number,
                        f"learner {one.node_id}",
                        name,
                        f"is {getattr(one, name)}, should be {getattr(other, name)}",
                    )

    def _remove(self, files: list[WeightsFile | None]) -> None:
        for file in files:
            if file is not None:
                file.path.unlink(missing_ok=True)
