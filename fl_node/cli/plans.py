"""``fl-node plan``: plans and how they divide the data."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from fl_node.cli.common import complete, console, load_plan, print_note
from fl_node.cli.options import DataOption, JsonOption, ModulesOption, PlanArgument, SetOption
from fl_node.runtime import files


def new(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Plan file to write, such as mine.toml; its name names the plan.")
    ],
    example: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="EXAMPLE",
            help="The example to start from: async, demo, ensemble, inversion, membership, paper, private, scenario, "
            "sweep or tabular.",
        ),
    ] = "demo",
) -> None:
    """Write a new plan from an example that comes with fl-node.

    The example tabular has a Python module with your own data and model; it is written beside the plan.

        fl-node plan new mine.toml --from paper
        fl-node lab mine.toml
    """
    from fl_node.plan import examples

    for path in examples.create(file, example):
        typer.echo(path)


def shards(
    plan: PlanArgument,
    data_dir: DataOption = None,
    modules: ModulesOption = None,
    settings: SetOption = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Also write a diagram to this SVG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the number of images per label for each learner.

    fl-node plan shards plans/sweep.toml --set data.alpha=0.1 --picture shards.svg
    """
    from fl_node.data import loading, partition
    from fl_node.lab.show import shards_table
    from fl_node.report import plots

    with contextlib.nullcontext() if picture is None else files.output_file(picture, "--picture"):
        loaded, modules = load_plan(plan, settings, modules)
        loaded = complete(loaded, data_dir, modules)
        counts = partition.label_counts(loaded, loading.load(loaded, data_dir, modules, print_note).labels())
        if picture is not None:
            title = (
                f"{loaded.name}: {loaded.data.noun} of {loaded.data.name} by label, partition {loaded.data.partition}"
            )
            files.write(picture, plots.bubbles_file(title, counts))
            print_note(f"picture: {picture}")
    if as_json:
        typer.echo(json.dumps({"learners": {str(n): row for n, row in counts.items()}}))
    else:
        console.print(shards_table(counts))


def check(plan: PlanArgument, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a plan and show it with all defaults; list all problems with exit code 2."""
    from fl_node.artifacts import cid
    from fl_node.data.loading import with_noise
    from fl_node.plan import loading as plans

    loaded = with_noise(plans.load(plan, settings or ()))
    if as_json:
        typer.echo(loaded.to_bytes().decode())
        return
    console.print_json(loaded.model_dump_json())
    if loaded.unknown:
        console.print(f"{plan} is a valid plan; deployment fills in {', '.join(loaded.unknown)}")
        return
    if loaded.dp is not None:
        from fl_node.lab.show import budget_lines

        for line in budget_lines(loaded):
            console.print(line)
    console.print(f"{plan} is a valid plan; its CID is {cid.of_bytes(loaded.to_bytes())}")


def module(plan: PlanArgument, settings: SetOption = None) -> None:
    """Print the path of the plan's custom module; print nothing if the plan has no path."""
    from fl_node.plan import loading as plans

    if file := plans.module_file(plan, settings or ()):
        typer.echo(file.absolute())


def schema() -> None:
    """Print the JSON Schema of plan files, for editors.

    fl-node plan schema >plans/plan.schema.json
    """
    from fl_node.plan.json_schema import plan_schema

    typer.echo(json.dumps(plan_schema(), indent=2, ensure_ascii=False))
