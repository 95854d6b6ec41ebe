"""The bounds on local weights: what they let through, what they refuse, and that old plans keep their CIDs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta, WeightsFile
from fl_node.errors import WeightsError
from fl_node.plan.schema import AttackPlan, Plan
from fl_node.protocol.bounds import check_bounds
from fl_node.roles.attack import tamper

CID = "QmUjkPFQrqeRLakWf7C9Gdf4dFgU2MFK5UMtF9vm37K2cs"
CNN = 329_962
"""Parameters of the largest model whose attacks are documented."""


def plan(**settings: Any) -> Plan:
    return Plan.model_validate({"name": "bounded", "data": {"name": "digits"}, **settings})


def files(folder: Path, own: Any, before: Any) -> tuple[WeightsFile, WeightsFile]:
    local = LocalMeta(CID, 1, 0, CID, 1, 0.5, 0.5)
    first, second = ({"a": np.asarray(values, np.float32)} for values in (own, before))
    return (
        model_file.write(folder / "local", local, first),
        model_file.write(folder / "global", GlobalMeta(CID, 0, None, "initial"), second),
    )


@pytest.mark.parametrize("value", [3e38, -3e38, 1e30, 1e10, 1.1e6, -1.1e6])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_a_huge_value_is_refused_wherever_it_stands(tmp_path: Path, value: float, shape: tuple[int, ...]) -> None:
    before = np.zeros(shape, np.float32)
    own = before.copy()
    own.reshape(-1)[-1:] = value
    file, start = files(tmp_path, own, before)
    if not own.size:
        check_bounds(file, start, plan())
        return
    with pytest.raises(WeightsError, match=r"tensor a has a value of size .*; should be at most 1e\+06"):
        check_bounds(file, start, plan())


def test_small_values_that_are_far_from_the_global_weights_together_are_refused(tmp_path: Path) -> None:
    file, start = files(tmp_path, np.full(400, 6000.0), np.zeros(400))
    with pytest.raises(WeightsError, match=r"the update has the norm 120000; should be at most 100000"):
        check_bounds(file, start, plan())


def test_it_is_the_update_that_is_measured_not_the_weights(tmp_path: Path) -> None:
    check_bounds(*files(tmp_path, np.full(400, 6001.0), np.full(400, 6000.0)), plan())


def test_a_plan_can_set_its_own_bounds(tmp_path: Path) -> None:
    file, start = files(tmp_path, [3.0, 4.0], [0.0, 0.0])
    check_bounds(file, start, plan(bounds={"value": 4.0, "update": 5.0}))
    with pytest.raises(WeightsError, match=r"value of size 4; should be at most 3\.9"):
        check_bounds(file, start, plan(bounds={"value": 3.9}))
    with pytest.raises(WeightsError, match=r"norm 5; should be at most 4\.9"):
        check_bounds(file, start, plan(bounds={"update": 4.9}))
    wide, start = files(tmp_path, [1e7], [0.0])
    check_bounds(wide, start, plan(bounds={"value": 1e8, "update": 1e8}))


@pytest.mark.parametrize("bound", [0.5, 0.999999, 1.0, 1.000001, 1.004, 2.0])
def test_near_the_bound_and_far_from_it_the_sum_in_order_decides(tmp_path: Path, bound: float) -> None:
    step = np.float32(1e-3) * np.arange(1, 2001, dtype=np.float32)
    length = float(np.sqrt(np.add.accumulate(np.square(step.astype(np.float64)))[-1]))
    file, start = files(tmp_path, step, np.zeros(2000))
    limited = plan(bounds={"update": length * bound})
    if bound >= 1:
        check_bounds(file, start, limited)
    else:
        with pytest.raises(WeightsError, match="the update has the norm"):
            check_bounds(file, start, limited)


@pytest.mark.parametrize(
    "attack",
    [
        {"update": "sign_flip"},
        {"update": "scale", "factor": 5.0},
        {"update": "scale", "factor": 10.0},
        {"update": "noise", "deviation": 0.5},
        {"update": "constant"},
        {"update": "constant", "value": 7.0},
        {"update": "copy"},
    ],
)
def test_the_attacks_of_the_documentation_are_within_the_default_bounds(
    tmp_path: Path, attack: dict[str, Any]
) -> None:
    before = np.random.default_rng(1).normal(0, 0.1, CNN).astype(np.float32)
    trained = before + np.float32(0.05)
    weights = tamper(AttackPlan.model_validate({"learners": [1], **attack}), {"a": before}, {"a": trained}, 1)
    check_bounds(*files(tmp_path, weights["a"], before), plan())


def test_bounds_stand_in_the_published_plan_only_where_they_are_set() -> None:
    assert b"bounds" not in plan().to_bytes()
    assert b'"bounds":{"value":10.0}' in plan(bounds={"value": 10}).to_bytes()
    assert plan(bounds={"value": 10}).bounds.update == plan().bounds.update
