"""The benchmark's command line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

import fl_node
from fl_node.errors import FLNodeError
from tests.bench import (
    clique,
    compression,
    coordination,
    dp_sgd,
    flower,
    idle,
    large,
    many,
    masks,
    memory,
    soak,
    startup,
    transfer,
)
from tests.bench.results import Part, console, say, write


class Name(StrEnum):
    """A part of the benchmark."""

    coordination = "coordination"
    flower = "flower"
    clique = "clique"
    memory = "memory"
    idle = "idle"
    startup = "startup"
    transfer = "transfer"
    dp_sgd = "dp_sgd"
    many = "many"
    compression = "compression"
    masks = "masks"
    large = "large"
    soak = "soak"


def main(
    parts: Annotated[list[Name] | None, typer.Argument(help="What to measure; all but soak if left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer of everything: to see that it runs.")] = False,
    output: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path("results/bench.json"),
    megabytes: Annotated[
        int, typer.Option(min=1, help="Size of the model of the part `large`, in 10^6 bytes.")
    ] = large.MEGABYTES,
    profiles: Annotated[
        Path | None, typer.Option(help="Run the roles under cProfile, and keep what it says in this folder.")
    ] = None,
) -> None:
    """Measure what this project costs beyond training, beside what is aimed at.

    Real Geth and IPFS nodes and real roles run on loopback; only the model is a stub. Figures depend on what else the
    machine does, so each table names the load. The exit code is 0 whether or not an aim is met.
    """
    signal.signal(signal.SIGTERM, _stop)
    flower.compile_bytecode(sys.executable, Path(fl_node.__file__).parent)
    flower.compile_bytecode(sys.executable, Path(__file__).parent)
    measures: dict[Name, Callable[[], Part]] = {
        Name.coordination: lambda: coordination.measure(quick=quick, profiles=profiles),
        Name.flower: lambda: flower.measure(quick=quick),
        Name.clique: lambda: clique.measure(quick=quick),
        Name.memory: lambda: memory.measure(quick=quick),
        Name.idle: lambda: idle.measure(quick=quick),
        Name.startup: lambda: startup.measure(quick=quick),
        Name.transfer: lambda: transfer.measure(quick=quick),
        Name.dp_sgd: lambda: dp_sgd.measure(quick=quick),
        Name.many: lambda: many.measure(quick=quick),
        Name.compression: lambda: compression.measure(quick=quick),
        Name.soak: lambda: soak.measure(quick=quick),
        Name.masks: lambda: masks.measure(quick=quick, profiles=profiles),
        Name.large: lambda: large.measure(quick=quick, size=megabytes),
    }
    done: list[Part] = []
    for name in parts or [name for name in Name if name is not Name.soak]:
        try:
            done.append(measures[name]())
        except FLNodeError as error:
            say(f"{name} failed: {error}")
            raise typer.Exit(1) from error
        done[-1].show()
        write(output, done, quick=quick)
    console.print(f"Figures: {output}", soft_wrap=True)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    typer.run(main)
