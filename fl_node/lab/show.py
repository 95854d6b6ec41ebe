"""What a lab looks like while it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from fl_node import events
from fl_node.data.sampling import sampling_of
from fl_node.plan.schema import Plan
from fl_node.protocol import budget
from fl_node.protocol.names import HEADER, learner_name, learners_label
from fl_node.report.collect import percent, table
from fl_node.report.contribution import RoundContribution, totals
from fl_node.runtime.terminal import Numbers, styled, visible
from fl_node.wording import counted

if TYPE_CHECKING:
    from fl_node.lab.fault_model import Check, Outcome, Scenario
    from fl_node.lab.lab import Progress
    from fl_node.lab.run_folder import Run

BARS = " ▁▂▃▄▅▆▇█"
"""Eighths, from nothing up."""

CROWD = 16
"""More learners than this are shown by their number, and only some by name."""
LATE = 8
"""Learners of a crowd that have a line in the live view: those that a round waits for."""

LINES_AROUND_ROWS = 6
"""Of a table in the live view: its title, its head, and lines between."""

SHOWN = {
    event.name
    for event in (
        events.ContractDeployed,
        events.TrainingStarted,
        events.LocalWeightsEvaluated,
        events.GlobalWeightsEvaluated,
        events.UpdateAccepted,
        events.UpdateRejected,
        events.UpdateMissing,
        events.UpdatesAggregated,
        events.RunFinished,
        events.BudgetSpent,
        events.LocalWeightsDiscarded,
        events.FileFetching,
        events.GlobalWeightsUnusable,
        events.GlobalWeightsRejected,
        events.HeaderReplaced,
        events.HeaderTakenOver,
        events.HeaderVoted,
        events.RoundClosed,
        events.RunNotFinalized,
        events.VerificationWaiting,
    )
}
"""Names of the events that have a line where there is no live view."""


OF_A_CROWD = frozenset({events.TrainingStarted.name, events.LocalWeightsEvaluated.name, events.UpdateAccepted.name})
"""Those that come once for each learner and round, and have no line when there are many learners."""


def budget_lines(plan: Plan) -> list[str]:
    """Return what a complete plan with differential privacy will spend, a line each; nothing for another plan."""
    dp = plan.dp
    if dp is None:
        return []
    lines = []
    for node_id, epsilon in budget.planned(plan).items():
        if dp.is_of_learners:
            how = f", with the noise of {counted(plan.noise_adders, 'learner')}"
        else:
            sampling = sampling_of(plan, node_id)
            how = f" of {counted(sampling.steps, 'step')}, sampling rate {sampling.rate:.4g}"
        lines.append(
            f"learner {node_id}: ε = {epsilon:g} for δ = {dp.delta:g} after "
            f"{counted(plan.rounds, 'publication')}{how}, noise multiplier {dp.noise_multiplier:g}"
        )
        most = budget.most_publications(plan, node_id)
        if most is not None and most < plan.rounds:
            lines.append(
                f"learner {node_id}: stops at ε = {dp.limit:g}, after {most} of {counted(plan.rounds, 'publication')}"
            )
    return lines


class Show:
    """Shows a lab on a console; a context manager."""

    def __init__(self, console: Console, plan: Plan, folder: Path) -> None:
        self._console = console
        self._plan = plan
        self._folder = folder
        self._start = time.monotonic()
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._step = ""
        self._shown = SHOWN - OF_A_CROWD if plan.learners > CROWD else SHOWN

    def __enter__(self) -> Self:
        source = f"module {self._plan.custom.module}" if self._plan.custom else self._plan.data.name
        self._console.print(
            styled(self._plan.name, "bold"),
            f": {counted(self._plan.rounds, 'round')}, {counted(self._plan.learners, 'learner')}, "
            f"{self._plan.data.train} {self._plan.data.noun} of {source}, seed {self._plan.seed}; in {self._folder}",
            sep="",
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
                self._live.console.print(f"{event['node']}: {event['message']}", style="yellow")
            return
        if event is None and progress.step != self._step:
            self._say(progress.step)
            self._step = progress.step
        elif event is not None and (event.get("event") in self._shown or event.get("level") == "warning"):
            self._say(f"{event['node']}: {event['message']}")

    def stay(self, outcome: Outcome, run: Run) -> None:
        """Print what came out and where the nodes are, and wait until Ctrl-C."""
        if self._live:
            self._live.stop()
        self.outcome(outcome)
        rows = [["node", "Ethereum RPC", "store"]]
        rows += [[name, node.rpc, node.store] for name, node in run.nodes.items()]
        self._console.print(f"The nodes stay up until Ctrl-C. Contract: {run.contract}")
        self._console.print(Numbers(rows, justify="left", boxed=False))
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
                styled("Audit passed", "green"),
                f": {counted(audit.files, 'file')} fetched, {audit.recomputed}.",
                sep="",
            )
        else:
            self._console.print(styled("Audit FAILED", "red"), f"with {counted(len(audit.findings), 'finding')}:")
            for finding in audit.findings:
                self._console.print(f"  {finding}")
        self._console.print(f"{outcome.seconds:.1f} s from the start of the roles to the last global weights.")
        self._console.print(f"Report: {outcome.report} (as text: report.md)")
        self._console.print(f"Model:  {outcome.model}")

    def _say(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._start:6.1f} s  {text}")

    def _view(self, progress: Progress) -> RenderableType:
        seconds = int(time.monotonic() - self._start)
        nodes = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        nodes.add_column(no_wrap=True, style="bold")
        nodes.add_column(overflow="fold")
        lines = doing_lines(progress)
        for name, doing in lines.items():
            nodes.add_row(name, doing)
        heads, *rows = progress_rows(progress)
        top = Table.grid(padding=(0, 2, 0, 0))
        top.add_row(
            f"{seconds // 60}:{seconds % 60:02}",
            ProgressBar(total=self._plan.rounds, completed=progress.round, width=30),
            styled(f"{progress.round} of {counted(self._plan.rounds, 'round')}, {progress.step}", "cyan"),
        )
        parts: list[RenderableType] = [top, nodes]
        whole = rounds_table([heads, *rows])
        if rows and whole.fits(self._console.width):
            # The newest rounds, as many as there is room for; all of them are printed at the end.
            height = (self._console.height - len(lines) - 4) // len(whole.parts(self._console.width))
            parts.append(rounds_table([heads, *rows[-max(height - LINES_AROUND_ROWS, 1) :]]))
        return Group(*parts)


def doing_lines(progress: Progress) -> dict[str, str]:
    """Return what each role does, by its name; of many learners, those that the round waits for."""
    learners = progress.plan.learners
    if learners <= CROWD:
        return progress.doing
    accepted = progress.local.get(progress.round, {})
    late = [n for n in range(1, learners + 1) if n not in accepted]
    names = {learner_name(n) for n in late[:LATE]} | {HEADER}
    lines = {name: doing for name, doing in progress.doing.items() if name in names}
    lines["learners"] = f"{len(accepted)} of {learners} accepted in round {progress.round}"
    if len(late) > LATE:
        lines["learners"] += f"; waiting for {learners_label(late)}"
    return lines


def progress_rows(progress: Progress) -> list[list[str]]:
    """Return the accuracies so far, heads first: of many learners, the worst, the median and the best of a round."""
    learners = range(1, progress.plan.learners + 1)
    is_crowd = len(learners) > CROWD
    columns = ["accepted", "worst", "median", "best"] if is_crowd else [f"learner {n}" for n in learners]
    rows = [["round", *columns, "global"]]
    for round_ in range(progress.plan.rounds):
        local = progress.local.get(round_, {})
        if not local and round_ + 1 not in progress.globals_:
            continue
        if is_crowd:
            known = sorted(value for value in local.values() if value is not None)
            ends = [known[0], statistics.median(known), known[-1]] if known else [None] * 3
            cells = [str(len(local)), *map(percent, ends)]
        else:
            cells = [percent(local.get(n)) for n in learners]
        rows.append([str(round_), *cells, percent(progress.globals_.get(round_ + 1))])
    return rows


def scenarios_table(scenarios: Iterable[Scenario]) -> Table:
    """Return the scenarios that there are for a console."""
    grid = Table(box=None, padding=(0, 2, 0, 0))
    rows = [
        (scenario.name, "any" if len(scenario.backends) > 1 else scenario.backends[0], scenario.text)
        for scenario in scenarios
    ]
    for head, *texts in zip(("scenario", "backend", "what happens"), *rows, strict=True):
        grid.add_column(head, min_width=_longest_word(texts))
    for row in rows:
        grid.add_row(*row)
    return grid


def checks_table(name: str, checks: Sequence[Check]) -> Table:
    """Return a scenario's expectations and whether they passed, for a console."""
    grid = Table(title=f"scenario {name}", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    grid.add_column("", min_width=len("FAIL"))
    grid.add_column("check", min_width=_longest_word(check.what for check in checks))
    grid.add_column("seen", min_width=_longest_word(check.seen for check in checks))
    for check in checks:
        grid.add_row(styled("pass", "green") if check.passed else styled("FAIL", "red"), check.what, check.seen)
    return grid


def _longest_word(texts: Iterable[str]) -> int:
    """Return the width of a column that breaks no word; a terminal that has less wraps the line itself."""
    return max((cell_len(word) for text in texts for word in visible(text).split()), default=1)


def contribution_table(rounds: Sequence[RoundContribution], images: int) -> Numbers:
    """Return Shapley values for a console, in percentage points of accuracy on the held-out images."""
    total = totals(rounds)

    def points(value: Fraction | int) -> str:
        return f"{float(100 * value / images):+.2f}"

    rows = [["round", *(f"learner {node_id}" for node_id in total), "all", "accuracy"]]
    for row in rounds:
        values = [points(row.values[n]) if n in row.values else "–" for n in total]
        rows.append([str(row.round), *values, points(row.after - row.before), percent(row.after / images)])
    return Numbers(
        rows,
        f"contribution to the accuracy on {images} held-out images, percentage points",
        total=["total", *(points(value) for value in total.values()), points(sum(total.values())), ""],
    )


def shards_table(counts: Mapping[int, Sequence[int]]) -> Numbers:
    """Return how many images of each label each learner has, with a bar beside each number."""
    labels = range(len(next(iter(counts.values()))))
    most = max(max(row) for row in counts.values())
    rows = [["learner", *(f"{label}  " for label in labels), "all"]]
    for node_id, row in counts.items():
        # A bar beside each number shows who has what at a glance.
        cells = [f"{count} {BARS[(count * (len(BARS) - 1) + most - 1) // most] if most else ' '}" for count in row]
        rows.append([str(node_id), *cells, str(sum(row))])
    return Numbers(rows, "images by label", boxed=False)


def rounds_table(rows: Sequence[Sequence[str]]) -> Numbers:
    """Return the table of rounds for a console; accuracies in percent."""
    # A learner and its model, in an ensemble.
    heads = [head.replace(", ", "\n") for head in rows[0]]
    return Numbers([heads, *rows[1:]], "accuracy on the test images, %")
