"""The cells of a sweep, and what is made of their results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fl_node.errors import ConfigError, FLNodeError, PlanError
from fl_node.experiments import sweep
from fl_node.experiments.sweep import CLEAN, Cell
from fl_node.plan.schema import Plan

PLAN = Plan.model_validate({"name": "m", "learners": 10, "data": {"name": "digits"}})


def test_each_rule_has_a_clean_run_and_one_for_each_attack_share_and_seed() -> None:
    cells = sweep.cells(PLAN, ["fedavg", "krum"], ["sign_flip", "noise:0.5"], [0.1, 0.2], [1, 2])
    assert len(cells) == 2 * 2 * (1 + 2 * 2)
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.attack for cell in cells} == {CLEAN, "sign_flip", "noise:0.5"}
    for cell in cells:
        assert cell.plan.seed == cell.seed
        assert cell.plan.aggregation.rule == cell.rule
        attack = cell.plan.attack
        assert len(attack.learners if attack else ()) == round(cell.share * 10)


def test_attackers_follow_from_the_seed_and_a_rule_is_told_their_number() -> None:
    first, second = (sweep.cells(PLAN, ["krum"], ["copy"], [0.3], [seed])[1] for seed in (1, 2))
    assert first.plan.attack and second.plan.attack
    assert first.plan.attack.learners != second.plan.attack.learners
    assert first.plan.aggregation.num_malicious == 3
    assert sweep.cells(PLAN, ["krum:2"], ["copy"], [0.3], [1])[1].plan.aggregation.num_malicious == 2


def test_two_attacks_go_together() -> None:
    (_, cell) = sweep.cells(PLAN, ["fedavg"], ["label_flip+scale:7"], [0.2], [1])
    assert cell.plan.attack
    assert cell.plan.model_dump()["attack"] == {
        "learners": (5, 8),
        "data": "label_flip",
        "update": "scale",
        "factor": 7.0,
    }


@pytest.mark.parametrize(
    ("rules", "attacks", "shares", "message"),
    [
        (
            ["fedavg"],
            ["bribery"],
            [0.1],
            "attack bribery: unknown attack bribery; should be one of backdoor, label_flip, ",
        ),
        (["fedavg"], ["bribery"], [0.01], "unknown attack bribery"),  # nobody of ten attacks
        (["fedavg"], ["scale:-1"], [0.0], "factor"),
        (["mode:3"], ["copy"], [0.1], "unknown rule 'mode'; should be one of fedasync"),
        ([":3"], ["copy"], [0.1], "unknown rule ''"),
        (["fedavg"], ["scale+noise"], [0.1], r"scale and noise can't be combined"),
        (["fedavg"], ["copy:3"], [0.1], "copy has no number to set"),
        (["fedavg"], ["scale:much"], [0.1], "much is not a number"),
        *(
            (["fedavg"], [f"scale:{text}"], [0.1], "is not a number")
            for text in ("nan", "inf", "1e400", "1_0", "\u0663")
        ),
        (["fedavg"], ["copy"], [1.5], r"--attackers 1.5: should be a share"),
        (["fedavg:3"], ["copy"], [0.1], "fedavg has no number to set"),
        (["mode"], ["copy"], [0.1], "rule mode with attack none"),
        (
            ["krum"],
            ["copy"],
            [0.4],
            r"rule krum with attack none by 0 is not a valid plan:\s+aggregation.num_malicious: krum needs 11",
        ),
        (["norm_clipping"], ["copy"], [0.1], "missing; norm_clipping needs it"),
    ],
)
def test_what_is_impossible_is_named(rules: list[str], attacks: list[str], shares: list[float], message: str) -> None:
    with pytest.raises((ConfigError, PlanError), match=message):
        sweep.cells(PLAN, rules, attacks, shares, [1])


def result(accuracy: float, **more: float) -> dict[str, Any]:
    return {"rounds": [{"accuracy": 0.1}, {"accuracy": accuracy, **more}], "seconds": 1.0}


def test_figures_are_those_of_the_last_round_over_the_seeds(tmp_path: Path) -> None:
    cells = sweep.cells(PLAN, ["fedavg"], ["backdoor:0.5"], [0.2], [1, 2])
    results = {cell.name: result(0.9 if cell.seed == 1 else 0.8, backdoor=0.75) for cell in cells}
    clean, attacked = sweep.figures(cells, results)
    assert (clean.attack, attacked.attack) == (CLEAN, "backdoor:0.5")
    assert attacked.values == (0.9, 0.8)
    assert attacked.mean == pytest.approx(0.85)
    assert attacked.deviation == pytest.approx(0.0707, abs=1e-4)
    assert attacked.backdoor == 0.75
    page = sweep.write(tmp_path, PLAN, [clean, attacked], [1, 2]).read_text()
    assert "backdoor:0.5, 20%" in page
    assert "85.00" in page
    assert (
        "| fedavg | 85.00 ± 7.07 (backdoor 75) | 85.00 ± 7.07 (backdoor 75) |" in (tmp_path / "sweep.md").read_text()
    )
    assert json.loads((tmp_path / "sweep.json").read_text())["figures"][1]["values"] == [0.9, 0.8]


def test_what_is_kept_is_not_run_again(tmp_path: Path) -> None:
    cells = sweep.cells(PLAN, ["fedavg"], [], [], [1, 2])
    (tmp_path / "cells").mkdir()
    for cell in cells:
        (tmp_path / "cells" / f"{cell.name}.json").write_text(json.dumps(result(0.5)))
    seen = []

    def done(cell: Cell, _: Mapping[str, Any], kept: bool) -> None:
        seen.append((cell.seed, kept))

    results = sweep.run(cells, tmp_path, 1, None, done)
    assert seen == [(1, True), (2, True)]
    assert set(results) == {cell.name for cell in cells}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 70_000,
        "[]",
        "{}",
        '{"rounds": []}',
        '{"rounds": [{"accuracy": "x"}]}',
        '{"rounds": [{"accuracy": NaN}]}',
        '{"rounds": [{"accuracy": "0.5"}]}',
        '{"rounds": [{"accuracy": true}]}',
        '{"rounds": [{"accuracy": 50}]}',
        '{"rounds": [{"accuracy": 0.5, "backdoor": -1}]}',
    ],
)
def test_a_kept_result_that_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    (cell,) = sweep.cells(PLAN, ["fedavg"], [], [], [1])
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cell.name}.json").write_text(content)
    with pytest.raises(FLNodeError, match=rf"{cell.name}\.json .*; delete the file to run its cell again"):
        sweep.run([cell], tmp_path, 1, None, lambda *_: None)


def test_what_can_not_be_kept_is_seen_before_anything_is_run(tmp_path: Path) -> None:
    (cell,) = sweep.cells(PLAN, ["fedavg"], [], [], [1])
    (tmp_path / "cells" / f"{cell.name}.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"{cell.name}\.json"):
        sweep.run([cell], tmp_path, 1, None, lambda *_: None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cells").write_text("")
    with pytest.raises(ConfigError, match="--results"):
        sweep.run([cell], tmp_path / "other", 1, None, lambda *_: None)


def test_the_text_of_a_heat_map_can_be_read_on_its_colour() -> None:
    def luminance(red: int, green: int, blue: int) -> float:
        parts = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for step in range(101):
        value = step / 100
        numbers = [int(part) for part in sweep.colour(value).removeprefix("rgb(").removesuffix(")").split()]
        behind = luminance(numbers[0], numbers[1], numbers[2])
        text = 0.0 if sweep.ink(value) == "#000" else 1.0
        contrast = (max(behind, text) + 0.05) / (min(behind, text) + 0.05)
        assert contrast >= 4.5, value
