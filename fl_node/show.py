"""What a lab looks like while it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fl_node.plan import Plan
from fl_node.report import percent, table

if TYPE_CHECKING:
    from fl_node.lab import Outcome, Progress
    from fl_node.run import Run

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
        self._console.print(
            f"[bold]{self._plan.name}[/bold]: {self._plan.rounds} rounds, {self._plan.learners} learners, "
            f"{self._plan.data.train} images of {self._plan.data.name}, seed {self._plan.seed}; in {self._folder}"
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
        self._console.print(f"Report: {outcome.report}", soft_wrap=True)
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


def rounds_table(rows: Sequence[Sequence[str]]) -> Table:
    """Return the table of rounds for a console; accuracies in percent."""
    grid = Table(title="accuracy on the test images, %", title_justify="left", title_style="")
    for head in rows[0]:
        grid.add_column(head, justify="right", no_wrap=True)
    for row in rows[1:]:
        grid.add_row(*row)
    return grid
