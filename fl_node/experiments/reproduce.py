"""The paper's experiment, seed by seed: runs on real nodes, single-node baselines, and what was asked of both.

Whatever is done already is kept: a reproduction that was interrupted goes on with what is missing.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_node.data import datasets, partition
from fl_node.data.datasets import DataSet
from fl_node.errors import ConfigError, JsonError
from fl_node.experiments import baseline
from fl_node.models.keras_trainer import EVALUATION_BATCH, KerasTrainer
from fl_node.plan.schema import Plan
from fl_node.report.collect import paper, percent
from fl_node.runtime import files, strict_json
from fl_node.runtime.templating import render

Report = Callable[[str], None]
RunLab = Callable[[str, Plan], dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """Something that was asked of the reproduction, what came out, and whether that is enough."""

    what: str
    wanted: str
    found: str
    met: bool


@dataclass(frozen=True)
class Seed:
    """The result of one seed; accuracies are fractions, times seconds."""

    seed: int
    local: dict[str, list[float]]
    global_: list[float]
    seconds: float
    cid: str
    baseline: list[float]


def run(plan: Plan, seeds: Sequence[int], folder: Path, lab: RunLab, data_dir: Path | None, report: Report) -> Path:
    """Do what is missing of a reproduction and return the path of its report.

    Parameters
    ----------
    plan
        The paper's plan; its seed is replaced.
    seeds
        The seeds; every one is reported.
    folder
        For the results, one file a part.
    lab
        Runs, under a name, a plan on real nodes and returns the run's report as a value, with ``seconds``.
    data_dir
        Where the data set is.
    report
        Called with one line a step.

    Raises
    ------
    DataError
        The data set is not available.
    ConfigError
        The plan has a custom module, other learners, or more rounds or epochs than the paper; or a result that is
        there already is damaged or of another plan.
    """
    if plan.custom is not None:
        raise ConfigError(f"plan {plan.name} has its own data and model; the paper's are MNIST and its CNN")
    if plan.learners != 2 or plan.rounds > 5 or plan.rounds * plan.training.epochs > 25:
        raise ConfigError(
            f"plan {plan.name} is not comparable with the paper; should have 2 learners, 5 rounds, 25 epochs in total"
        )
    files.check_folder(folder, "--results")
    seeded = {seed: plan.model_copy(update={"seed": seed}) for seed in seeds}
    if any(_found(path, part) is None for path, part in _parts(folder, plan, seeded)):
        datasets.load(plan.data.name, data_dir, report)  # without it the first run would fail, or the first baseline
    federated = {
        seed: _kept(
            folder / f"federated-{seed}.json", plan_of_seed, report, functools.partial(lab, f"{plan.name}-{seed}")
        )
        for seed, plan_of_seed in seeded.items()
    }
    plain = _kept(folder / "plain-keras.json", plan, report, lambda p: _apart(_plain, p, data_dir))
    single = {
        seed: _kept(folder / f"baseline-{seed}.json", plan_of_seed, report, lambda p: _apart(_baseline, p, data_dir))
        for seed, plan_of_seed in seeded.items()
    }
    results = [_seed(seed, federated[seed], single[seed]) for seed in seeds]
    targets = judge(results, plain["seconds"])
    content = {
        "plan": plan.model_dump(),
        "seeds": [asdict(result) for result in results],
        "plain_keras_seconds": plain["seconds"],
        "cores": os.cpu_count(),
        "targets": [asdict(target) for target in targets],
    }
    text = render(
        "reproduce.md.j2",
        plan=plan,
        seeds=results,
        targets=targets,
        paper=paper(),
        percent=percent,
        plain=plain["seconds"],
        cores=os.cpu_count(),
    )
    with files.together(folder) as new:
        files.write(new / "reproduce.json", json.dumps(content, indent=2) + "\n")
        files.write(new / "reproduce.md", text)
    return folder / "reproduce.md"


def _seed(seed: int, federated: dict[str, Any], single: dict[str, Any]) -> Seed:
    rounds = federated["rounds"]
    return Seed(
        seed,
        {node_id: [entry["local"][node_id]["accuracy"] for entry in rounds] for node_id in rounds[0]["local"]},
        [entry["result"]["accuracy"] for entry in rounds],
        federated["seconds"],
        rounds[-1]["result"]["cid"],
        single["accuracy"],
    )


def judge(seeds: Sequence[Seed], plain_seconds: float) -> list[Target]:
    """Hold the results against what the paper's level is taken to be."""
    finals = [result.global_[-1] for result in seeds]
    mean = statistics.mean(finals)
    gaps = [result.global_[-1] - result.baseline[-1] for result in seeds]
    late = [accuracy for result in seeds for local in result.local.values() for accuracy in local[2:] or local]
    # The first run of a machine warms its caches; the median of the seeds is compared.
    ratio = statistics.median(result.seconds for result in seeds) / plain_seconds
    return [
        Target("final global accuracy, each seed", "≥ 99.40 %", _each(finals), min(finals) >= 0.9940),
        Target("final global accuracy, mean", "≥ 99.46 %", f"{percent(mean)} %", round(mean, 6) >= 0.9946),
        Target(
            "final global accuracy minus the baseline's last accuracy, each seed",
            "≥ −0.05 points",
            ", ".join(f"{gap * 100:+.2f}" for gap in gaps),
            all(round(gap, 6) >= -0.0005 for gap in gaps),
        ),
        Target(
            "lowest local accuracy from global epoch 3",
            "≥ 99.20 %",
            f"{percent(min(late))} %",
            min(late) >= 0.992,
        ),
        Target(
            "time of the federated run relative to plain Keras for the same work",
            "≤ 1.15",
            f"{ratio:.2f}",
            ratio <= 1.15,
        ),
    ]


def _each(fractions: Sequence[float]) -> str:
    return ", ".join(percent(fraction) for fraction in fractions) + " %"


def _parts(folder: Path, plan: Plan, seeded: Mapping[int, Plan]) -> Iterator[tuple[Path, Plan]]:
    """Yield the file and the plan of each part of a reproduction."""
    yield folder / "plain-keras.json", plan
    for seed, plan_of_seed in seeded.items():
        yield folder / f"federated-{seed}.json", plan_of_seed
        yield folder / f"baseline-{seed}.json", plan_of_seed


def _kept(path: Path, plan: Plan, report: Report, work: Callable[[Plan], dict[str, Any]]) -> dict[str, Any]:
    """Return a result that is there already for this plan, or do the work and keep its result."""
    if (kept := _found(path, plan)) is not None:
        report(f"{path.name} exists; kept")
        return kept
    report(f"computing {path.name}")
    result = {"plan": plan.model_dump()} | work(plan)
    files.keep(path, json.dumps(result, indent=2) + "\n")
    return result


def _found(path: Path, plan: Plan) -> dict[str, Any] | None:
    """Return a result that is there already for this plan; None if there is none.

    Raises
    ------
    ConfigError
        The result is of another plan, which it took long to compute, or it is damaged.
    """
    if not path.is_file():
        return None
    try:
        kept = strict_json.read(path)
        is_whole = isinstance(kept["plan"], dict) and _is_whole(path.name.partition("-")[0], kept)
    except (JsonError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"result {path} is damaged; delete it to compute it again") from error
    if not is_whole:
        raise ConfigError(f"result {path} is damaged; delete it to compute it again")
    if json.dumps(kept["plan"], sort_keys=True) != json.dumps(plan.model_dump(), sort_keys=True):
        raise ConfigError(
            f"result {path} is of another plan; name another folder with --results, or delete the file to replace it"
        )
    found: dict[str, Any] = kept
    return found


def _is_whole(part: str, content: dict[str, Any]) -> bool:
    """Return whether a result has all figures that a reproduction needs."""
    if part == "baseline":
        return _are_shares(content["accuracy"])
    if not strict_json.is_number(content["seconds"]) or content["seconds"] <= 0:
        return False
    if part == "plain":
        return True
    rounds = content["rounds"]
    nodes = list(rounds[0]["local"])
    local = [entry["local"][node]["accuracy"] for entry in rounds for node in nodes]
    results = [entry["result"]["accuracy"] for entry in rounds]
    return _are_shares(local) and _are_shares(results) and isinstance(rounds[-1]["result"]["cid"], str)


def _are_shares(values: Any) -> bool:
    is_list = isinstance(values, list) and bool(values)
    return is_list and all(strict_json.is_number(value) and 0 <= value <= 1 for value in values)


def _apart(work: Callable[[Plan, Path | None], dict[str, Any]], plan: Plan, data_dir: Path | None) -> dict[str, Any]:
    """Work in a process of its own, since TensorFlow's threads are set once for a process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (plan, data_dir))


def _all_cores(plan: Plan) -> Plan:
    threads = min(plan.learners * plan.training.threads, os.cpu_count() or 1)
    return plan.model_copy(update={"training": plan.training.model_copy(update={"threads": threads})})


def _baseline(plan: Plan, data_dir: Path | None) -> dict[str, Any]:
    trainer = KerasTrainer(_all_cores(plan), datasets.load(plan.data.name, data_dir))
    epochs = plan.rounds * plan.training.epochs
    return asdict(baseline.run(plan, trainer, epochs, lambda _epoch, _accuracy: None))


def _plain(plan: Plan, data_dir: Path | None) -> dict[str, Any]:
    """Time the same trainings and evaluations by Keras' own loop in one process, without chain and store."""
    dataset = datasets.load(plan.data.name, data_dir)
    trainer = KerasTrainer(_all_cores(plan), dataset)
    model = trainer.model
    tests = _inputs(dataset, test=True)[: plan.data.test], dataset.test_labels[: plan.data.test]
    images = _inputs(dataset, test=False)
    start = time.monotonic()
    for _ in range(plan.rounds):
        for node_id in range(1, plan.learners + 1):
            samples = partition.shard(plan, node_id, trainer.labels)
            model.fit(
                images[samples],
                dataset.train_labels[samples],
                batch_size=plan.training.batch_size,
                epochs=plan.training.epochs,
                verbose=0,
            )
            model.evaluate(*tests, batch_size=EVALUATION_BATCH, verbose=0)
        model.evaluate(*tests, batch_size=EVALUATION_BATCH, verbose=0)
    return {"seconds": time.monotonic() - start}


def _inputs(dataset: DataSet, *, test: bool) -> Any:
    images = dataset.test_images if test else dataset.train_images
    return images[..., None].astype("float32") / 255
