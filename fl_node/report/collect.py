"""What came out of a run, from the chain and the store: as a value, as JSON, as Markdown and as a page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fl_node.aggregation.ensemble import WEIGHTS
from fl_node.artifacts import model_file
from fl_node.artifacts.store import Store
from fl_node.chain.contract import Contract, LogEntry
from fl_node.chain.node import Sealed
from fl_node.errors import StoreError, WeightsError
from fl_node.models.trainer import Score
from fl_node.plan.schema import Plan
from fl_node.protocol import history, impasse
from fl_node.protocol.awaited import awaited
from fl_node.protocol.budget import Budget
from fl_node.protocol.masked import keys_of
from fl_node.protocol.reader import Reader
from fl_node.protocol.retention import first_kept
from fl_node.protocol.verdicts import HeaderChange, Verdict, header_changes, verdicts

NAMED = 16
"""The most learners that have a column each in the table of rounds."""
Evaluate = Callable[[model_file.Tensors], Score]


@dataclass(frozen=True)
class Entry:
    """One model file of a run, and the transaction that published it.

    Accuracy is a fraction; it is None where nobody measured it. ``sender``, ``gas`` and ``time`` (seconds since 1970,
    by the chain's clock) are None where the chain was not asked for them.
    """

    cid: str
    block: int
    transaction: str
    accuracy: float | None = None
    loss: float | None = None
    calibration_error: float | None = None
    samples: int | None = None
    problem: str | None = None
    bytes: int | None = None
    sender: str | None = None
    gas: int | None = None
    time: int | None = None
    pruned: bool = False
    """Whether the plan's ``retention`` lets hosts delete the file, so that it was not looked for."""


@dataclass(frozen=True)
class Member:
    """A local file that a global file speaks of: accepted with a share, or rejected for a reason.

    ``began`` is the round whose global weights it was trained from, where that is known.
    """

    node_id: int
    entry: Entry
    share: float | None = None
    began: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Cost:
    """What a round cost: the gas of its publications, and the bytes of those files that could be read.

    ``round`` is None for what came before the first: the registrations and the initial weights.
    """

    round: int | None
    published: int
    local_gas: int
    global_gas: int
    local_bytes: int
    global_bytes: int


@dataclass(frozen=True)
class RoundResult:
    """A round that was closed: the local weights in it, by nodeId, and the global weights that it ended with."""

    round: int
    local: dict[int, Entry]
    result: Entry
    rejected: dict[int, str] = field(default_factory=dict)
    """Why a learner's file was rejected, by nodeId."""
    missing_learners: tuple[int, ...] = ()
    members: tuple[Member, ...] = ()
    """The local files that the global file speaks of, in its order; an asynchronous one may name a learner twice."""
    counts: dict[str, float] = field(default_factory=dict)
    """Of an ensemble: what each architecture counts for in its answers."""
    epsilon: float | None = None
    """The largest ε of a learner by then, as the global file says; None without differential privacy."""


@dataclass(frozen=True)
class Result:
    """A run as far as it has come."""

    plan: Plan
    plan_cid: str
    contract: str
    header: str
    learners: dict[int, str]
    round: int
    initial: Entry | None
    rounds: tuple[RoundResult, ...]
    open_round: dict[int, Entry]
    """What was published in the round that is going on."""
    costs: tuple[Cost, ...] = ()
    """Of each round, the open one too; empty where the chain was not asked for them."""
    verdicts: tuple[Verdict, ...] = ()
    """What the learners said of all global weights, withdrawn ones too."""
    header_changes: tuple[HeaderChange, ...] = ()
    spent: dict[int, float] = field(default_factory=dict)
    """ε of each learner by all that it published, by nodeId; nothing without differential privacy."""
    budget_over: bool = False
    """Whether the privacy budget has ended the run."""
    budget_spent: tuple[int, ...] = ()
    """The learners that publish nothing more, because their privacy budget is spent."""
    awaited: tuple[int, ...] = ()
    """The learners that the current round waits for, as far as the chain tells; if there are none, for the header."""
    sitting_out: tuple[int, ...] = ()
    """Learners that can't publish in the open round, for they have no key of it; with masks only."""
    stuck: str = ""
    """Why a run with masks can never go on, with the remedy; empty if it can."""

    @property
    def newest(self) -> Entry | None:
        """The newest global weights; None before the initial ones."""
        return self.rounds[-1].result if self.rounds else self.initial

    @property
    def ended(self) -> bool:
        """Whether all rounds of the plan are closed, or the privacy budget has ended the run."""
        return self.round >= self.plan.rounds or self.budget_over


def collect(
    contract: Contract,
    store: Store,
    folder: Path,
    scores: Mapping[str, Score] | None = None,
    evaluate: Evaluate | None = None,
    *,
    model: model_file.Shapes | None = None,
    traced: bool = False,
) -> Result:
    """Read a run from the chain and the store.

    Parameters
    ----------
    contract, store
        The run's contract and store.
    folder
        For the files while they are read.
    scores
        What is known already of global weights, by CID.
    evaluate
        Measures those of which nothing is known; without it their accuracy stays open.
    model
        Names and shapes of its tensors; as the initial weights have them if not given.
    traced
        Ask the chain for every transaction's sender, gas and time as well.
    """
    past = history.read(contract)
    reader = Reader(store, folder, once=True)
    plan = reader.read_plan(past.plan_cid)
    if model:
        reader.expect_model(model)
    events = [
        *past.learners.values(),
        *(log for round_ in past.rounds for log in (round_.started, *round_.published)),
    ]
    sealed = contract.chain.sealed(log.transaction for log in events) if traced else {}
    sizes: dict[str, int] = {}
    not_stored: set[str] = set()
    kept = first_kept(plan, past)

    def plain(log: LogEntry) -> Entry:
        entry = Entry(str(log.cid), log.block, log.transaction)
        of_chain = sealed.get(log.transaction)
        if of_chain is None:
            return entry
        return replace(entry, sender=of_chain.sender, gas=of_chain.gas, time=of_chain.time)

    def read(log: LogEntry) -> model_file.WeightsFile:
        name = str(log.cid)
        try:
            return reader.read(name, log.node_id)
        finally:
            if (path := reader.path(name)).exists():
                sizes[name] = path.stat().st_size

    @cache
    def local_entry(log: LogEntry) -> Entry:
        entry = plain(log)
        if log.round is not None and log.round < kept:
            return replace(entry, pruned=True)
        try:
            meta = read(log).published_meta
        except (StoreError, WeightsError) as error:
            if isinstance(error, StoreError):
                not_stored.add(entry.cid)
            return replace(entry, problem=str(error), bytes=sizes.get(entry.cid))
        entry = replace(entry, samples=meta.samples, bytes=sizes.get(entry.cid))
        if isinstance(meta, model_file.MaskedMeta):
            return entry
        return replace(entry, accuracy=meta.accuracy, loss=meta.loss)

    def global_entry(log: LogEntry) -> tuple[Entry, model_file.WeightsFile | None]:
        entry = plain(log)
        try:
            file = read(log)
            _ = file.global_meta
        except (StoreError, WeightsError) as error:
            return replace(entry, problem=str(error), bytes=sizes.get(entry.cid)), None
        entry = replace(entry, bytes=sizes.get(entry.cid))
        score = (scores or {}).get(entry.cid)
        if score is None and evaluate is not None:
            score = evaluate(file.on_demand())
        if score is None or not math.isfinite(score.loss):
            return entry, file
        measured = replace(entry, accuracy=score.accuracy, loss=score.loss)
        return replace(measured, calibration_error=score.calibration_error), file

    initial: Entry | None = None
    closed: list[RoundResult] = []
    for number, begun in enumerate(past.rounds):
        globals_, file = global_entry(begun.started)
        if number == 0:
            initial = globals_
            if file is not None:
                reader.expect_like(file)
            continue
        meta = file.global_meta if file else None
        # Of one who published more than once: what the header speaks of, else the last.
        named: list[model_file.Input | model_file.Rejection] = [*meta.inputs, *meta.refused] if meta else []
        spoken_of = {(reference.node_id, reference.cid) for reference in named}
        last = past.rounds[number - 1]
        # In an asynchronous run it may have been published in any round before, and most have no part in one. Behind
        # the closing is what crossed it.
        earlier = (
            [p for round_ in past.rounds[:number] for p in round_.published]
            if plan.mode == "async"
            else last.published
        )
        crossed = [p for round_ in past.rounds[number : number + 1] for p in round_.published]
        published = {(p.node_id, p.cid): p for p in (*crossed, *earlier)}
        chosen = ({} if plan.mode == "async" else last.latest()) | {
            p.node_id: p for key, p in published.items() if p.node_id is not None and key in spoken_of
        }

        def member(
            reference: model_file.Input | model_file.Rejection, began: int, by: Mapping[Any, LogEntry] = published
        ) -> Member:
            log = by.get((reference.node_id, reference.cid))
            entry = local_entry(log) if log else Entry(reference.cid, 0, "", problem="was not published")
            if isinstance(reference, model_file.Rejection):
                return Member(reference.node_id, entry, reason=reference.reason)
            return Member(
                reference.node_id, entry, reference.share, began if reference.started is None else reference.started
            )

        closed.append(
            RoundResult(
                number - 1,
                {node_id: local_entry(log) for node_id, log in sorted(chosen.items())},
                globals_,
                {r.node_id: r.reason for r in meta.refused} if meta else {},
                meta.absent if meta else (),
                tuple(member(reference, number - 1) for reference in named),
                dict(zip(plan.architectures, file.tensor(WEIGHTS).tolist(), strict=True))
                if file and WEIGHTS in file.shapes
                else {},
                meta.epsilon if meta else None,
            )
        )
    current = past.rounds[-1].latest() if past.rounds else {}
    open_round = {node_id: local_entry(log) for node_id, log in sorted(current.items())}
    missing = {node_id for node_id, entry in open_round.items() if entry.cid in not_stored}
    taken = dict(file.global_meta.taken or ()) if past.rounds and file is not None else None
    budget = Budget.of(plan, past, taken)
    return Result(
        plan=plan,
        plan_cid=past.plan_cid,
        contract=contract.address,
        header=past.deployer,
        learners={node_id: str(log.account) for node_id, log in past.learners.items()},
        round=max(len(past.rounds) - 1, 0),
        initial=initial,
        rounds=tuple(closed),
        open_round=open_round,
        sitting_out=history.sitting_out(past.rounds[-1]) if past.rounds else (),
        costs=_costs(past, sealed, sizes) if traced else (),
        verdicts=verdicts(past),
        header_changes=header_changes(past),
        spent=budget.epsilons() if plan.dp is not None else {},
        budget_over=budget.is_over(),
        budget_spent=tuple(budget.spent_learners()),
        awaited=awaited(plan, past, missing),
        stuck=_stuck(reader, plan, past, file) if past.rounds else "",
    )


def _stuck(reader: Reader, plan: Plan, past: history.History, parent: model_file.WeightsFile | None) -> str:
    current = past.rounds[-1]
    if not plan.is_masked or current.number >= plan.rounds:
        return ""
    if current.closed is None:
        keyed = None if parent is None else keys_of(parent).keys()
        found = impasse.of_open_round(plan, current.number, history.sitting_out(current), keyed)
    elif parent is None:
        return ""
    else:
        published = {node_id: str(entry.cid) for node_id, entry in current.latest().items()}
        opened = {entry.node_id: str(entry.cid) for entry in current.openings if entry.node_id is not None}
        try:
            found = impasse.of_closed_round(reader, plan, past.plan_cid, parent, published, opened)
        except (StoreError, WeightsError):
            return ""  # whoever reads this sees what can't be read
    return "" if found is None else found.text


def _costs(past: history.History, sealed: Mapping[str, Sealed], sizes: Mapping[str, int]) -> tuple[Cost, ...]:
    def gas(logs: Iterable[LogEntry]) -> int:
        # One transaction, one event; what the node does not know of counts for nothing.
        return sum(sealed[log.transaction].gas for log in logs if log.transaction in sealed)

    def size(logs: Iterable[LogEntry]) -> int:
        return sum(sizes.get(str(log.cid), 0) for log in logs)

    first = [round_.started for round_ in past.rounds[:1]]
    costs = [Cost(None, 0, 0, gas([*past.learners.values(), *first]), 0, size(first))]
    for round_ in past.rounds:
        closing = [after.started for after in past.rounds[round_.number + 1 : round_.number + 2]]
        costs.append(
            Cost(
                round_.number,
                len(round_.published),
                gas(round_.published),
                gas(closing),
                size(round_.published),
                size(closing),
            )
        )
    if past.rounds and not past.rounds[-1].published:
        costs.pop()  # a round in which nothing has happened, as after the last
    return tuple(costs)


def as_json(result: Result, **more: Any) -> str:
    """Return a result, and what else belongs to it, as JSON."""
    content = {
        "plan": result.plan.model_dump(),
        "plan_cid": result.plan_cid,
        "contract": result.contract,
        "header": result.header,
        "learners": result.learners,
        "round": result.round,
        "ended": result.ended,
        "initial": asdict(result.initial) if result.initial else None,
        "rounds": [asdict(closed) for closed in result.rounds],
        "open_round": {node_id: asdict(entry) for node_id, entry in result.open_round.items()},
        "sitting_out": result.sitting_out,
        "costs": [asdict(cost) for cost in result.costs],
        "verdicts": [asdict(verdict) for verdict in result.verdicts],
        "header_changes": [asdict(change) for change in result.header_changes],
        "epsilon": result.spent,
        "budget_spent": result.budget_spent,
        "awaited": result.awaited,
        "stuck": result.stuck,
    }
    return json.dumps(content | more, indent=2)


def _summary(result: Result, *, loss: bool) -> list[list[str]]:
    rows = [["round", "accepted", "rejected", "missing", "worst", "by", "median", "best", "by", "global"]]

    def shown(value: float | None) -> str:
        return percent(value) if not loss else "–" if value is None else f"{value:.4f}"

    def of(entry: Entry) -> float | None:
        return entry.loss if loss else entry.accuracy

    for closed in result.rounds:
        known = sorted(
            ((value, node_id) for node_id, entry in closed.local.items() if (value := of(entry)) is not None),
            reverse=loss,
        )
        (low, worst), (high, best) = (known[0], known[-1]) if known else ((None, "–"), (None, "–"))
        middle = statistics.median(value for value, _ in known) if known else None
        rejected = len(closed.rejected)
        counts = (len(closed.local.keys() - closed.rejected.keys()), rejected, len(closed.missing_learners))
        ends = [shown(low), str(worst), shown(middle), shown(high), str(best)]
        rows.append([str(closed.round), *map(str, counts), *ends, shown(of(closed.result))])
    return rows


@cache
def paper() -> dict[str, Any]:
    """Return the figures of Hwang & Kim (2024)."""
    content: dict[str, Any] = json.loads((resources.files("fl_node") / "paper.json").read_text(encoding="utf-8"))
    return content


def comparable(plan: Plan) -> bool:
    """Return whether a plan is the paper's experiment, so that its figures may stand beside the paper's."""
    return (
        plan.data.name == "mnist"
        and plan.data.train == 60_000
        and plan.data.test == 10_000
        and plan.learners == 2
        and plan.rounds == 5
        and plan.training.epochs == 5
    )


def table(result: Result, *, loss: bool = False) -> list[list[str]]:
    """Return the table of rounds as texts: the heads, then a row a round with accuracies in percent, or losses.

    Beside the accuracies of the paper's experiment stand the paper's own. Of more than :data:`NAMED` learners each
    row has the worst, the median and the best.
    """
    nodes = sorted(result.learners)
    if len(nodes) > NAMED:
        return _summary(result, loss=loss)
    beside = not loss and comparable(result.plan) and [str(n) for n in nodes] == list(paper()["local_accuracy"])
    kinds = {n: f", {result.plan.architecture_of(n)}" if result.plan.mode == "ensemble" else "" for n in nodes}
    heads = ["round", *(f"learner {n}{kinds[n]}" for n in nodes), "global"]
    if beside:
        heads += [*(f"paper {n}" for n in nodes), "paper global"]
    rows = [heads]

    def value(entry: Entry) -> str:
        if loss:
            return "–" if entry.loss is None else f"{entry.loss:.4f}"
        return percent(entry.accuracy)

    for closed in result.rounds:
        row = [str(closed.round)]
        for node_id in nodes:
            if node_id in closed.rejected:
                row.append("rejected")
            elif node_id in closed.local:
                row.append("pruned" if closed.local[node_id].pruned else value(closed.local[node_id]))
            else:
                row.append("missing" if node_id in closed.missing_learners else "–")
        row.append(value(closed.result))
        if beside and closed.round < result.plan.rounds:
            row += [percent(paper()["local_accuracy"][str(n)][closed.round]) for n in nodes]
            last = closed.round + 1 == result.plan.rounds
            row.append(percent(paper()["final_global_accuracy"]) if last else "")
        rows.append(row + [""] * (len(heads) - len(row)))
    return rows


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with two digits after the point."""
    return "–" if fraction is None else f"{fraction * 100:.2f}"
