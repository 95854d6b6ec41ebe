"""What a lab with many learners shows while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_node import events
from fl_node.lab.lab import Lab, Progress
from fl_node.lab.show import CROWD, LATE, doing_lines, progress_rows
from fl_node.plan.schema import DataPlan, Plan


def progress(learners: int) -> Progress:
    """Return the state of a lab in which all but ten learners have published in round 0."""
    plan = Plan(name="many", rounds=3, learners=learners, data=DataPlan(name="digits", train=learners, test=10))
    doing = {"header": "waiting", **{f"learner-{n}": "training" for n in range(1, learners + 1)}}
    local = {0: {n: n / 1000 for n in range(11, learners + 1)}}
    return Progress(plan, "training", doing, local)


def test_of_many_learners_those_that_a_round_waits_for_have_a_line() -> None:
    lines = doing_lines(progress(128))
    assert list(lines) == ["header", *(f"learner-{n}" for n in range(1, LATE + 1)), "learners"]
    assert lines["learners"] == "118 of 128 accepted in round 0; waiting for learners 1–10"


def test_of_many_learners_the_table_has_worst_median_and_best() -> None:
    assert progress_rows(progress(128)) == [
        ["round", "accepted", "worst", "median", "best", "global"],
        ["0", "118", "1.10", "6.95", "12.80", "–"],
    ]


def test_few_learners_have_a_line_and_a_column_each() -> None:
    few = progress(CROWD)
    assert doing_lines(few) == few.doing
    heads, row = progress_rows(few)
    assert len(heads) == len(row) == CROWD + 2


def test_withdrawn_global_weights_leave_no_accuracy_behind(tmp_path: Path) -> None:
    plan = Plan(name="withdrawn", rounds=1, learners=2, data=DataPlan(name="digits", train=2, test=10))
    seen: list[list[str]] = []
    lab = Lab(plan, "embedded", tmp_path, None, lambda progress, _event: seen.append(progress_rows(progress)[-1]))
    wrong = events.GlobalWeightsPublished(round=1, cid="QmWrong", block=1, gas=1)
    measured = events.GlobalWeightsEvaluated(round=1, cid="QmWrong", accuracy=0.25, loss=1.0, count=10, noun="images")
    right = events.GlobalWeightsPublished(round=1, cid="QmRight", block=2, gas=1)
    accepted = events.UpdateAccepted(round=0, learner=1, cid="Qm", accuracy=0.5)
    for node, event in (("header", accepted), ("header", wrong), ("header", measured), ("standby-1", right)):
        lab._take(node, {"event": event.name, "message": event.text(), **event.fields()})
    assert [row[-1] for row in seen] == ["–", "–", "25.00", "–"]


@pytest.mark.parametrize(("learners", "cells"), [(2, ["–", "–"]), (CROWD + 1, ["2", "–", "–", "–"])])
def test_masked_weights_have_no_accuracy(tmp_path: Path, learners: int, cells: list[str]) -> None:
    plan = Plan(name="masked", rounds=1, learners=learners, data=DataPlan(name="digits", train=learners, test=10))
    seen: list[list[str]] = []
    lab = Lab(plan, "embedded", tmp_path, None, lambda progress, _event: seen.extend(progress_rows(progress)[1:]))
    for learner in (1, 2):
        accepted = events.UpdateAccepted(round=0, learner=learner, cid="Qm")
        lab._take("header", {"event": accepted.name, "message": accepted.text(), **accepted.fields()})
    assert seen[-1] == ["0", *cells, "–"]
