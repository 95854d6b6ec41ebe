"""What was measured, beside what is aimed at: as tables for people, as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from fl_node.runtime.terminal import Console, styled

console = Console()


def say(line: str) -> None:
    """Say what is going on, on standard error, so that standard output has tables alone."""
    Console(stderr=True).print(line, style="dim")


@dataclass(frozen=True)
class Row:
    """One figure. ``target`` is the most that it should be; None where it stands for comparison alone."""

    name: str
    figure: float
    unit: str
    target: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the figure is what is aimed at; None without an aim."""
        return None if self.target is None else self.figure <= self.target


@dataclass
class Part:
    """The rows of one part of the benchmark, and what else it has to show."""

    name: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    load: tuple[float, float, float] = field(default_factory=os.getloadavg)
    """Load of the machine over the last 1, 5 and 15 minutes when the part began."""

    def show(self) -> None:
        """Print the part."""
        table = Table(
            title=f"{self.name} (load at the start: {self.load[0]:.1f} on {os.cpu_count()} cores)",
            title_justify="left",
        )
        for column, justify in (("what", "left"), ("figure", "right"), ("target", "right"), ("", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in self.rows:
            verdict = {True: styled("met", "green"), False: styled("not met", "red"), None: ""}[row.met]
            target = "" if row.target is None else f"≤ {_number(row.target)} {row.unit}"
            table.add_row(row.name, f"{_number(row.figure)} {row.unit}", target, verdict)
        console.print(table)
        for note in self.notes:
            console.print(note)
        console.print()


def seconds(name: str, values: Sequence[float], target: float | None = None, **detail: Any) -> Row:
    """Return a row for the median of some durations; mean and extremes are in its detail and its name."""
    numbers = {
        "count": len(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "min": min(values),
        "max": max(values),
    }
    label = f"{name}: median of {len(values)} (mean {numbers['mean']:.3f} s)"
    return Row(label, numbers["median"], "s", target, {**numbers, **detail})


def write(path: Path, parts: Sequence[Part], *, quick: bool) -> None:
    """Write all parts as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "quick": quick,
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()},
        "parts": [
            {
                "name": part.name,
                "load": part.load,
                "rows": [asdict(row) | {"met": row.met} for row in part.rows],
                "notes": part.notes,
            }
            for part in parts
        ],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100).__int__() - 1))]


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
