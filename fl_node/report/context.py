"""What a report shows: numbers in order for its templates, and pictures for the page."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from fl_node.audit.budget import unproven
from fl_node.audit.result import Audit
from fl_node.data.partition import shard_size
from fl_node.models.error_analysis import ErrorAnalysis
from fl_node.plan.schema import Plan
from fl_node.protocol.hidden import hidden
from fl_node.report import collect
from fl_node.report.collect import Cost, Entry, Result, percent
from fl_node.report.plots import MANY, STYLES, Line, Span
from fl_node.report.standings import Standing, outliers, slowest, standings
from fl_node.report.turns import Turn, closings, members, newest, turns
from fl_node.runtime.markdown import block, code, grid
from fl_node.wording import counted

LARGE = 2000
"""Local files; of more a page has a line for each instead of its details, and no picture of the ancestry, which would
be larger than all the rest, and shows nothing."""
ROWS = 24
"""The most learners in the timeline, which has the slowest of more, and in the picture of the ancestry, which more
learners make a blur."""


@dataclass(frozen=True)
class LeftOut:
    """A learner whose work is not in a round's global weights."""

    round: int
    node_id: int
    what: str
    reason: str


def context(
    name: str,
    result: Result,
    audit: Audit,
    versions: Mapping[str, str],
    error_analysis: ErrorAnalysis | None,
    split: Mapping[int, Sequence[int]] | None,
) -> dict[str, Any]:
    """Return the variables of the report's templates; see :func:`fl_node.report.writer.write`.

    Parameters
    ----------
    name
        What the report calls the run.
    result
        What the chain and the files say of the run.
    audit
        The audit's result.
    versions
        The versions of everything that the result depends on, by name.
    error_analysis
        The error analysis of the newest global weights, if available.
    split
        The number of images of each label, by nodeId, if the labels are available.
    """
    when = turns(result)
    ranks = standings(result, when)
    is_large = len(result.learners) * len(result.rounds) > LARGE
    return {
        "name": name,
        "result": result,
        "plan": result.plan,
        "audit": audit,
        "versions": versions,
        "rows": collect.table(result),
        "loss_rows": collect.table(result, loss=True),
        "paper": collect.paper() if result.plan.data.name == "mnist" else None,
        "comparable": collect.comparable(result.plan),
        "last": result.newest,
        "state": _state(result),
        "data_name": _data_name(result.plan),
        "trained_on": sum(shard_size(result.plan, n) for n in range(1, result.plan.learners + 1)),
        "hidden": hidden(result.plan),
        "shared_out": result.plan.data.partitioner.description,
        "rounds": [(closed, members(closed)) for closed in result.rounds],
        "epsilon": max(result.spent.values(), default=None),
        "budget_rows": [[node_id, f"{spent:g}"] for node_id, spent in result.spent.items()],
        "unproven": unproven(result.plan),
        "left_out": left_out(result),
        "left_rows": [[left.round, left.node_id, left.what, left.reason] for left in left_out(result)],
        "turns": when,
        "turn_rows": [_turn_row(turn) for turn in (newest(when, LARGE // 4) if is_large else when)],
        "update_rows": _update_rows(result)[-LARGE // 4 if is_large else 0 :],
        "is_large": is_large,
        "many_learners": len(result.learners) > MANY,
        "standing_rows": [_standing_row(row) for row in ranks],
        "outliers": [f"learner {row.node_id} ({row.distance:+.2f})" for row in outliers(ranks)],
        "slowest": [f"learner {row.node_id} ({row.seconds:g} s)" for row in slowest(ranks)],
        "member_rows": _member_rows(result),
        "error_analysis": error_analysis,
        "confusion_rows": _confusion_rows(error_analysis),
        "most_wrong": _most_wrong(error_analysis),
        "split": split,
        "split_rows": [[node_id, *row, sum(row)] for node_id, row in (split or {}).items()],
        "shard_rows": [[n, number(shard_size(result.plan, n))] for n in range(1, result.plan.learners + 1)],
        "paper_rows": _paper_rows(),
        "verdict_rows": _verdict_rows(result),
        "header_rows": [[change.node, code(change.account), change.block] for change in result.header_changes],
        "cost_rows": [_cost_row(cost) for cost in result.costs],
        "gas": sum(cost.local_gas + cost.global_gas for cost in result.costs),
        "bytes": sum(cost.local_bytes + cost.global_bytes for cost in result.costs),
        "percent": percent,
        "clock": clock,
        "number": number,
        "grid": grid,
        "code": code,
        "block": block,
        "file_rows": _file_rows(result)[-LARGE // 4 if is_large else 0 :],
        "run_rows": _run_rows(result, versions),
        "shade": shade,
    }


def pictures(result: Result, split: Mapping[int, Sequence[int]] | None) -> dict[str, Any]:
    """Return the pictures of a page by their names; none but that of the ancestry where matplotlib is missing."""
    drawn: dict[str, Any] = {"tree": tree(result), "drawing": importlib.util.find_spec("matplotlib") is not None}
    if not drawn["drawing"]:
        return {"plots": {}} | drawn
    from fl_node.report import plots

    drawings: dict[str, str] = {}
    if result.rounds:
        accuracy = [*curves(result, loss=False), *paper_lines(result)]
        if any(line.points for line in accuracy):
            title = f"Accuracy on the test images by round, {_of_whom(accuracy)}"
            drawings["accuracy"] = plots.lines("accuracy", title, accuracy, "accuracy, %", "round")
        losses = curves(result, loss=True)
        if any(line.points for line in losses):
            title = f"Loss on the test images by round, {_of_whom(losses)}"
            drawings["loss"] = plots.lines("loss", title, losses, "loss (cross-entropy)", "round")
    spent = [
        (closed.epsilon, 100 * closed.result.accuracy)
        for closed in result.rounds
        if closed.epsilon is not None and closed.result.accuracy is not None
    ]
    if spent:
        title = "Accuracy of the global weights against what was spent of the privacy budget"
        line = Line("global", spent, "global")
        label = f"ε for δ = {result.plan.dp.delta:g}" if result.plan.dp is not None else "ε"
        drawings["budget"] = plots.lines("budget", title, [line], "accuracy, %", label, whole=False)
    if result.plan.mode == "async" and any(turn.member.share is not None for turn in turns(result)):
        for key, title, y_label, of in (
            ("staleness", "Staleness of each update", "rounds closed since the start of the update", _staleness),
            ("mixing", "Weight of each update in the global weights", "weight", _weight),
        ):
            series = _by_learner(result, of)
            drawings[key] = plots.points(key, title, series, y_label, "round")
    if rows := _spans(result):
        begin = min(span.start for _, spans in rows for span in spans)
        marks = [seconds for seconds in closings(result) if seconds is not None and seconds >= begin]
        title = "When each learner worked and waited"
        drawings["timeline"] = plots.timeline("timeline", title, rows, marks)
    if any(cost.local_gas or cost.global_gas for cost in result.costs):
        labels = ["set-up" if cost.round is None else str(cost.round) for cost in result.costs]
        gas = {
            "learners": [cost.local_gas / 1000 for cost in result.costs],
            "header": [cost.global_gas / 1000 for cost in result.costs],
        }
        size = {
            "local files": [cost.local_bytes / 1e6 for cost in result.costs],
            "global file": [cost.global_bytes / 1e6 for cost in result.costs],
        }
        drawings["gas"] = plots.stacks("gas", "Gas by round", gas, labels, "thousand gas", "round")
        drawings["bytes"] = plots.stacks("bytes", "Bytes by round", size, labels, "MB", "round")
    if split:
        drawings["split"] = plots.bubbles("split", "Images per label and learner", split)
    return {"plots": {key: Markup(text) for key, text in drawings.items()}} | drawn  # noqa: S704 - of plots alone


def left_out(result: Result) -> list[LeftOut]:
    """Return whose work is not in which global weights, and why."""
    rows = []
    for closed in result.rounds:
        for member in closed.members:
            if member.reason is not None:
                rows.append(LeftOut(closed.round, member.node_id, "rejected", member.reason))
        for node_id in closed.missing_learners:
            rows.append(LeftOut(closed.round, node_id, "missing", "had not published when the round closed"))
    return rows


def curves(result: Result, *, loss: bool) -> list[Line]:
    """Return accuracy in percent, or loss, over rounds: a line a learner and one of the global weights."""

    def value(entry: Entry) -> float | None:
        if loss:
            return entry.loss
        return None if entry.accuracy is None else 100 * entry.accuracy

    def points(entries: Iterable[tuple[int, Entry]]) -> list[tuple[float, float]]:
        return [(number, figure) for number, entry in entries if (figure := value(entry)) is not None]

    locals_ = [
        Line(
            f"learner {node_id}",
            points(
                (closed.round, member.entry)
                for closed in result.rounds
                for member in members(closed)
                if member.node_id == node_id and member.reason is None
            ),
        )
        for node_id in sorted(result.learners)
    ]
    return [*locals_, Line("global", points((closed.round, closed.result) for closed in result.rounds), "global")]


def _of_whom(series: Iterable[Line]) -> str:
    """Return whose values a diagram shows, for its title."""
    kinds = {line.kind for line in series if line.points}
    words = {"learner": "of each learner", "global": "of the global weights"}
    return " and ".join(text for kind, text in words.items() if kind in kinds)


def paper_lines(result: Result) -> list[Line]:
    """Return the paper's Tables 2 and 3 in percent, as far as the run goes; nothing for another data set.

    Its global epoch r + 1 is round r. Its single node is placed by its own epochs, of which five make a round; those
    before the end of round 0 have no place.
    """
    if result.plan.data.name != "mnist":
        return []
    paper, last = collect.paper(), max(len(result.rounds) - 1, 0)
    lines_ = [
        Line(
            f"paper, learner {node_id}",
            [(number, 100 * value) for number, value in enumerate(values) if number <= last],
            "paper",
        )
        for node_id, values in paper["local_accuracy"].items()
    ]
    single = [(epoch / 5 - 1, 100 * value) for epoch, value in enumerate(paper["single_node_accuracy"], 1)]
    lines_.append(Line("paper, single node", [point for point in single if 0 <= point[0] <= last], "paper"))
    final = len(paper["local_accuracy"]["1"]) - 1
    if last >= final:
        lines_.append(Line("paper, final global", [(final, 100 * paper["final_global_accuracy"])], "paper"))
    return lines_


def tree(result: Result) -> Markup:
    """Draw which local files made which global file, from left to right, with a link to each file's details."""
    nodes = sorted(result.learners)
    if result.initial is None or len(nodes) > ROWS or len(nodes) * len(result.rounds) > LARGE:
        return Markup("")
    step, lane, edge = 112, 40 if len(nodes) <= MANY else 32, 30
    asynchronous = result.plan.mode == "async"
    width, height = 2 * edge + step * len(result.rounds), edge + lane * (len(nodes) + asynchronous)
    # Edges that skip a round would run through the global weights between, but for a lane of their own.
    middle = edge / 2 + lane / 2 if asynchronous else height / 2
    first = edge / 2 + lane / 2 + lane * asynchronous
    place = {node_id: first + lane * position for position, node_id in enumerate(nodes)}
    edges: list[str] = []
    files: list[str] = []
    for number_, closed in enumerate((None, *result.rounds)):
        x, entry = edge + step * number_, result.initial if closed is None else closed.result
        for position, member in enumerate(members(closed) if closed else ()):
            # One that the contract does not know of stands at the edge.
            y, at = place.get(member.node_id, height - edge / 2), x - step / 2
            began = number_ - 1 if member.began is None else member.began
            colour = STYLES[nodes.index(member.node_id) % MANY][0] if member.node_id in nodes else "var(--muted)"
            rejected = member.reason is not None
            look = f"stroke:{colour}" + (";stroke-dasharray:3 4" if rejected else "")
            edges.append(_edge(edge + step * began, middle, at, y, look))
            if member.share is not None:
                edges.append(_edge(at, y, x, middle, look))
            title = "rejected" if rejected else f"{percent(member.entry.accuracy)} %"
            title = f"learner {member.node_id}, round {number_ - 1}: {title}"
            text = "×" if rejected else str(member.node_id)
            files.append(_node(at, y, f"local-{number_ - 1}-{position}", text, title, look))
        title, look = f"global weights {number_}: {percent(entry.accuracy)} %", "stroke:var(--ink);stroke-width:3"
        files.append(_node(x, middle, f"global-{number_}", str(number_), title, look))
    return Markup(  # noqa: S704 - all that is not this function's own is escaped
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" class="tree" '
        f'aria-hidden="true"><g class="edges">{"".join(edges)}</g>{"".join(files)}</svg>'
    )


def _edge(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Return a curve that leaves and arrives level."""
    bend = (x1 + x2) / 2
    return f'<path d="M{x1:g} {y1:g}C{bend:g} {y1:g} {bend:g} {y2:g} {x2:g} {y2:g}" style="{style}"/>'


def _node(x: float, y: float, link: str, text: str, title: str, style: str) -> str:
    """Return a circle with a text in it that leads to a file's details; the list below it is for the keyboard."""
    return (
        f'<a href="#{link}" tabindex="-1"><title>{html.escape(title)}</title><circle cx="{x:g}" cy="{y:g}" r="14" '
        f'style="{style}"/><text x="{x:g}" y="{y + 4:g}">{html.escape(text)}</text></a>'
    )


def clock(seconds: int | None) -> str:
    """Return a moment as text in UTC."""
    if seconds is None:
        return "–"
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s since 1970"  # a sealer may write any number


def number(value: int | None) -> str:
    """Return a whole number with a thin space at the thousands."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def shade(value: int, most: int, *, correct: bool = False) -> str:
    """Return the background of a cell of the confusion matrix as a CSS colour: blue if correct, else vermilion.

    Parameters
    ----------
    value
        The number of images in the cell.
    most
        The largest number of wrong images in a cell; it has the strongest colour.
    correct
        Whether the cell counts correct predictions.
    """
    if not value:
        return "transparent"
    strength = 0.25 if correct else 0.12 + 0.38 * value / max(most, 1)
    return f"rgb({'0 114 178' if correct else '213 94 0'} / {strength:.2f})"


def _state(result: Result) -> str:
    if result.budget_over and result.round < result.plan.rounds:
        return (
            f"ended after {result.round} of {counted(result.plan.rounds, 'round')}, when its privacy budget was spent"
        )
    if result.ended:
        return f"ended after {counted(result.round, 'round')}"
    return f"is in progress, in round {result.round} of {result.plan.rounds}"


def _data_name(plan: Plan) -> str:
    if plan.custom is not None:
        return f"module {plan.custom.module}"
    return {"mnist": "MNIST", "folder": "a folder"}.get(plan.data.name, plan.data.name)


def _spans(result: Result) -> list[tuple[str, list[Span]]]:
    """Return the rows of the timeline: of many learners the slowest, of many rounds the newest."""
    rows: dict[str, list[Span]] = {}
    when = turns(result)
    if len(result.learners) > ROWS:
        timed = [row for row in standings(result, when) if row.seconds is not None]
        ranked = sorted(timed, key=lambda row: (-(row.seconds or 0.0), row.node_id))
        shown = {row.node_id for row in ranked[:ROWS]}
        when = [turn for turn in when if turn.node_id in shown]
    for turn in newest(when, LARGE // 4):
        spans = rows.setdefault(f"learner {turn.node_id}", [])
        spans.append(Span(turn.start, turn.ready, "work"))
        if turn.free is not None:
            spans.append(Span(turn.ready, turn.free, "wait"))
    return list(rows.items())


def _staleness(turn: Turn) -> float | None:
    return None if turn.began is None else turn.round - turn.began


def _weight(turn: Turn) -> float | None:
    return turn.member.share


def _by_learner(result: Result, of: Any) -> list[Line]:
    lines_: dict[int, list[tuple[float, float]]] = {}
    for turn in turns(result):
        if turn.member.share is not None and (value := of(turn)) is not None:
            lines_.setdefault(turn.node_id, []).append((turn.round, value))
    return [Line(f"learner {node_id}", values) for node_id, values in sorted(lines_.items())]


def _standing_row(row: Standing) -> list[object]:
    return [
        row.node_id,
        row.accepted,
        percent(row.accuracy),
        "–" if row.distance is None else f"{row.distance:+.2f}",
        "–" if row.seconds is None else f"{row.seconds:g}",
        "–" if row.longest is None else row.longest,
    ]


def _turn_row(turn: Turn) -> list[object]:
    waited = None if turn.free is None else turn.free - turn.ready
    return [
        turn.node_id,
        turn.round,
        turn.ready,
        turn.ready - turn.start,
        "–" if waited is None else waited,
        "–" if turn.end is None else turn.end,
    ]


def _member_rows(result: Result) -> list[list[object]]:
    """Return what each architecture counts for in each global file of an ensemble, and how well it knows itself."""
    return [
        [
            closed.round,
            *(percent(closed.counts[name]) if closed.counts else "–" for name in result.plan.architectures),
            percent(closed.result.calibration_error),
        ]
        for closed in result.rounds
    ]


def _update_rows(result: Result) -> list[list[object]]:
    return [
        [
            closed.round,
            member.node_id,
            member.began,
            closed.round - member.began,
            f"{member.share:.4f}",
            percent(member.entry.accuracy),
        ]
        for closed in result.rounds
        for member in closed.members
        if member.share is not None and member.began is not None
    ]


def _confusion_rows(error_analysis: ErrorAnalysis | None) -> list[list[object]]:
    if error_analysis is None:
        return []
    labels = range(len(error_analysis.confusion))
    return [["", *labels], *([label, *error_analysis.confusion[label]] for label in labels)]


def _most_wrong(error_analysis: ErrorAnalysis | None) -> int:
    rows = error_analysis.confusion if error_analysis else ()
    wrong = [n for label, row in enumerate(rows) for predicted, n in enumerate(row) if predicted != label]
    return max(wrong, default=0)


def _paper_rows() -> list[list[object]]:
    both = collect.paper()["local_accuracy"]
    return [[epoch, *map(percent, values)] for epoch, values in enumerate(zip(both["1"], both["2"], strict=True), 1)]


def _verdict_rows(result: Result) -> list[list[object]]:
    learners = len(result.learners)
    return [[verdict.round, code(verdict.cid), verdict.words(learners)] for verdict in result.verdicts]


def _cost_row(cost: Cost) -> list[object]:
    return [
        "set-up" if cost.round is None else cost.round,
        cost.published,
        *map(number, (cost.local_gas, cost.global_gas, cost.local_bytes, cost.global_bytes)),
    ]


def _file_rows(result: Result) -> list[list[object]]:
    def row(round_: int, what: str, entry: Entry) -> list[object]:
        what += f": {entry.problem}" if entry.problem is not None else ", pruned" if entry.pruned else ""
        sealed = (entry.block, code(entry.transaction), number(entry.gas), clock(entry.time))
        return [round_, what, code(entry.cid), number(entry.bytes), *sealed]

    rows = [row(0, "initial weights", result.initial)] if result.initial else []
    for closed in result.rounds:
        for member in members(closed):
            rejected = ", rejected" if member.reason is not None else ""
            rows.append(row(closed.round, f"local weights of learner {member.node_id}{rejected}", member.entry))
        rows.append(row(closed.round + 1, "global weights", closed.result))
    return rows


def _run_rows(result: Result, versions: Mapping[str, str]) -> list[list[object]]:
    rows: list[list[object]] = [
        ["contract", code(result.contract)],
        ["plan", code(result.plan_cid)],
        ["header", code(result.header)],
    ]
    rows += [[f"learner {node_id}", code(account)] for node_id, account in result.learners.items()]
    rows += [[what, version] for what, version in versions.items()]
    return rows
