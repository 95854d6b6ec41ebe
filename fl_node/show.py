"""What a lab looks like while it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fl_node.contribution import RoundContribution, totals
from fl_node.plan import Plan
from fl_node.report import percent, table

if TYPE_CHECKING:
    from fl_node.lab import Outcome, Progress
    from fl_node.matrix import Figure
    from fl_node.run import Run
    from fl_node.scenarios import Check, Scenario

BARS = " ▁▂▃▄▅▆▇█"
"""Eighths, from nothing up."""

SPOKEN = {"deployed", "training", "evaluated", "took", "refused", "missing", "aggregated", "finished", "discarded"}
"""Events worth a line where there is no live view."""


class Show:
    """Shows a lab on a console; a context manager."""

    def __init__(self, console: Console, plan: Plan, folder: Path) -> None:
        self._console = console
        self._plan = plan
        self._folder = folder
        self._start = time.monotonic()
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._step = ""

    def __enter__(self) -> Self:
        source = f"module {self._plan.own.module}" if self._plan.own else self._plan.data.name
        self._console.print(
            f"[bold]{self._plan.name}[/bold]: {self._plan.rounds} rounds, {self._plan.learners} learners, "
            f"{self._plan.data.train} {self._plan.data.noun} of {source}, seed {self._plan.seed}; in {self._folder}"
        )
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, progress: Progress, event: Mapping[str, Any] | None) -> None:
        """Show the state after a step or an event."""
        if self._live:
            self._live.update(self._view(progress))
            if event is not None and event.get("level") == "warning":
                self._live.console.print(f"{event['node']}: {event['message']}", style="yellow", markup=False)
            return
        if event is None and progress.step != self._step:
            self._say(progress.step)
            self._step = progress.step
        elif event is not None and (event.get("event") in SPOKEN or event.get("level") == "warning"):
            self._say(f"{event['node']}: {event['message']}")

    def stay(self, outcome: Outcome, run: Run) -> None:
        """Print what came out and where the nodes are, and wait until Ctrl-C."""
        if self._live:
            self._live.stop()
        self.outcome(outcome)
        grid = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("node", "Ethereum RPC", "store"):
            grid.add_column(head, no_wrap=True)
        for name, node in run.nodes.items():
            grid.add_row(name, node.rpc, node.store)
        self._console.print(f"The nodes stay up until Ctrl-C. Contract: {run.contract}", soft_wrap=True)
        self._console.print(grid)
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            self._console.print("stopping")

    def outcome(self, outcome: Outcome) -> None:
        """Print what the lab ended with."""
        self._console.print(rounds_table(table(outcome.result)))
        audit = outcome.audit
        if audit.passed:
            self._console.print(
                f"[green]Audit passed[/green]: {audit.files} files fetched, "
                f"all {audit.rounds} global files recomputed bit for bit."
            )
        else:
            self._console.print(f"[red]Audit FAILED[/red] with {len(audit.findings)} findings:")
            for finding in audit.findings:
                self._console.print(f"  {finding}", markup=False, soft_wrap=True)
        self._console.print(f"{outcome.seconds:.1f} s from the start of the roles to the last global weights.")
        self._console.print(f"Report: {outcome.report} (as text: report.md)", soft_wrap=True)
        self._console.print(f"Model:  {outcome.model}", soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._start:6.1f} s  {text}", markup=False, soft_wrap=True)

    def _view(self, progress: Progress) -> RenderableType:
        seconds = int(time.monotonic() - self._start)
        nodes = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        nodes.add_column(no_wrap=True, style="bold")
        nodes.add_column(overflow="ellipsis", no_wrap=True)
        for name, doing in progress.doing.items():
            nodes.add_row(name, doing)
        rows = [["global epoch", *(f"learner {n}" for n in range(1, self._plan.learners + 1)), "global"]]
        for round_ in range(self._plan.rounds):
            local = progress.local.get(round_, {})
            if local or round_ + 1 in progress.globals_:
                accuracies = [percent(local.get(n)) for n in range(1, self._plan.learners + 1)]
                rows.append([str(round_ + 1), *accuracies, percent(progress.globals_.get(round_ + 1))])
        top = Table.grid(padding=(0, 2, 0, 0))
        top.add_row(
            f"{seconds // 60}:{seconds % 60:02}",
            ProgressBar(total=self._plan.rounds, completed=progress.round, width=30),
            Text(f"{progress.round} of {self._plan.rounds} rounds, {progress.step}", style="cyan"),
        )
        parts: list[RenderableType] = [top, nodes]
        if len(rows) > 1:
            parts.append(rounds_table(rows))
        return Group(*parts)


def scenarios_table(scenarios: Iterable[Scenario]) -> Table:
    """Return the scenarios that there are for a console."""
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("scenario", "place", "what happens"):
        grid.add_column(head, no_wrap=head != "what happens")
    for one in scenarios:
        grid.add_row(one.name, "any" if len(one.places) > 1 else one.places[0], one.text)
    return grid


def checks_table(name: str, checks: Sequence[Check]) -> Table:
    """Return what a scenario promised and whether it held, for a console."""
    grid = Table(title=f"scenario {name}", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for head in ("", "what must hold", "seen"):
        grid.add_column(head, no_wrap=not head, overflow="fold")
    for one in checks:
        grid.add_row("[green]held[/green]" if one.held else "[red]BROKEN[/red]", escape(one.what), escape(one.seen))
    return grid


def matrix_table(figures: Sequence[Figure]) -> Table:
    """Return what rules reach under attacks for a console: last round's accuracy in percent, mean and deviation."""
    columns = list(dict.fromkeys((one.attack, one.share) for one in figures))
    found = {(one.rule, one.attack, one.share): one for one in figures}
    grid = Table(title="accuracy after the last round, %", title_justify="left", title_style="")
    grid.add_column("rule", no_wrap=True)
    for attack, share in columns:
        grid.add_column(f"{attack}, {share:.0%}" if share else "no attack", justify="right")
    for rule in dict.fromkeys(one.rule for one in figures):
        texts = []
        for attack, share in columns:
            one = found.get((rule, attack, share))
            door = f" (backdoor {one.backdoor:.0%})" if one and one.backdoor is not None else ""
            spread = f" ± {100 * one.deviation:.2f}" if one and len(one.values) > 1 else ""
            texts.append(f"{percent(one.mean)}{spread}{door}" if one else "–")
        grid.add_row(rule, *texts)
    return grid


def contribution_table(rounds: Sequence[RoundContribution], images: int) -> Table:
    """Return Shapley values for a console, in percentage points of accuracy on the held-out images."""
    total = totals(rounds)
    grid = Table(
        title=f"contribution to the accuracy on {images} held-out images, percentage points",
        title_justify="left",
        title_style="",
    )
    for head in ("round", *(f"learner {node_id}" for node_id in total), "all", "accuracy"):
        grid.add_column(head, justify="right")

    def points(value: Fraction | int) -> str:
        return f"{float(100 * value / images):+.2f}"

    for one in rounds:
        values = [points(one.values[n]) if n in one.values else "–" for n in total]
        grid.add_row(str(one.round), *values, points(one.after - one.before), percent(one.after / images))
    grid.add_section()
    grid.add_row("total", *(points(value) for value in total.values()), points(sum(total.values())), "")
    return grid


def shards_table(counts: Mapping[int, Sequence[int]]) -> Table:
    """Return how many images of each label each learner has, with a bar beside each number."""
    grid = Table(title="images by label", title_justify="left", title_style="", box=None, padding=(0, 1, 0, 0))
    grid.add_column("learner", justify="right", no_wrap=True)
    for label in range(len(next(iter(counts.values())))):
        grid.add_column(f"{label}  ", justify="right", no_wrap=True)
    grid.add_column("all", justify="right", style="bold", no_wrap=True)
    most = max(max(row) for row in counts.values())
    for node_id, row in counts.items():
        # A bar beside each number shows who has what at a glance.
        cells = [f"{count} {BARS[(count * (len(BARS) - 1) + most - 1) // most] if most else ' '}" for count in row]
        grid.add_row(str(node_id), *cells, str(sum(row)))
    return grid


def rounds_table(rows: Sequence[Sequence[str]]) -> Table:
    """Return the table of rounds for a console; accuracies in percent."""
    grid = Table(title="accuracy on the test images, %", title_justify="left", title_style="")
    for head in rows[0]:
        # A learner and its model, in an ensemble.
        grid.add_column(head.replace(", ", "\n"), justify="right", no_wrap=True)
    for row in rows[1:]:
        grid.add_row(*row)
    return grid
