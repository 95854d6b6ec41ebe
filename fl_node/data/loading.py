"""Where a plan's data come from, and what a plan is told of them before it is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_node.data import datasets
from fl_node.data.custom_module import OwnData
from fl_node.data.custom_module import load as load_module
from fl_node.data.datasets import FOLDER_FILES, DataSet
from fl_node.data.held_out import with_held_out
from fl_node.data.sampling import sampling_of
from fl_node.errors import DataError, PlanError
from fl_node.plan.data_sets import CustomData, Folder
from fl_node.plan.loading import validate
from fl_node.plan.schema import Plan
from fl_node.privacy.accounting import noise_multiplier

Data = DataSet | OwnData
TRIED = 10
"""Samples on which a module's model is tried before a run."""


def load(
    plan: Plan,
    folder: Path | None = None,
    modules: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Data:
    """Return the data of a plan.

    Parameters
    ----------
    plan
        The run's plan.
    folder, report
        As for :func:`fl_node.data.datasets.load`.
    modules
        Where custom modules are; else ``FL_NODE_MODULES`` counts.

    Raises
    ------
    DataError
        The data can't be loaded, or differ from what the plan states.
    ModuleError
        The plan's custom module can't be loaded.
    """
    if plan.custom is not None:
        return OwnData(plan, load_module(plan, modules))
    source = plan.data.source
    if not isinstance(source, Folder):
        return datasets.load(source.name, folder, report)
    data = datasets.from_folder(folder, {key: getattr(source, key) for key in FOLDER_FILES})
    for key, value in _facts(data).items():
        planned = getattr(source, key)
        # More classes than labels are right: a set may lack the highest.
        if planned is not None and planned != value and not (key == "classes" and planned > value):
            raise DataError(f"data folder {data.source}: data.{key} is {value}, the plan requires {planned}")
    return data


def load_images(plan: Plan, folder: Path | None = None, report: Callable[[str], None] = lambda _: None) -> DataSet:
    """Return the images of a plan.

    Parameters
    ----------
    plan, folder, report
        As for :func:`load`.

    Raises
    ------
    DataError
        The plan has a custom module, or its images can't be loaded.
    """
    if plan.custom is not None:
        raise DataError(f"this command needs images; the plan {plan.name} uses the samples of its custom module")
    data = load(plan, folder, report=report)
    assert isinstance(data, DataSet)
    return data


def complete(plan: Plan, data: Data) -> Plan:
    """Return the plan as it is published: with what only those know who have the data.

    Raises
    ------
    PlanError
        A fact contradicts the plan, such as more test images than there are.
    DataError
        The data do not fit the run.
    ModuleError
        The custom module's data do not fit the run.
    """
    if isinstance(data, DataSet):
        if isinstance(source := plan.data.source, Folder):
            plan = _with(plan, {key: value for key, value in _facts(data).items() if getattr(source, key) is None})
        return with_noise(with_held_out(plan, data))
    return with_noise(_with(plan, _own_facts(plan, data)) if plan.data.unknown else plan)


def load_complete(
    plan: Plan,
    folder: Path | None = None,
    modules: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Plan, Data]:
    """Return the complete plan, and its data, which know the size of each learner's shard.

    Parameters
    ----------
    plan, folder, modules, report
        As for :func:`load`.

    Raises
    ------
    DataError
        The data can't be loaded, or do not fit the run.
    ModuleError
        The plan's custom module can't be loaded, or its data do not fit the run.
    PlanError
        A fact contradicts the plan.
    """
    data = load(plan, folder, modules, report)
    completed = complete(plan, data)
    if completed != plan and isinstance(data, OwnData):
        data = load(completed, folder, modules, report)
    return completed, data


def with_noise(plan: Plan) -> Plan:
    """Return the plan with the noise multiplier that keeps to its target ε, if it has a target and no noise yet.

    Each learner publishes once a round; the one with the fewest samples needs most noise.

    Raises
    ------
    PlanError
        No noise keeps to the target.
    """
    dp = plan.dp
    if dp is None or dp.noise_multiplier is not None or dp.epsilon is None or plan.data.unknown:
        return plan
    samplings = {sampling_of(plan, node_id) for node_id in range(1, plan.learners + 1)}
    try:
        noise = max(
            noise_multiplier(dp.epsilon, drawn.rate, drawn.steps * plan.rounds, dp.delta) for drawn in samplings
        )
    except ValueError as error:
        raise PlanError(f"privacy.dp.epsilon: {error}") from error
    privacy = plan.model_dump()["privacy"]
    content = plan.model_dump() | {"privacy": privacy | {"dp": privacy["dp"] | {"noise_multiplier": noise}}}
    return validate(content, f"plan {plan.name}, with its noise,")


def _with(plan: Plan, facts: dict[str, Any]) -> Plan:
    if not facts:
        return plan
    content = plan.model_dump()
    return validate(content | {"data": content["data"] | facts}, f"plan {plan.name}, with its data,")


def _facts(data: DataSet) -> dict[str, Any]:
    """Return what a plan says of images from a folder."""
    return {
        "all_train": len(data.train_images),
        "all_test": len(data.test_images),
        "size": data.train_images.shape[1:],
        "classes": int(max(data.train_labels.max(), data.test_labels.max())) + 1,
        **data.sha256,
    }


def _own_facts(plan: Plan, custom: OwnData) -> dict[str, Any]:
    """Return what a plan says of a module's data; only what it does not say is asked for."""
    model = custom.module.build()
    classes = int(model.output_shape[1])
    source = plan.data.source
    assert isinstance(source, CustomData)
    data = plan.data.model_copy(update={"source": source.model_copy(update={"classes": classes})})
    told = plan.model_copy(update={"data": data})
    asked = OwnData(told, custom.module.of(told))
    tests, _ = asked.tests(plan.data.test)
    custom.module.try_out(model, tests[:TRIED])
    samples = source.samples
    if samples is None:
        shards = [asked.shard(node_id)[0] for node_id in range(1, plan.learners + 1)]
        for shard in shards:
            custom.module.try_out(model, shard[:TRIED])
        samples = tuple(len(shard) for shard in shards)
    return {"samples": samples, "classes": classes, "test": len(tests)}
