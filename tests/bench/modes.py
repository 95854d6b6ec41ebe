"""What the modes give, on MNIST: asynchronous against synchronous, and ensembles against their members.

    python -m tests.bench.modes async [--seeds 1,2,3]       # real Geth and IPFS, idle machine; an hour and a half
    python -m tests.bench.modes ensemble [--seeds 1,2,3]    # one process a run, as many runs as cores; an hour

What is done is kept in results/modes/, and not done again. Each ends with a table in Markdown, results/modes/NAME.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fl_node import events
from fl_node.lab.lab import Lab
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "modes"
TARGET = 0.99
ROUNDS = 6
"""Synchronous rounds, each with an update of every learner."""
UPDATES = 56
"""Of the asynchronous run: more than the other's 24, to see it get there."""
COMPARED = 4 * ROUNDS
"""Updates after which the two are compared: the synchronous run's."""


def changed(name: str, seed: int, *settings: str) -> Plan:
    """Return a plan of the project with other settings."""
    return plans.load(ROOT / "plans" / f"{name}.toml", [f"seed={seed}", *settings])


def kept(name: str, plan: Plan, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a result, from the last time if the plan is the same."""
    path = RESULTS / f"{name}.json"
    if path.is_file() and (known := json.loads(path.read_text()))["plan"] == plan.model_dump(mode="json"):
        return dict(known)
    result = {"plan": plan.model_dump(mode="json")} | do()
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
    print(f"{name}: done", flush=True)
    return result


# Asynchronous against synchronous


def both(seed: int) -> dict[str, Plan]:
    """Return the two plans: four learners with 15,000 images each, one of them four times as slow."""
    common = ["data.train=60000", "data.test=10000", "training.batch_size=128"]
    asynchronous = changed("async", seed, *common, f"rounds={UPDATES}")
    content = asynchronous.model_dump() | {"name": "sync", "rounds": ROUNDS}
    del content["mode"], content["aggregation"]
    return {"sync": plans.validate(content, "sync"), "async": asynchronous}


def lab(plan: Plan) -> dict[str, Any]:
    """Carry a plan out on real nodes; return when each round's global weights were published, and what they reach."""
    with tempfile.TemporaryDirectory(prefix="fl-modes-") as name:
        laboratory = Lab(plan, "processes", Path(name), None, lambda _progress, _event: None)
        outcome = laboratory.run()
        if not outcome.audit.passed:
            raise SystemExit(f"the audit failed: {outcome.audit.findings[0]}")
        told = [(seconds, event) for seconds, node, event in laboratory.trace.events if node == "header"]
        published = {e["round"]: s for s, e in told if e["event"] == events.GlobalWeightsPublished.name}
        accuracy = {e["round"]: e["accuracy"] for _, e in told if e["event"] == events.GlobalWeightsEvaluated.name}
        rounds = sorted(published)
        return {"rounds": [{"round": r, "seconds": published[r], "accuracy": accuracy.get(r)} for r in rounds]}


def reached(rounds: Iterable[Mapping[str, Any]]) -> float | None:
    """Return after how many seconds the global weights first reached what is aimed at."""
    return next((round_["seconds"] for round_ in rounds if (round_["accuracy"] or 0) >= TARGET), None)


def asynchronous(seeds: list[int]) -> list[str]:
    """Measure, and return the lines of the table."""
    lines = [
        "| seed | 99.0 % synchronous, s | asynchronous, s | ratio "
        f"| after {COMPARED} updates synchronous, % | asynchronous, % | its last, % |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for seed in seeds:
        results = {
            name: kept(f"{name}-{seed}", plan, lambda plan=plan: lab(plan)) for name, plan in both(seed).items()
        }
        runs = results["sync"]["rounds"], results["async"]["rounds"]
        times = [reached(run) for run in runs]
        accuracy = {
            name: {round_["round"]: round_["accuracy"] for round_ in results[name]["rounds"]} for name in results
        }
        ends = (accuracy["sync"][ROUNDS], accuracy["async"][COMPARED], accuracy["async"][max(accuracy["async"])])
        # Of a run that did not get there it is known that it took longer than it had.
        lasted = [time or run[-1]["seconds"] for time, run in zip(times, runs, strict=True)]
        sign = "" if times[0] else "> "
        ratio = f"{sign}{lasted[0] / lasted[1]:.2f}" if times[1] else "–"
        cells = [str(seed), *(f"{'' if time else '> '}{last:.0f}" for time, last in zip(times, lasted, strict=True))]
        cells += [ratio, *(f"{100 * share:.2f}" for share in ends)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


# Ensembles

KINDS = {
    "15,000 images each, all count alike": ("data.train=60000", "model.weighting=uniform"),
    "13,500 each, weights fitted on 3,000 more": ("data.train=54000", "data.validation=3000"),
    "the same, and they learn from each other": ("data.train=54000", "data.validation=3000", "data.public_set=3000"),
}


def ensemble_plan(kind: str, seed: int) -> Plan:
    """Return a plan of four learners with four architectures."""
    settings = [*KINDS[kind], "data.test=10000", "rounds=3", "training.batch_size=128"]
    loaded = changed("ensemble", seed, "data.train=54000", "data.validation=3000", "data.public_set=3000")
    content = loaded.model_dump()
    if not any(setting.startswith("data.public_set") for setting in settings):
        del content["distillation"], content["data"]["public_set"]
    if not any(setting.startswith("data.validation") for setting in settings):
        del content["data"]["validation"]
    for setting in settings:
        key, _, value = setting.partition("=")
        section, _, name = key.rpartition(".")
        place = content[section] if section else content
        place[name] = int(value) if value.isdigit() else value
    return plans.validate(content, kind)


def simulated(plan: Plan) -> dict[str, Any]:
    """Carry a plan out in a process of its own, and return what it says of the last round."""
    with tempfile.TemporaryDirectory(prefix="fl-modes-") as name:
        path = Path(name) / "plan.json"
        path.write_bytes(plan.to_bytes())
        command = [sys.executable, "-m", "fl_node.lab.simulate", str(path), "--folder", f"{name}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads((Path(name) / "run" / "result.json").read_text())
        return {"last": result["rounds"][-1]}


def ensemble(seeds: list[int]) -> list[str]:
    """Measure, and return the lines of the table."""
    todo = [(kind, seed) for seed in seeds for kind in KINDS]
    names = list(KINDS)

    def measure(kind: str, seed: int) -> dict[str, Any]:
        plan = ensemble_plan(kind, seed)
        return kept(f"ensemble-{names.index(kind) + 1}-{seed}", plan, lambda: simulated(plan))["last"]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = dict(zip(todo, pool.map(lambda case: measure(*case), todo), strict=True))
    members = sorted(next(iter(results.values()))["members"])
    heads = ["", "seed", "ensemble", "best member", "average of members", *members]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for kind in KINDS:
        for seed in seeds:
            result = results[kind, seed]
            each = [result["members"][member]["accuracy"] for member in members]
            cells = [result["accuracy"], max(each), statistics.fmean(each), *each]
            row = " | ".join(f"{100 * cell:.2f}" for cell in cells)
            lines.append(f"| {kind} | {seed} | {row} |")
    lines += ["", "Expected calibration error, %:", "", f"| {' | '.join(['', 'ensemble', *members])} |"]
    lines += ["|---|" + "--:|" * (len(members) + 1)]
    for kind in KINDS:
        several = [results[kind, seed] for seed in seeds]
        errors = [[result["calibration_error"] for result in several]]
        errors += [[result["members"][member]["calibration_error"] for result in several] for member in members]
        row = " | ".join(f"{100 * statistics.fmean(values):.2f}" for values in errors)
        lines.append(f"| {kind} | {row} |")
    return lines


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["async", "ensemble"])
    parser.add_argument("--seeds", default="1,2,3")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    lines = (asynchronous if options.part == "async" else ensemble)(seeds)
    (RESULTS / f"{options.part}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
