"""Anybody's check of a run, from the chain and the store alone.

Every file is fetched and compared with its hash on chain, every global file is made again from its local files
and compared bit for bit, and what the header says of learners that it left out is compared with the chain's log.
What an audit can't see: whether a learner trained on the data it should have, and whether the accuracy that it
reports is true; its weights are there for whoever wants to measure them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from fl_node.aggregation import (
    check_bounds,
    follows_parent,
    global_file,
    global_shapes,
    initial_file,
    local_shapes,
)
from fl_node.aggregation import ensemble as ensembles
from fl_node.aggregation.asynchronous import Update, asynchronous_file
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta, Input, Refusal, WeightsFile
from fl_node.artifacts.store import Store
from fl_node.chain.client import Contract, LogEntry, State
from fl_node.data.datasets import DataSet
from fl_node.data.held_out import held_out
from fl_node.data.partition import shard_size
from fl_node.errors import DataError, LogError, PlanError, StoreError, StoreUnreachable, WeightsError
from fl_node.models.keras_trainer import MakeTrainer, Trainer
from fl_node.plan import schema as plans
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.history import History, Round
from fl_node.protocol.publications import Publication, check_update, publications, too_often

LATE = 30
"""Seconds, by the chain's clock, in which a publication and the closing of a round may have crossed.

The header need not have seen what stands before its closing. And it may have seen what stands after it: sealers
replace a block by another now and then, and what was in the one is sealed again, perhaps behind what came of it.
"""
PLAN_PATIENCE = 30.0
"""Seconds in which the plan must come out of the swarm; those for other files stand in the plan."""
PATIENCE = 3
"""Times ``fetch_timeout`` that an update may be passed over; a header that starts again is patient anew."""
LOOKS = 3
"""How often the log is read again because the run went on in the meantime."""
MAX_TEXT = 500
"""Characters of a finding; a header may have written much where a hash should be."""


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


@dataclass(frozen=True)
class _Waiting:
    """A learner's next publication, passed over for so many seconds up to the last closing."""

    publication: Publication
    closing: LogEntry
    seconds: float = 0.0
    wrongly: bool | None = None
    """Whether it should have been counted; None as long as that is not judged."""


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
        self._shapes: model_file.Shapes = {}
        self._result = Audit(contract.address)
        self._taken: dict[int, int] | None = {}
        self._trainer: Trainer | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._globals: dict[str, WeightsFile | WeightsError] = {}

    def run(self, make_trainer: MakeTrainer, progress: Callable[[int, int], None]) -> Audit:
        result = self._result
        if not self._contract.has_known_code():
            self._find(None, "header", "contract", "its code is not that of FederatedLearning.sol")
        try:
            past, state = self._history()
        except LogError as error:
            self._find(None, "header", "log", str(error))
            return result
        result.plan_cid = past.plan_cid
        result.rounds = max(len(past.rounds) - 1, 0)
        plan = self._plan(past)
        if plan is None:
            return result
        self._compare_state(past, state)
        self._senders(past)
        for node_id in past.learners:
            if not 1 <= node_id <= plan.learners:
                # Nothing bounds its number of samples, hence its share.
                shards = f"the plan has shards for learners 1 to {plan.learners}"
                self._find(None, f"learner {node_id}", "registered", shards)
        if not past.rounds:
            result.notes.append("the run has not begun: there are no initial weights")
            return result
        if result.rounds < plan.rounds:
            result.notes.append(f"the run has closed {result.rounds} of {plan.rounds} rounds")
        if result.rounds > plan.rounds:
            self._find(plan.rounds + 1, "header", "round", f"the plan ends after {plan.rounds} rounds")
        trainer = make_trainer(plan)
        self._shapes = trainer.shapes()
        self._trainer = trainer
        self._initial(past, plan, trainer)
        progress(0, result.rounds)
        everything = publications([one for round_ in past.rounds for one in round_.published])
        for closed, opened in zip(past.rounds, past.rounds[1:], strict=False):
            if plan.mode == "async":
                self._asynchronous(past, plan, closed, opened.started, everything)
            else:
                self._global(past, plan, closed, opened.started)
            self._remove(str(opened.started.cid))
            progress(opened.number, result.rounds)
        self._remove("")
        for one in self._waiting.values():
            if not one.wrongly:
                node, name = f"learner {one.publication.node_id}", one.publication.cid
                result.notes.append(f"{node}'s {name} was neither counted nor refused, and later ones were counted")
        return result

    def _find(self, round_: int | None, node: str, field_: str, message: str) -> None:
        line = " ".join(message.split())
        finding = Finding(round_, node, field_, line if len(line) <= MAX_TEXT else line[:MAX_TEXT] + "…")
        if finding not in self._result.findings:
            self._result.findings.append(finding)

    def _compare(self, round_: int, node: str, field_: str, found: object, right: object) -> None:
        if found != right:
            self._find(round_, node, field_, f"is {found}, should be {right}")

    def _history(self) -> tuple[History, State]:
        """Read the log, and again if the run has gone on since, and what the contract says of its round."""
        for _ in range(LOOKS):
            past, state = history.read(self._contract), self._contract.state()
            if state.round <= max(len(past.rounds) - 1, 0):
                break
        return past, state

    def _plan(self, past: History) -> Plan | None:
        path = self._folder / "plan.json"
        try:
            self._store.fetch(past.plan_cid, path, plans.MAX_PLAN_BYTES, PLAN_PATIENCE)
            plan = plans.from_bytes(path.read_bytes(), f"plan {past.plan_cid}")
        except StoreUnreachable:
            raise
        except (PlanError, StoreError) as error:
            self._find(None, "header", "plan", str(error))
            return None
        self._result.files += 1
        return plan

    def _compare_state(self, past: History, state: State) -> None:
        """Compare what the contract's functions answer with the log that the audit goes by."""
        if past.rounds and state.round != len(past.rounds) - 1:
            self._find(None, "header", "round", f"the contract says {state.round}, its log {len(past.rounds) - 1}")
        for one in past.rounds:
            if self._contract.global_weight_at(one.number) != one.started.cid:
                self._find(one.number, "header", "globalWeightAt", "differs from the log")
        # In the round that is open a learner may publish again at any moment.
        for one in past.rounds[:-1]:
            for node_id, entry in one.latest().items():
                if self._contract.local_weight_at(one.number, node_id) != entry.cid:
                    self._find(one.number, f"learner {node_id}", "localWeightAt", "differs from the log")

    def _senders(self, past: History) -> None:
        """Check that each event comes of a call that was signed by who may make it.

        A contract that is deployed by other code than its own can have written anything into its log before.
        """
        learners = {node_id: str(entry.account) for node_id, entry in past.learners.items()}
        events = [(entry, "header", past.header) for entry in past.learners.values()]
        for one in past.rounds:
            events.append((one.started, "header", past.header))
            events += [(p, f"learner {n}", learners[n]) for p in one.published if (n := p.node_id) in learners]
        sealed = self._contract.chain.sealed(entry.transaction for entry, _, _ in events)
        for entry, node, account in events:
            known = sealed.get(entry.transaction)
            if known and (known.sender, known.receiver) != (account, self._contract.address):
                seen = f"{entry.name}'s transaction is of {known.sender}, to {known.receiver}"
                self._find(
                    entry.round, node, "sender", f"{seen}; should be of {account}, to {self._contract.address}"
                )
        if unknown := sum(entry.transaction not in sealed for entry, _, _ in events):
            self._result.notes.append(
                f"who signed {unknown} transactions was not checked: the node has no index of them"
            )

    def _fetch_global(self, name: str, plan: Plan) -> WeightsFile:
        """Return a global file; the next round begins with it, so it is kept until then."""
        known = self._globals.get(name)
        if isinstance(known, WeightsError):
            raise WeightsError(str(known))
        if known is not None and known.path.exists():
            return known
        try:
            self._globals[name] = file = self._fetch(name, plan, global_shapes(plan, self._shapes))
        except WeightsError as error:
            self._globals[name] = error
            raise
        return file

    def _fetch_local(self, one: Input | Refusal, plan: Plan) -> WeightsFile:
        return self._fetch(one.cid, plan, local_shapes(plan, self._shapes, one.node_id))

    def _fetch(self, name: str, plan: Plan, shapes: model_file.Shapes | None = None) -> WeightsFile:
        """Return a file of the run's model, or raise a WeightsError that says why there is none."""
        path = self._folder / f"{name}.safetensors"
        shapes = self._shapes if shapes is None else shapes
        try:
            self._store.fetch(name, path, model_file.size_of(shapes), plan.fetch_timeout)
        except StoreUnreachable:
            raise  # nothing can be said of the run
        except StoreError as error:
            raise WeightsError(str(error)) from error
        file = model_file.read(path, shapes)
        self._result.files += 1
        self._result.bytes += path.stat().st_size
        return file

    def _initial(self, past: History, plan: Plan, trainer: Trainer) -> None:
        name = str(past.rounds[0].started.cid)
        try:
            file = self._fetch_global(name, plan)
            meta = file.global_meta
        except WeightsError as error:
            self._find(0, "header", "file", f"{name}: {error}")
            return
        self._compare(0, "header", "plan", meta.plan, past.plan_cid)
        self._compare(0, "header", "round", meta.round, 0)
        expected = initial_file(self._folder / "again.safetensors", plan, past.plan_cid, trainer.initial())
        if file.cid != expected.cid:
            self._differ(0, meta, file, expected, "the plan's seed gives")

    def _closing(self, past: History, plan: Plan, closed: Round, entry: LogEntry) -> WeightsFile | None:
        """Return the global file that closed a round, if it is one, and check that it says of which run and round."""
        number, name = closed.number + 1, str(entry.cid)
        try:
            file = self._fetch_global(name, plan)
            meta = file.global_meta
        except WeightsError as error:
            self._find(number, "header", "file", f"{name}: {error}")
            return None
        self._compare(number, "header", "plan", meta.plan, past.plan_cid)
        self._compare(number, "header", "round", meta.round, number)
        self._compare(number, "header", "parent", meta.parent, closed.started.cid)
        self._compare(number, "header", "rule", meta.rule, plan.aggregation.rule)
        return file

    def _global(self, past: History, plan: Plan, closed: Round, entry: LogEntry) -> None:
        """Check the global weights that closed a round."""
        number, file = closed.number + 1, self._closing(past, plan, closed, entry)
        if file is None:
            return
        meta = file.global_meta
        if len(meta.inputs) < plan.required_learners:
            self._find(
                number,
                "header",
                "inputs",
                f"{len(meta.inputs)} local files, the plan asks for {plan.required_learners}",
            )
        self._members(past, plan, closed, entry, meta)
        parent = self._parent(plan, closed)
        inputs = [self._local(past, plan, closed, entry, one, parent) for one in meta.inputs]
        for refusal in meta.refused:
            self._refusal(past, plan, closed, entry, refusal, parent)
        enough = len(inputs) >= max(plan.aggregation.least(), 1)
        if enough and None not in inputs and not (parent is None and follows_parent(plan)):
            again = global_file(
                self._folder / "again.safetensors",
                plan,
                past.plan_cid,
                round_=number,
                parent=str(closed.started.cid),
                inputs=[one for one in inputs if one is not None],
                parent_file=parent,
                # What the members said is taken from the file here, and measured below.
                evidence=lambda member, _weights: file.tensor(ensembles.evidence_name(member)),
                refused=meta.refused,
                absent=meta.absent,
            )
            if again.cid != file.cid:
                self._differ(number, meta, file, again, "its local files give")
        if plan.measures_members:
            self._evidence(number, plan, file)

    def _evidence(self, number: int, plan: Plan, file: WeightsFile) -> None:
        """Check what an ensemble's members say of the held-out images, where these are at hand by measuring it."""
        for member in plan.architectures:
            name = ensembles.evidence_name(member)
            if not ensembles.is_evidence(plan.model.weighting, file.tensor(name)):
                self._find(number, "header", f"tensor {name}", "has values that nothing says of an image")
        if self._trainer is None or not isinstance(self._trainer.data, DataSet):
            note = "what the models say of the held-out images was not measured here, for want of the data set"
            if note not in self._result.notes:
                self._result.notes.append(note)
            return
        images, labels = held_out(plan, self._trainer.data)
        for member in plan.architectures:
            name, prefix = ensembles.evidence_name(member), f"{member}/"
            tensors = {name: file.tensor(name) for name in file.shapes if name.startswith(prefix)}
            probabilities = self._trainer.predict(tensors, images)
            wrong = ensembles.unexplained(plan.model.weighting, file.tensor(name), probabilities, labels)
            if wrong:
                self._find(
                    number, "header", f"tensor {name}", f"of {wrong} images it says what {member} does not say"
                )

    def _asynchronous(
        self, past: History, plan: Plan, closed: Round, entry: LogEntry, everything: Sequence[Publication]
    ) -> None:
        """Check the global weights that updates made, whichever round each began at."""
        number, file = closed.number + 1, self._closing(past, plan, closed, entry)
        if file is None:
            self._taken = None
            return
        meta = file.global_meta
        wanted = plan.aggregation.buffer or 1
        if len(meta.inputs) != wanted and not (0 < len(meta.inputs) < wanted and self._late(plan, closed, entry)):
            self._find(number, "header", "inputs", f"{len(meta.inputs)} updates, the plan asks for {wanted}")
        first = self._sequence(past, plan, number, everything, meta, entry)
        updates = [self._update(past, plan, number, everything, one) for one in meta.inputs]
        for one in meta.inputs:
            first[one.node_id, one.cid] -= 1
            if first[one.node_id, one.cid] < 0:
                self._find(closed.number, f"learner {one.node_id}", "cid", f"{one.cid} was published before")
        for refusal in meta.refused:
            first[refusal.node_id, refusal.cid] -= 1
            repeated = first[refusal.node_id, refusal.cid] < 0
            self._refused_update(past, plan, closed, entry, everything, refusal, repeated=repeated)
        parent = self._parent(plan, closed)
        if parent is not None and parent.global_meta.round != closed.number:
            return  # found where these global weights were checked; how old an update is goes by it
        good = [one for one in updates if one is not None]
        if parent is not None and good and len(good) == len(updates):
            again = asynchronous_file(
                self._folder / "again.safetensors",
                plan,
                past.plan_cid,
                parent=parent,
                updates=good,
                refused=meta.refused,
                taken=meta.taken or (),
            )
            if again.cid != file.cid:
                self._differ(number, meta, file, again, "its updates give")

    def _sequence(
        self,
        past: History,
        plan: Plan,
        number: int,
        everything: Sequence[Publication],
        meta: GlobalMeta,
        closing: LogEntry,
    ) -> Counter[tuple[int, str]]:
        """Check that nothing is counted twice or left out: of each learner the next publications, in order.

        Returns by nodeId and hash how many of these publications are the first of their hash, which may be counted;
        what its learner published again is to be refused.
        """
        before, after = self._taken or {}, dict(meta.taken or ())
        was_read, self._taken = self._taken is not None, after
        all_named = [(i.node_id, i.cid) for i in meta.inputs] + [(r.node_id, r.cid) for r in meta.refused]
        if not was_read:
            return Counter(all_named)  # the last global file could not be read, which is found already
        place = {(one.node_id, one.cid): one.entry for one in reversed(everything)}
        order = [place[one.node_id, one.cid] for one in meta.inputs if (one.node_id, one.cid) in place]
        firsts: Counter[tuple[int, str]] = Counter()
        nodes = {*before, *after} | {node_id for node_id, _ in all_named} | {one.node_id for one in everything}
        for node_id in sorted(nodes):
            node = f"learner {node_id}"
            mine = [one for one in everything if one.node_id == node_id]
            first, last = before.get(node_id, 0), after.get(node_id, 0)
            known = sum(one.entry < closing for one in mine)
            crossed = known < last <= len(mine) and self._crossed(closing, mine[last - 1].entry)
            named = [name for other, name in all_named if other == node_id]
            if last < first or (last > known and not crossed):
                self._find(number, node, "taken", f"is {last}, should be {first} to {known}")
                firsts.update((node_id, name) for name in named)
                continue
            if crossed and last > first:
                self._note_crossed(number - 1, node)
            next_ = [one.cid for one in mine[first:last]]
            if sorted(next_) != sorted(named):
                self._find(
                    number,
                    node,
                    "taken",
                    f"its publications {first + 1} to {last} are {', '.join(next_) or 'none'}, "
                    f"the file names {', '.join(named) or 'none'}",
                )
                firsts.update((node_id, name) for name in named)
                continue
            earlier = {one.cid for one in mine[:first]}
            firsts.update((node_id, name) for name in set(next_) - earlier)
            if last < len(mine):
                self._passed_over(past, plan, number, mine[last], order, closing, everything)
            else:
                self._waiting.pop(node_id, None)
        swapped = [(first, second) for first, second in pairwise(order) if second < first]
        if any(self._before(second, first) for first, second in swapped):
            self._find(number, "header", "inputs", "are not in the order in which they were published")
        elif swapped:
            self._result.notes.append(f"round {number - 1}: some updates changed places when a block was replaced")
        return firsts

    def _passed_over(
        self,
        past: History,
        plan: Plan,
        number: int,
        one: Publication,
        counted: Sequence[LogEntry],
        closing: LogEntry,
        everything: Sequence[Publication],
    ) -> None:
        """Check that a learner's next publication is not left lying while later ones of others are counted.

        The header may wait for a file that is missing, and longer if it was killed in the meantime. For one that
        arrives slowly it waits as long as each block comes within ``fetch_timeout``.
        """
        node_id = one.node_id
        if not any(self._before(one.entry, other) for other in counted):
            self._waiting.pop(node_id, None)
            return
        known = self._waiting.get(node_id)
        if known is None or known.publication != one:
            known = _Waiting(one, closing)
        seconds = known.seconds + min(self._seconds(known.closing, closing), plan.fetch_timeout + LATE)
        wrongly = known.wrongly
        more_blocks = model_file.size_of(self._shapes) // cid.CHUNK_BYTES - 1
        if wrongly is None and seconds > (PATIENCE + more_blocks) * plan.fetch_timeout + LATE:
            try:
                self._good_update(past, plan, one, number - 1, everything)
            except (WeightsError, DataError):
                wrongly = False
            else:
                wrongly = True
                what = "was neither counted nor refused while later ones were"
                self._find(one.entry.round, f"learner {node_id}", "inputs", f"{one.cid} {what}")
        self._waiting[node_id] = _Waiting(one, closing, seconds, wrongly)

    def _good_update(
        self, past: History, plan: Plan, one: Publication, newest: int, everything: Sequence[Publication]
    ) -> None:
        """Check an update as the header does, or raise."""
        if too_often(one, everything):
            raise WeightsError(history.TOO_OFTEN)
        file = self._fetch(one.cid, plan)
        check_update(file, self._contract, plan, past.plan_cid, one.node_id, newest)
        check_bounds(file, self._fetch_global(file.local_meta.parent, plan), plan)

    def _update(
        self, past: History, plan: Plan, number: int, everything: Sequence[Publication], one: Input
    ) -> Update | None:
        """Check one input of an asynchronous global file, and return it with the weights that it began at."""
        node = f"learner {one.node_id}"
        if (one.node_id, one.cid) not in {(other.node_id, other.cid) for other in everything}:
            self._find(number - 1, node, "cid", f"did not publish {one.cid}")
            return None
        try:
            file = self._fetch(one.cid, plan)
            meta = file.local_meta
        except WeightsError as error:
            self._find(number - 1, node, "file", f"{one.cid}: {error}")
            return None
        began = past.rounds[meta.round] if meta.round < number else None
        if began is None:
            self._find(number - 1, node, "round", f"is {meta.round}, should be before {number}")
            return None
        self._compare(number - 1, node, "plan", meta.plan, past.plan_cid)
        self._compare(number - 1, node, "node_id", meta.node_id, one.node_id)
        self._compare(number - 1, node, "parent", meta.parent, began.started.cid)
        if (samples := self._samples(plan, one.node_id)) is not None:
            self._compare(number - 1, node, "samples", meta.samples, samples)
        try:
            start = self._fetch_global(str(began.started.cid), plan)
        except WeightsError as error:
            self._find(began.number, "header", "file", f"{began.started.cid}: {error}")
            return None
        self._within_bounds(number - 1, node, file, start, plan)
        return Update(file, start)

    def _within_bounds(self, round_: int, node: str, file: WeightsFile, start: WeightsFile, plan: Plan) -> None:
        try:
            check_bounds(file, start, plan)
        except WeightsError as error:
            self._find(round_, node, "bounds", f"{file.cid}: {error}")

    def _refused_update(
        self,
        past: History,
        plan: Plan,
        closed: Round,
        entry: LogEntry,
        everything: Sequence[Publication],
        one: Refusal,
        *,
        repeated: bool,
    ) -> None:
        """Check that an update that the header refused deserved it; what was published again does."""
        node = f"learner {one.node_id}"
        mine = [other for other in everything if (other.node_id, other.cid) == (one.node_id, one.cid)]
        if not mine:
            self._find(closed.number, node, "refused", f"did not publish {one.cid}")
            return
        if repeated:
            return
        try:
            self._good_update(past, plan, mine[0], closed.number, everything)
        except (WeightsError, DataError) as error:
            self._result.notes.append(
                f"round {closed.number}: {node}'s {one.cid} was refused ({one.reason}); here: {error}"
            )
            return
        waited = self._seconds(mine[0].entry, entry)
        if one.reason != "missing" or waited + LATE < plan.fetch_timeout:
            self._find(closed.number, node, "refused", f"{one.cid} is good and was refused: {one.reason}")
        else:
            self._result.notes.append(
                f"round {closed.number}: {node}'s {one.cid} was refused as missing and is there now"
            )

    def _parent(self, plan: Plan, closed: Round) -> WeightsFile | None:
        """Return the global weights that a round started from, if they can be read; they were checked before."""
        name = str(closed.started.cid)
        try:
            return self._fetch_global(name, plan)
        except WeightsError as error:
            self._find(closed.number, "header", "file", f"{name}: {error}")
            return None

    def _members(self, past: History, plan: Plan, closed: Round, entry: LogEntry, meta: GlobalMeta) -> None:
        """Check that a global file speaks of every learner once, and of nobody else."""
        number = closed.number + 1
        named = [*(i.node_id for i in meta.inputs), *(r.node_id for r in meta.refused), *meta.absent]
        registered = {node_id for node_id, one in past.learners.items() if one < entry}
        for node_id in sorted(set(named)):
            if named.count(node_id) > 1:
                self._find(number, f"learner {node_id}", "inputs", "is named more than once")
            if node_id not in registered:
                self._find(number, f"learner {node_id}", "inputs", "takes part and is not registered")
        # The header can't have missed a registration: both are transactions of its account, which are numbered.
        for node_id in sorted(registered):
            published = [p for p in closed.published if p.node_id == node_id and p < entry]
            if node_id not in named:
                what = "published local weights" if published else "is registered"
                self._find(number, f"learner {node_id}", "inputs", f"{what} and is left out")
            elif node_id in meta.absent and published:
                if self._before(published[0], entry):
                    self._find(number, f"learner {node_id}", "absent", "is called absent and had published")
                else:
                    self._result.notes.append(f"round {closed.number}: learner {node_id} published as it closed")
        if meta.absent or len(registered) < plan.learners:
            if not plan.round_timeout:
                self._find(number, "header", "absent", "learners are left out, and the plan has no round_timeout")
            elif not self._late(plan, closed, entry):
                self._find(
                    number,
                    "header",
                    "absent",
                    f"learners are left out {self._seconds(closed.started, entry)} s after the round began, "
                    f"the plan waits {plan.round_timeout:g} s for them",
                )

    def _seconds(self, first: LogEntry, second: LogEntry) -> int:
        chain = self._contract.chain
        return chain.timestamp(second.block) - chain.timestamp(first.block)

    def _before(self, entry: LogEntry, closing: LogEntry) -> bool:
        """Return whether an event came long enough before the closing of a round to be known to the header."""
        return self._seconds(entry, closing) > LATE

    def _crossed(self, closing: LogEntry, entry: LogEntry) -> bool:
        """Return whether an event came so soon after the closing of a round that the header may have known it."""
        return 0 <= self._seconds(closing, entry) <= LATE

    def _note_crossed(self, round_: int, node: str) -> None:
        self._result.notes.append(
            f"round {round_}: {node}'s weights were sealed again after the round that they are counted in, "
            "as a block was replaced"
        )

    def _late(self, plan: Plan, closed: Round, closing: LogEntry) -> bool:
        """Return whether a round was open for so long that it need not wait for everybody."""
        return bool(plan.round_timeout) and self._seconds(closed.started, closing) + LATE >= plan.round_timeout

    def _published(
        self, past: History, closed: Round, closing: LogEntry, one: Input | Refusal, field_: str
    ) -> LogEntry | None:
        """Check that a hash is a learner's last in a round, as far as the header could know; return its event."""
        node = f"learner {one.node_id}"
        mine = [p for p in closed.published if p.node_id == one.node_id and p < closing]
        found = [p for p in mine if p.cid == one.cid]
        if not found:
            after = past.rounds[closed.number + 1].published
            crossed = [p for p in after if (p.node_id, p.cid) == (one.node_id, one.cid) and self._crossed(closing, p)]
            if crossed:
                self._note_crossed(closed.number, node)
                return crossed[0]
            self._find(closed.number, node, field_, f"did not publish {one.cid} in this round")
            return None
        later = [p for p in mine if p > found[-1]]
        if later and self._before(later[0], closing):
            self._find(closed.number, node, field_, f"had published {later[-1].cid} in place of {one.cid}")
        elif later:
            self._result.notes.append(f"round {closed.number}: {node} published again as it closed")
        return found[0]

    def _local(
        self, past: History, plan: Plan, closed: Round, entry: LogEntry, one: Input, parent: WeightsFile | None
    ) -> WeightsFile | None:
        """Check one input of a global file, and return it if it can be read."""
        node = f"learner {one.node_id}"
        if self._published(past, closed, entry, one, "cid") is None:
            return None
        try:
            file = self._fetch_local(one, plan)
            meta = file.local_meta
        except WeightsError as error:
            self._find(closed.number, node, "file", f"{one.cid}: {error}")
            return None
        self._compare(closed.number, node, "plan", meta.plan, past.plan_cid)
        self._compare(closed.number, node, "node_id", meta.node_id, one.node_id)
        self._compare(closed.number, node, "round", meta.round, closed.number)
        self._compare(closed.number, node, "parent", meta.parent, closed.started.cid)
        if (samples := self._samples(plan, one.node_id)) is not None:
            self._compare(closed.number, node, "samples", meta.samples, samples)
        if parent is not None:
            self._within_bounds(closed.number, node, file, parent, plan)
        # In an ensemble its architecture goes by the node that it says; of another's nothing can be made.
        return file if plan.mode != "ensemble" or meta.node_id == one.node_id else None

    def _samples(self, plan: Plan, node_id: int) -> int | None:
        return shard_size(plan, node_id) if 1 <= node_id <= plan.learners else None

    def _refusal(
        self,
        past: History,
        plan: Plan,
        closed: Round,
        entry: LogEntry,
        one: Refusal,
        parent: WeightsFile | None,
    ) -> None:
        """Check that a file that the header refused deserved it."""
        node = f"learner {one.node_id}"
        published = self._published(past, closed, entry, one, "refused")
        if published is None:
            return
        often = history.too_often(closed.published, one.node_id, closed.number)
        if one.reason == history.TOO_OFTEN and often:
            self._result.notes.append(f"round {closed.number}: {node} was refused for {one.reason}")
            return
        try:
            file = self._fetch_local(one, plan)
            model_file.check_local(
                file,
                plan=past.plan_cid,
                node_id=one.node_id,
                round_=closed.number,
                parent=str(closed.started.cid),
                samples=self._samples(plan, one.node_id),
            )
            if parent is not None:
                check_bounds(file, parent, plan)
        except WeightsError as error:
            self._result.notes.append(
                f"round {closed.number}: {node}'s {one.cid} was refused ({one.reason}); here: {error}"
            )
            return
        if one.reason != "missing":
            self._find(closed.number, node, "refused", f"{one.cid} is good and was refused: {one.reason}")
        elif self._seconds(published, entry) + LATE < plan.fetch_timeout and not self._late(plan, closed, entry):
            self._find(
                closed.number,
                node,
                "refused",
                f"{one.cid} is there and was refused as missing {self._seconds(published, entry)} s after it was "
                f"published, the plan gives it {plan.fetch_timeout:g} s",
            )
        else:
            # It may have been away then; nobody can tell afterwards.
            self._result.notes.append(
                f"round {closed.number}: {node}'s {one.cid} was refused as missing and is there now"
            )

    def _differ(self, number: int, meta: GlobalMeta, file: WeightsFile, again: WeightsFile, source: str) -> None:
        """Say in which field two global files differ."""
        same = meta == again.global_meta
        for name in ("plan", "round", "parent", "rule", "refused", "absent", "taken"):
            self._compare(number, "header", name, getattr(meta, name), getattr(again.global_meta, name))
        self._shares(number, meta.inputs, again.global_meta.inputs)
        for name in file.shapes:
            found, right = file.tensor(name), again.tensor(name)
            if found.tobytes() != right.tobytes():
                same = False
                count = int((found.view(np.uint32) != right.view(np.uint32)).sum())
                self._find(
                    number,
                    "header",
                    f"tensor {name}",
                    f"differs in {count} of {found.size} values from what {source}",
                )
        if same:
            self._find(number, "header", "file", f"is {file.cid}, {source} {again.cid}")

    def _shares(self, number: int, found: tuple[Input, ...], right: tuple[Input, ...]) -> None:
        learners, expected = ([one.node_id for one in inputs] for inputs in (found, right))
        if learners != expected:
            text = ", ".join(map(str, learners)), ", ".join(map(str, expected))
            self._find(
                number, "header", "inputs", f"are of learners {text[0]}, should be of {text[1]}, in this order"
            )
        entries = {one.node_id: one for one in right}
        for one in found:
            if (other := entries.get(one.node_id)) is not None:
                for name in ("samples", "share", "started"):
                    self._compare(number, f"learner {one.node_id}", name, getattr(one, name), getattr(other, name))

    def _remove(self, kept: str) -> None:
        """Make room: of a round only its result is needed for the next."""
        for path in self._folder.glob("*.safetensors"):
            if path.stem != kept:
                path.unlink(missing_ok=True)
