"""What a lab with many learners shows while it runs."""

from __future__ import annotations

from fl_node.lab.lab import Progress
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
