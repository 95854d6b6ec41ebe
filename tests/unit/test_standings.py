"""How a report stays readable with many learners: aggregates, outliers and slow learners first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fl_node.audit.result import Audit
from fl_node.plan.schema import DataPlan, Plan
from fl_node.report import collect, context, writer
from fl_node.report.collect import Entry, Member, Result, RoundResult
from fl_node.report.standings import outliers, slowest, standings
from fl_node.report.turns import newest, turns

SECONDS = 100
"""Of a round."""


def run(learners: int, rounds: int) -> Result:
    """Return a run in which learner 3 is far worse than the others, learner 2 slow, and learner 1 once rejected."""

    def entry(name: str, time: int, accuracy: float) -> Entry:
        return Entry(f"Qm{name}", 1, "0x1", accuracy, 1 - accuracy, time=time)

    closed = []
    for number in range(rounds):
        begin = SECONDS * number
        local = {
            n: entry(f"{number}-{n}", begin + (50 if n == 2 else 5), 0.2 if n == 3 else 0.8 + n / 10_000)
            for n in range(1, learners + 1)
        }
        rejected = {1: "norm"} if number == 0 else {}
        members = tuple(
            Member(n, one, None if n in rejected else 0.1, number, rejected.get(n)) for n, one in local.items()
        )
        result = entry(f"global-{number}", begin + SECONDS, 0.9)
        closed.append(RoundResult(number, local, result, rejected, members=members))
    plan = Plan(name="many", rounds=rounds, learners=learners, data=DataPlan(name="digits", train=learners, test=10))
    accounts = {n: f"0x{n:040x}" for n in range(1, learners + 1)}
    return Result(plan, "Qm", "0xc", "0xh", accounts, rounds, entry("0", 0, 0.1), tuple(closed), {})


def test_the_learner_furthest_from_the_others_comes_first() -> None:
    result = run(9, 3)
    ranks = standings(result, turns(result))
    assert outliers(ranks)[0].node_id == 3
    assert ranks[0].distance == pytest.approx(-60.06, abs=0.01)
    assert {row.node_id: row.accepted for row in ranks}[1] == 2


def test_the_slowest_learner_comes_first() -> None:
    result = run(9, 3)
    first, *_ = slowest(standings(result, turns(result)))
    assert (first.node_id, first.seconds, first.longest) == (2, 50, 50)


def test_the_table_of_rounds_names_worst_and_best_of_many_learners() -> None:
    heads, first, *_ = collect.table(run(collect.NAMED + 1, 2))
    assert dict(zip(heads[:6], first[:6], strict=True)) == {
        "round": "0",
        "accepted": "16",
        "rejected": "1",
        "missing": "0",
        "worst": "20.00",
        "by": "3",
    }
    assert first[-1] == "90.00"
    assert len(collect.table(run(collect.NAMED, 1))[0]) == collect.NAMED + 2
    assert collect.table(run(collect.NAMED + 1, 1), loss=True)[1][4:6] == ["0.8000", "3"]


def test_what_a_rejected_learner_says_of_its_weights_counts_nowhere() -> None:
    honest = run(collect.NAMED + 1, 1)
    (closed,) = honest.rounds
    boast = Entry("Qm0-1", 1, "0x1", 1.0, 0.0, time=5)
    lying = replace(honest, rounds=(replace(closed, local=closed.local | {1: boast}),))
    assert collect.table(lying) == collect.table(honest)
    assert collect.table(lying, loss=True) == collect.table(honest, loss=True)
    assert dict(zip(*collect.table(lying), strict=False))["best"] == "80.17"
    ranks = {row.node_id: row for row in standings(lying, turns(lying))}
    assert (ranks[1].accuracy, ranks[1].distance) == (None, None)


def test_the_newest_turns_are_those_of_whole_rounds() -> None:
    timeline = turns(run(4, 10))
    assert {turn.round for turn in newest(timeline, 9)} == {8, 9}
    assert {turn.round for turn in newest(timeline, 1)} == {9}
    assert newest([], 5) == []


def test_a_large_run_has_a_line_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.page, "pictures", lambda *_: {"plots": {}, "tree": "", "drawing": False})
    result = run(21, 100)
    page = writer.write(tmp_path, "many", result, Audit("0xc", rounds=100, files=2100), {}).read_text()
    assert page.count("Qm57-9") == 1
    assert "from the median, points" in page
    assert page.count("<dl id=") == 1  # the initial weights
    assert len(page) < 600_000
    assert len(context.context("many", result, Audit("0xc"), {}, None, None)["turn_rows"]) <= context.LARGE // 4
