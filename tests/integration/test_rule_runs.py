"""Whole runs by each aggregation rule, with roles and chain: audited bit for bit, and a header that lies is found."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.aggregation import RULES
from fl_node.artifacts.model_file import Tensors
from tests.helpers.runs import Run, World, plan

PARAMETERS: dict[str, dict[str, Any]] = {
    "trimmed_mean": {"num_malicious": 1},
    "krum": {"num_malicious": 1},
    "multi_krum": {"num_malicious": 1},
    "norm_clipping": {"clipping_norm": 0.5},
}
SYNCHRONOUS = [name for name, rule in RULES.items() if not rule.asynchronous]


def deployed(world: World, rule: str, **more: Any) -> Run:
    aggregation = {"rule": rule, **PARAMETERS.get(rule, {})}
    return world.deploy(
        type(plan()).model_validate(plan().model_dump() | {"learners": 5, "aggregation": aggregation} | more)
    )


@pytest.mark.parametrize("rule", SYNCHRONOUS)
def test_roles_carry_a_run_out_by_each_rule_and_anybody_can_recompute_it(world: World, rule: str) -> None:
    run = deployed(world, rule)
    with contextlib.ExitStack() as stack:
        header = stack.enter_context(run.header())
        for node_id in range(1, 6):
            stack.enter_context(run.learner(node_id))
        header.wait_for(events.RunFinished)
    result = run.audit()
    assert (result.findings, result.rounds) == ([], 2)
    last = run.current()
    assert last.global_meta.rule == rule
    assert {name.partition("/")[0] for name in last.shapes} == {"dense", *RULES[rule].state}
    collected = run.collect()
    assert collected.ended
    assert not any(
        entry.problem for past_round in collected.rounds for entry in (*past_round.local.values(), past_round.result)
    )


@pytest.mark.parametrize("rule", sorted(set(SYNCHRONOUS) - {"fedavg"}))
def test_a_header_that_averages_although_the_plan_has_another_rule_is_found(world: World, rule: str) -> None:
    run = deployed(world, rule)

    def averaged(tensors: Tensors) -> Tensors:
        plain = {name: np.mean([file.tensor(name) for file in files], axis=0) for name in files[0].shapes}
        return {**tensors, **plain}

    run.close_round()
    files = run.publish_locals()
    run.publish_global(run.average(files, tensors=averaged))
    found = {(finding.round, finding.node, finding.field.split()[0]) for finding in run.audit().findings}
    assert found == {(2, "header", "tensor")}


@pytest.mark.parametrize("rule", [name for name in SYNCHRONOUS if RULES[name].state])
def test_a_header_that_forges_what_its_rule_carries_along_is_found(world: World, rule: str) -> None:
    run = deployed(world, rule)

    def forged(tensors: Tensors) -> Tensors:
        return {**tensors, "momentum/dense/bias": tensors["momentum/dense/bias"] * 2}

    run.publish_global(run.average(run.publish_locals(), tensors=forged))
    (finding,) = run.audit().findings
    assert (finding.round, finding.node, finding.field) == (1, "header", "tensor momentum/dense/bias")


def test_an_attack_of_the_plan_is_carried_out_by_those_that_it_names_and_by_nobody_else(world: World) -> None:
    run = deployed(world, "median", attack={"learners": [2, 5], "update": "constant", "value": 7.0})
    with contextlib.ExitStack() as stack:
        header = stack.enter_context(run.header())
        roles = {node_id: stack.enter_context(run.learner(node_id)) for node_id in range(1, 6)}
        header.wait_for(events.RunFinished)
    assert [n for n, role in roles.items() if role.of(events.AttackStarted)] == [2, 5]
    inputs = {entry.node_id: run.read(entry.cid).tensor("dense/bias") for entry in run.current().global_meta.inputs}
    assert [n for n, tensor in inputs.items() if (tensor == 7).all()] == [2, 5]
    assert run.audit().passed
