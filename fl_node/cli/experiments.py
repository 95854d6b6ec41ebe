"""The commands that compare many runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_node.cli.common import console, errors, load_plan, never_lost, plain_number, print_note
from fl_node.cli.options import (
    DataOption,
    JsonOption,
    ModulesOption,
    OptionalPlanArgument,
    PlanArgument,
    SetOption,
)
from fl_node.errors import ConfigError, FLNodeError
from fl_node.runtime import files, numerals
from fl_node.runtime.terminal import styled
from fl_node.wording import counted

if TYPE_CHECKING:
    from fl_node.experiments.sweep import Remote
    from fl_node.plan.schema import Plan

_TLS = typer.Option("--tls", metavar="DIR", help="Folder with ca.pem, cert.pem and key.pem (fl-node sweep-keys).")
TlsOption = Annotated[Path, _TLS]
TlsChoice = Annotated[Path | None, _TLS]
ListenOption = Annotated[
    str,
    typer.Option("--listen", metavar="HOST:PORT", help="Address to listen on, and no other, such as 10.0.0.1:8786."),
]


def baseline(
    plan: PlanArgument,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs; by default rounds × local epochs of the plan.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the result to this JSON file.")
    ] = None,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the plan's model on all its images on this node, as a baseline for a run."""
    from fl_node.data import loading
    from fl_node.experiments import baseline as single
    from fl_node.models.keras_trainer import KerasTrainer

    loaded, modules = load_plan(plan, settings, modules)
    if loaded.mode == "ensemble":
        raise ConfigError(f"plan {plan}: an ensemble has no single model; use a plan with one of its architectures")
    with contextlib.nullcontext() if output is None else files.output_file(output, "--output"):
        loaded, data = loading.load_complete(loaded, data_dir, modules, print_note)
        trainer = KerasTrainer(loaded, data, modules)
        count = epochs or loaded.rounds * loaded.training.epochs

        def on_epoch(epoch: int, accuracy: float) -> None:
            errors.print(f"epoch {epoch} of {count}: {accuracy:.2%} of the test {loaded.data.noun} correct")

        result = single.run(loaded, trainer, count, on_epoch)
    text = json.dumps({"plan": loaded.model_dump(), **asdict(result)}, indent=2)
    unwritten: ConfigError | None = None
    if output is not None:
        try:
            files.keep(output, text + "\n")
        except ConfigError as error:
            unwritten = error
    in_file = output is not None and unwritten is None
    with never_lost(lambda: f"; the result is in {output}" if in_file else files.rescued("baseline.json", text)):
        if as_json:
            typer.echo(text)
        else:
            console.print(single.table(loaded, result))
    if unwritten is not None:
        raise unwritten


def reproduce(
    plan: OptionalPlanArgument = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, separated by commas.")] = "1,2,3",
    results: Annotated[Path, typer.Option("--results", help="Folder for results.")] = Path("results"),
    runs: Annotated[Path, typer.Option("--runs", help="Parent folder of the run folders.")] = Path("runs"),
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce the paper: for each seed, a run on real nodes and a single-node baseline; then write a report.

    It takes about twenty minutes per seed on two cores. You can interrupt it; the next call resumes with the missing
    results. The exit code is 1 if a target is not met.
    """
    from fl_node.experiments import reproduce as work
    from fl_node.lab import run_folder as run
    from fl_node.lab.lab import Lab
    from fl_node.lab.show import Show
    from fl_node.plan import examples
    from fl_node.plan import loading as plans
    from fl_node.runtime import strict_json

    loaded = plans.load(plan or examples.path("paper"))
    numbers = _seeds(seeds)

    def lab(name: str, seeded: Plan) -> dict[str, Any]:
        with run.new_folder(runs, name) as folder, Show(errors if as_json else console, seeded, folder) as show:
            outcome = Lab(seeded, "processes", folder, data_dir, show.update).run()
        if not outcome.audit.passed:
            raise FLNodeError(f"the audit of {folder} failed: {outcome.audit.findings[0]}")
        content: dict[str, Any] = strict_json.read(folder / "report.json")
        return content | {"seconds": outcome.seconds}

    with files.output_folder(results, "--results"):
        path = work.run(loaded, numbers, results, lab, data_dir, print_note)
    content = strict_json.read(results / "reproduce.json")
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    else:
        for target in content["targets"]:
            mark = styled("met    ", "green") if target["met"] else styled("not met", "red")
            console.print(mark, f"{target['what']}: {target['found']} (target: {target['wanted']})")
        console.print(f"Report: {path}")
    if not all(target["met"] for target in content["targets"]):
        raise typer.Exit(1)


def sweep(
    plan: OptionalPlanArgument = None,
    rules: Annotated[
        str,
        typer.Option(
            "--rules", help="Aggregation rules, separated by commas; norm_clipping:1.5 sets the rule's number."
        ),
    ] = "fedavg,median,trimmed_mean,krum,multi_krum,norm_clipping:1.5",
    attacks: Annotated[
        str, typer.Option("--attacks", help="Attacks, separated by commas; + combines two: label_flip+scale:5.")
    ] = "label_flip+scale:5",
    attackers: Annotated[
        str, typer.Option("--attackers", help="Shares of malicious learners, separated by commas.")
    ] = "0.2",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, separated by commas.")] = "1,2,3",
    results: Annotated[Path, typer.Option("--results", help="Folder for results.")] = Path("results/sweep"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Runs in parallel; 0 means one per core.")] = 0,
    backend: Annotated[
        str, typer.Option("--backend", help="embedded, or processes for real Geth and IPFS (one run at a time).")
    ] = "embedded",
    limit: Annotated[
        float, typer.Option("--time-limit", min=1, help="Seconds that one run may take; then it has failed.")
    ] = 7200,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="tls://HOST:PORT",
            help="Let the workers of this scheduler (fl-node sweep-scheduler) carry out the runs, not this machine.",
        ),
    ] = None,
    tls: TlsChoice = None,
    only_list: Annotated[bool, typer.Option("--list", help="List the runs and end; run nothing.")] = False,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare rules under attack: one run per rule, attack, share of attackers and seed, and runs without attack.

    Each run is audited. You can interrupt the sweep; the next call resumes, and new rules, attacks or seeds add only
    their runs. The result is a table and a heat map of the last round's accuracy.

        fl-node sweep --rules fedavg,median --attacks sign_flip,noise:0.5 --attackers 0.1,0.3

    With --scheduler, the runs are carried out by workers on other machines, which have the data set and the modules
    themselves.
    """
    import os

    from fl_node.cli.tables import sweep_table
    from fl_node.experiments import sweep as work
    from fl_node.plan import examples

    if backend not in ("embedded", "processes"):
        raise ConfigError(f"--backend {backend}: should be embedded or processes")
    loaded, modules = load_plan(plan or examples.path("sweep"), settings, modules)
    numbers = _seeds(seeds)
    shares = []
    for text in attackers.split(","):
        try:
            shares.append(numerals.real(text))
        except ValueError as error:
            raise ConfigError(f"--attackers {attackers}: should be shares such as 0.1,0.2") from error
    if not (named := _names(rules)):
        raise ConfigError(f"--rules {rules}: should be aggregation rules separated by commas, such as fedavg,median")
    todo = work.cells(loaded, named, _names(attacks), shares, numbers)
    remote = _remote(scheduler, tls, backend, jobs)

    def note_nobody() -> None:
        for share in shares if _names(attacks) else ():
            if share and not work.attackers(loaded, share):
                print_note(f"note: --attackers {share:g} of {counted(loaded.learners, 'learner')} means no attacker")

    if only_list:
        runs = [{"cell": cell.name, "run": str(cell)} for cell in todo]
        content = {"plan": loaded.model_dump(mode="json"), "runs": runs}
        note_nobody()
        typer.echo(json.dumps(content, indent=2) if as_json else "\n".join(run["run"] for run in runs))
        return
    folder = results / loaded.name
    count = 0

    def done(cell: work.Cell, result: Mapping[str, Any], kept: bool) -> None:
        nonlocal count
        count += 1
        took = "kept" if kept else f"{result['seconds']:.0f} s"
        print_note(f"{count} of {len(todo)}: {cell}: {result['rounds'][-1]['accuracy']:.2%} ({took})")

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    at_a_time = 1 if backend == "processes" else jobs or max(cores // loaded.training.threads, 1)
    with files.output_folder(folder, "--results"), files.output_folder(folder / "cells", "--results"):
        note_nobody()
        rounds, learners = counted(loaded.rounds, "round"), counted(loaded.learners, "learner")
        print_note(f"{counted(len(todo), 'run')} of {rounds} with {learners}")
        by_cell = work.run(
            todo,
            folder,
            at_a_time,
            data_dir,
            done,
            modules=modules,
            backend=backend,
            limit=limit,
            remote=remote,
            report=print_note,
        )
    figures = work.figures(todo, by_cell)
    path = work.write(folder, loaded, figures, numbers)
    if as_json:
        typer.echo((folder / "sweep.json").read_text(), nl=False)
    else:
        console.print(sweep_table(figures))
        console.print(f"Heat map: {path}")


def sweep_keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to; one folder per machine in it.")],
    machines: Annotated[list[str], typer.Argument(metavar="MACHINE...", help="Names or addresses of the machines.")],
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="How long the certificates are valid.")] = 30,
) -> None:
    """Make keys and certificates for a sweep on several machines: scheduler, workers, and where you call the sweep.

    Copy DIR/MACHINE to each machine, and keep it secret: who has it can run programs on the workers. The authority's
    key is not kept, so for another machine make all keys again.

        fl-node sweep-keys keys 192.168.56.10 192.168.56.11 192.168.56.12
    """
    from fl_node.experiments import sweep_keys as work

    for path in work.create(folder, machines, days):
        console.print(str(path))


def sweep_scheduler(
    listen: ListenOption,
    tls: TlsOption,
) -> None:
    """Be the scheduler of sweeps on several machines, until you stop it.

    Workers (fl-node sweep-worker) and sweeps (fl-node sweep --scheduler) connect to it.
    """
    from fl_node.experiments import cluster

    cluster.serve_scheduler(cluster.endpoint("--listen", listen), tls, print_note)


def sweep_worker(
    scheduler: Annotated[str, typer.Argument(metavar="tls://HOST:PORT", help="The scheduler.")],
    listen: ListenOption,
    tls: TlsOption,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs in parallel.")] = 1,
    name: Annotated[str | None, typer.Option("--name", help="Name of the worker; by default the host's.")] = None,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
) -> None:
    """Carry out runs of sweeps on this machine, until you stop it or the scheduler is gone.

    Each run is a process of its own. Whoever has keys of the same authority can run programs here, as this user.
    """
    import platform

    from fl_node.experiments import cluster

    called = platform.node() if name is None else name
    here = cluster.endpoint("--listen", listen)
    cluster.serve_worker(scheduler, here, tls, called, jobs, data_dir, print_note, modules=modules)


def _remote(scheduler: str | None, tls: Path | None, backend: str, jobs: int) -> Remote | None:
    """Return the scheduler that the user wants, if any.

    Raises
    ------
    ConfigError
        Options do not go together.
    """
    from fl_node.experiments.sweep import Remote

    if scheduler is None:
        if tls is not None:
            raise ConfigError("--tls needs --scheduler")
        return None
    if tls is None:
        raise ConfigError("--scheduler needs --tls, the folder of this machine that fl-node sweep-keys made")
    if backend != "embedded":
        raise ConfigError(f"--backend {backend} works on this machine only; leave --scheduler out")
    if jobs:
        raise ConfigError("--jobs is for this machine; for others give it to fl-node sweep-worker")
    return Remote(scheduler, tls)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> list[int]:
    """Return the seeds in their order.

    Raises
    ------
    ConfigError
        They are not whole numbers, or one is named twice.
    """
    try:
        seeds = [plain_number(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: should be whole numbers separated by commas, such as 1,2,3") from error
    if len(set(seeds)) < len(seeds):  # a run would count twice
        raise ConfigError(f"--seeds {text}: should name each seed once")
    return seeds
