"""What a scenario compares with the run without a fault, and the plan that it makes of a user's plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta
from fl_node.lab import simulate
from fl_node.lab.faults import SCENARIOS, planned, weights_of
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan


def written(path: Path, value: float, key: str) -> Path:
    meta = GlobalMeta(plan=cid.of_bytes(b"plan"), round=0, parent=None, rule="fedavg", keys=((1, key * 64),))
    return model_file.write(path, meta, {"bias": np.full(3, value, np.float32)}).path


def test_weights_are_the_same_whatever_keys_their_files_name(tmp_path: Path) -> None:
    first, second, third = (
        weights_of(written(tmp_path / name, value, key))
        for name, value, key in (("a", 1, "a"), ("b", 1, "b"), ("c", 2, "a"))
    )
    assert first == second != third


def test_a_simulation_takes_the_keys_and_secrets_of_a_run_and_their_modes(tmp_path: Path) -> None:
    for name in ("header", "learner-1"):
        folder = tmp_path / "run" / "nodes" / name
        folder.mkdir(parents=True)
        for file in ("role.key", *(["host.secret"] if name != "header" else [])):
            (folder / file).write_text(f"{file} of {name}")
            (folder / file).chmod(0o600)
    (tmp_path / "simulation").mkdir()
    simulate.take_keys(tmp_path / "simulation", tmp_path / "run", 1)
    taken = {path.name: path for path in (tmp_path / "simulation" / "keys").iterdir()}
    assert {name: path.read_text() for name, path in taken.items()} == {
        "header.key": "role.key of header",
        "learner-1.key": "role.key of learner-1",
        "learner-1.secret": "host.secret of learner-1",
    }
    assert {path.stat().st_mode & 0o777 for path in taken.values()} == {0o600}


def test_a_scenario_with_masks_keeps_what_else_the_plan_says(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('name = "a"\n[data]\nname = "digits"\n[aggregation]\narithmetic = "fixed"\nrange = 0.5\n')
    plan: Plan = planned(SCENARIOS["masks-lost-before"], plans.load(path))
    assert (plan.learners, plan.is_masked, plan.threshold) == (4, True, 3)
    assert plan.fixed_point is not None
    assert plan.fixed_point.range == 0.5
