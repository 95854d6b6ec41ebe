"""Runs of different models, with roles and chain: recomputed bit for bit, and lies about their weights are found."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.aggregation.ensemble import WEIGHTS, evidence_name
from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import WeightsFile
from fl_node.audit.auditor import audit
from fl_node.data import datasets
from fl_node.data.held_out import held_out
from fl_node.lab.simulate import simulate
from fl_node.models.ensemble import trainer_for
from fl_node.models.evidence import evidence
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_file, local_shapes
from fl_node.report.contribution import contributions
from tests.helpers.logged import logged
from tests.helpers.runs import Run, World

CONTENT: dict[str, Any] = {
    "name": "small",
    "mode": "ensemble",
    "rounds": 2,
    "learners": 3,
    "data": {"name": "digits", "train": 300, "test": 100, "validation": 80, "public_set": 100},
    "model": {"architectures": ["mlp", "separable_cnn"], "weighting": "convex"},
    "training": {"epochs": 1, "batch_size": 50},
    "distillation": {},
}


@cache
def trainer(text: str, with_data: bool = True) -> Any:
    return trainer_for(Plan.model_validate_json(text), datasets.load("digits") if with_data else None)


def deploy(world: World, weighting: str = "convex", **more: Any) -> Run:
    content = CONTENT | {"model": CONTENT["model"] | {"weighting": weighting}} | more
    return world.deploy(Plan.model_validate(content), lambda plan: trainer(plan.model_dump_json()))


@pytest.mark.parametrize("weighting", ["uniform", "convex"])
def test_roles_carry_a_run_of_different_models_out_and_anybody_can_recompute_it(
    weighting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fl_node")
    plan = Plan.model_validate(CONTENT | {"model": CONTENT["model"] | {"weighting": weighting}})
    # Ends with an audit, which must pass.
    cids = simulate(plan, tmp_path, trainer(plan.model_dump_json()))
    last = model_file.read(tmp_path / "files" / cids[-1])
    assert last.tensor(WEIGHTS).sum() == pytest.approx(1, abs=1e-5)
    assert (evidence_name("mlp") in last.shapes) == (weighting != "uniform")
    assert [entry.share for entry in last.global_meta.inputs] == [0.5, 1.0, 0.5]
    # From the second round on they learn from each other too.
    trainings = [one for one in logged(caplog) if one["event"] == events.TrainingStarted.name]
    assert ["distilled" in one for one in trainings] == [False] * 3 + [True] * 3


def published(run: Run, *node_ids: int) -> list[WeightsFile]:
    """Let these learners publish for the first round, or all; return their files."""
    parent = run.current()
    files = []
    for node_id in node_ids or (1, 2, 3):
        tensors = {name: parent.tensor(name) for name in local_shapes(run.plan, parent.shapes, node_id)}
        file = run.local(node_id, run.trainer.train(tensors, np.arange(100), node_id))
        run.publish_local(node_id, file)
        files.append(file)
    return files


def next_global(run: Run, measure: Any = None) -> WeightsFile:
    parent = run.current()
    return global_file(
        run.path(),
        run.plan,
        run.plan_cid,
        round_=1,
        parent=parent.cid,
        inputs=published(run),
        parent_file=parent,
        evidence=measure or evidence(run.plan, run.trainer),
    )


def found(run: Run) -> list[tuple[int | None, str]]:
    return [(finding.round, finding.field) for finding in run.audit().findings]


def test_other_weights_of_the_members_are_found(world: World) -> None:
    run = deploy(world)
    good = next_global(run)
    lie = {**good.tensors(), WEIGHTS: np.array([1, 0], np.float32)}
    run.publish_global(model_file.write(run.path(), good.global_meta, lie))
    assert found(run) == [(1, f"tensor {WEIGHTS}")]


@pytest.mark.parametrize("weighting", ["accuracy", "convex"])
def test_evidence_that_a_model_never_gave_is_found_though_all_follows_from_it(
    world: World, weighting: str, tmp_path: Path
) -> None:
    run = deploy(world, weighting)
    honest = evidence(run.plan, run.trainer)
    assert honest is not None
    run.publish_global(
        next_global(run, lambda name, w: np.ones(80, np.float32) if name == "mlp" else honest(name, w))
    )
    assert found(run) == [(1, f"tensor {evidence_name('mlp')}")]
    # Without the data set nobody can tell, and the audit says so.
    text = run.plan.model_dump_json()
    blind = audit(run.contract, run.store, tmp_path, lambda _plan: trainer(text, with_data=False))
    assert blind.passed
    assert any("not checked: the data set" in note for note in blind.notes)


def test_a_learner_that_sends_another_architecture_is_refused_with_a_reason(world: World) -> None:
    run = deploy(world, min_learners=2, rounds=1)
    with run.header() as header:
        first, second = published(run, 1, 2)
        header.wait_for(events.UpdateAccepted, learner=2)
        wrong = model_file.write(run.path(), second.local_meta, first.tensors())
        run.publish_local(2, wrong)
        refused = header.wait_for(events.UpdateRejected, learner=2).fields
        published(run, 3)
        run.finish(header)
    assert refused["reason"] == "tensors"


def test_what_each_learner_is_worth_adds_up_to_what_the_run_gained(world: World, tmp_path: Path) -> None:
    run = deploy(world, rounds=1)
    with run.header() as header:
        published(run)
        run.finish(header)
    assert run.audit().passed
    assert all(entry.problem is None for past_round in run.collect().rounds for entry in past_round.local.values())
    images, labels = held_out(run.plan, datasets.load("digits"))

    def right(tensors: Any) -> int:
        return int((run.trainer.predict(tensors, images).argmax(axis=1) == labels).sum())

    measure = evidence(run.plan, run.trainer)
    (one,) = contributions(run.contract, run.store, tmp_path, run.plan, run.trainer.shapes(), right, measure)
    assert sum(one.values.values()) == one.after - one.before
