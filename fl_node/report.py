"""What came out of a run, from the chain and the store: as a value, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fl_node import history, weights
from fl_node import plan as plans
from fl_node.aggregate import local_shapes
from fl_node.audit import Audit
from fl_node.chain import Contract, LogEntry
from fl_node.errors import StoreError, WeightsError
from fl_node.model import Score
from fl_node.plan import Plan
from fl_node.render import render
from fl_node.store import Store

Evaluate = Callable[[weights.Tensors], Score]


@dataclass(frozen=True)
class Entry:
    """One model file of a run. Accuracy is a fraction; it is None where nobody measured it."""

    cid: str
    block: int
    transaction: str
    accuracy: float | None = None
    loss: float | None = None
    samples: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class RoundResult:
    """A round that was closed: the local weights in it, by nodeId, and the global weights that it ended with."""

    round: int
    local: dict[int, Entry]
    result: Entry
    refused: dict[int, str] = field(default_factory=dict)
    absent: tuple[int, ...] = ()


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

    @property
    def ended(self) -> bool:
        """Whether all rounds of the plan are closed."""
        return self.round >= self.plan.rounds


def collect(
    contract: Contract,
    store: Store,
    folder: Path,
    scores: Mapping[str, Score] | None = None,
    evaluate: Evaluate | None = None,
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
    """
    past = history.read(contract)
    plan_path = folder / "plan.json"
    store.fetch(past.plan_cid, plan_path, plans.MAX_PLAN_BYTES, 30.0)
    plan = plans.from_bytes(plan_path.read_bytes(), f"plan {past.plan_cid}")

    shapes: weights.Shapes | None = None  # of the initial weights, once they are read

    def read(log: LogEntry, expected: weights.Shapes | None) -> weights.WeightsFile:
        path = folder / f"{log.cid}.safetensors"
        limit = weights.MAX_GLOBAL_BYTES if expected is None else weights.size_of(expected)
        store.fetch(str(log.cid), path, limit, plan.fetch_timeout)
        return weights.read(path, expected)

    def local_entry(log: LogEntry) -> Entry:
        plain = Entry(str(log.cid), log.block, log.transaction)
        try:
            expected = local_shapes(plan, shapes, log.node_id) if shapes and log.node_id else None
            meta = read(log, expected).local_meta
        except (StoreError, WeightsError) as error:
            return replace(plain, problem=str(error))
        return replace(plain, accuracy=meta.accuracy, loss=meta.loss, samples=meta.samples)

    def global_entry(log: LogEntry) -> tuple[Entry, weights.WeightsFile | None]:
        plain = Entry(str(log.cid), log.block, log.transaction)
        try:
            file = read(log, shapes)
            _ = file.global_meta
        except (StoreError, WeightsError) as error:
            return replace(plain, problem=str(error)), None
        score = (scores or {}).get(plain.cid)
        if score is None and evaluate is not None:
            score = evaluate(file.tensors())
        return (replace(plain, accuracy=score.accuracy, loss=score.loss) if score else plain), file

    initial: Entry | None = None
    closed: list[RoundResult] = []
    for number, begun in enumerate(past.rounds):
        globals_, file = global_entry(begun.started)
        if number == 0:
            initial, shapes = globals_, file.shapes if file else None
            continue
        meta = file.global_meta if file else None
        # Of one who published more than once: what the header speaks of, else the last.
        named: list[weights.Input | weights.Refusal] = [*meta.inputs, *meta.refused] if meta else []
        spoken_of = {(one.node_id, one.cid) for one in named}
        last = past.rounds[number - 1]
        # In an asynchronous run it may have been published in any round before, and most have no part in one.
        some = [p for one in past.rounds[:number] for p in one.published] if plan.mode == "async" else last.published
        chosen = ({} if plan.mode == "async" else last.latest()) | {
            p.node_id: p for p in some if p.node_id is not None and (p.node_id, p.cid) in spoken_of
        }
        closed.append(
            RoundResult(
                number - 1,
                {node_id: local_entry(log) for node_id, log in sorted(chosen.items())},
                globals_,
                {r.node_id: r.reason for r in meta.refused} if meta else {},
                meta.absent if meta else (),
            )
        )
    current = past.rounds[-1].latest() if past.rounds else {}
    return Result(
        plan=plan,
        plan_cid=past.plan_cid,
        contract=contract.address,
        header=past.header,
        learners={node_id: str(log.account) for node_id, log in past.learners.items()},
        round=max(len(past.rounds) - 1, 0),
        initial=initial,
        rounds=tuple(closed),
        open_round={node_id: local_entry(log) for node_id, log in sorted(current.items())},
    )


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
        "rounds": [asdict(one) for one in result.rounds],
        "open_round": {node_id: asdict(one) for node_id, one in result.open_round.items()},
    }
    return json.dumps(content | more, indent=2)


@cache
def paper() -> dict[str, Any]:
    """Return the figures of Hwang & Kim (2024)."""
    content: dict[str, Any] = json.loads((resources.files("fl_node") / "paper.json").read_text())
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


def write(folder: Path, name: str, result: Result, audit: Audit, versions: Mapping[str, str]) -> Path:
    """Write ``report.md`` and ``report.json`` and return the former's path."""
    rows = table(result)
    (folder / "report.json").write_text(
        as_json(result, name=name, versions=dict(versions), audit=asdict(audit) | {"passed": audit.passed}) + "\n"
    )
    path = folder / "report.md"
    path.write_text(
        render("report.md.j2", name=name, result=result, audit=audit, versions=versions, rows=rows, paper=paper()),
        encoding="utf-8",
    )
    return path


def table(result: Result) -> list[list[str]]:
    """Return the table of rounds as texts: the heads, then a row a round.

    Beside the paper's experiment stand the paper's own figures.
    """
    nodes = sorted(result.learners)
    beside = comparable(result.plan) and [str(n) for n in nodes] == list(paper()["local_accuracy"])
    heads = ["global epoch", *(f"learner {n}" for n in nodes), "global"]
    if beside:
        heads += [*(f"paper {n}" for n in nodes), "paper global"]
    rows = [heads]
    for one in result.rounds:
        row = [str(one.round + 1)]
        for node_id in nodes:
            if node_id in one.refused:
                row.append("refused")
            elif node_id in one.local:
                row.append(percent(one.local[node_id].accuracy))
            else:
                row.append("absent" if node_id in one.absent else "–")
        row.append(percent(one.result.accuracy))
        if beside:
            row += [percent(paper()["local_accuracy"][str(n)][one.round]) for n in nodes]
            last = one.round + 1 == result.plan.rounds
            row.append(percent(paper()["final_global_accuracy"]) if last else "")
        rows.append(row)
    return rows


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with two digits after the point."""
    return "–" if fraction is None else f"{fraction * 100:.2f}"
