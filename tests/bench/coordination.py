"""What a round costs beyond training, on real Geth and IPFS nodes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rich.table import Table

from fl_node.nodes.process import Child
from fl_node.protocol.names import HEADER, learner_name
from tests.bench.nodes import Nodes, nodes, wait_for
from tests.bench.results import Part, Row, console, say, seconds
from tests.bench.role import MASKS, OPENING, TRANSACTION, Span
from tests.bench.stub import megabytes, parameters

WARM_UP = 3
# Where spans of several threads overlap, the first of these has the time: fetches go on in the background.
KINDS = (
    "store add",
    TRANSACTION,
    OPENING,
    "reading the chain",
    MASKS,
    "aggregation",
    "checking and writing files",
    "stub training",
    "store fetch",
    "waiting",
)
ROUND_PATIENCE = 30.0
VERIFIED = 1.25
"""How many times as long a verified round may take."""
COMMITTEE = 1.2
"""How many times as long a round may take that a committee verifies."""
DAEMONS = {"geth": "Geth", "ipfs": "IPFS"}


def measure(*, quick: bool, profiles: Path | None = None) -> Part:
    """Measure rounds with 2 learners and a small model, 2 and a large one, 16 and a small one.

    Those with few nodes are measured with verification too, which a stub's training hides nothing of.
    """
    part = Part("Coordination: seconds a round")
    small, large = (5, 2) if quick else (30, 10)
    with nodes(2) as network:
        for model, rounds, target in (("small", small, 0.10), ("large", large, 0.8)):
            _compare(part, network, model, rounds, target, profiles)
    with nodes(16, 2) as network:
        _compare(part, network, "small", 3 if quick else 20, 0.5, profiles, {"committee": COMMITTEE, "all": VERIFIED})
    with nodes(16) as network:
        part.rows.append(measured_rounds(network, "small", 2 if quick else 8, 2.5, profiles, "none"))
    return part


def _compare(
    part: Part,
    network: Nodes,
    model: str,
    rounds: int,
    target: float,
    profiles: Path | None,
    limits: Mapping[str, float] = MappingProxyType({"all": VERIFIED}),
) -> None:
    """Measure rounds without verification and with it, and by how much it makes them longer."""
    without = measured_rounds(network, model, rounds, target, profiles, "none")
    part.rows.append(without)
    for verification, limit in limits.items():
        verified = measured_rounds(network, model, rounds, limit * without.figure, profiles, verification)
        part.rows.append(verified)
        times = f"{verified.figure / without.figure:.2f} times as long"
        part.notes.append(f"{without.name}: with verification {verification} {times}")


def measured_rounds(
    network: Nodes,
    model: str,
    rounds: int,
    target: float | None,
    profiles: Path | None,
    verification: str,
    *,
    masks: bool = False,
) -> Row:
    """Run header and learners, show what a round's time is spent on, and return the median of a round."""
    title = (
        f"{parameters(model):,} parameters ({megabytes(model):.1f} MB), {network.learners} learners, "
        f"{1 + network.hosts} Geth and IPFS nodes, verification {verification}{', masks' if masks else ''}"
    )
    say(f"{title}: {rounds} rounds after {WARM_UP}")
    contract = network.deploy(model, WARM_UP + rounds, verification, masks=masks)
    daemons = {kind: network.cpu(kind) for kind in DAEMONS}
    children: list[Child] = [network.role(name, contract, model, profiles) for name in network.names]
    wait_for(children, 60 + ROUND_PATIENCE * (WARM_UP + rounds))
    header, header_cpu = network.spans(HEADER)
    learners = [network.spans(learner_name(node_id)) for node_id in range(1, network.learners + 1)]
    cpu = {
        "header": _cpu(header_cpu),
        "learners": sum(_cpu(times) for _, times in learners),
        **{DAEMONS[kind]: (network.cpu(kind) - before) / (WARM_UP + rounds) for kind, before in daemons.items()},
    }
    # A round lasts from the moment its global weights stand on chain until the next ones do.
    closed = [end for kind, _, end in header if kind == TRANSACTION]
    windows = list(itertools.pairwise(closed))[-rounds:]
    splits = {HEADER: split(header, windows)}
    each = [split(spans, windows) for spans, _ in learners]
    splits["learner"] = {kind: statistics.fmean(learner[kind] for learner in each) for kind in each[0]}
    _show(title, splits, cpu)
    return seconds(title, [end - start for start, end in windows], target, split=splits, cpu=cpu)


def _cpu(after: Sequence[float]) -> float:
    """Return a role's mean seconds of CPU a round, from its seconds of CPU after each transaction."""
    return (after[-1] - after[WARM_UP - 1]) / (len(after) - WARM_UP)


def split(spans: Sequence[Span], windows: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the mean seconds of each kind in the windows; ``else`` is what no span covers."""
    total = dict.fromkeys((*KINDS, "else"), 0.0)
    for opened, closed in windows:
        inside = [
            (kind, max(start, opened), min(end, closed))
            for kind, start, end in spans
            if start < closed and end > opened
        ]
        edges = sorted({opened, closed, *(edge for _, start, end in inside for edge in (start, end))})
        for start, end in itertools.pairwise(edges):
            active = {kind for kind, first, last in inside if first <= start and end <= last}
            total[next((kind for kind in KINDS if kind in active), "else")] += end - start
    return {kind: value / len(windows) for kind, value in total.items()}


def _show(title: str, splits: dict[str, dict[str, float]], cpu: dict[str, float]) -> None:
    table = Table(title=f"A round's mean split: {title}", title_justify="left")
    table.add_column("ms a round")
    for role in splits:
        table.add_column(role if role == HEADER else "learner (mean)", justify="right")
    for kind in splits[HEADER]:
        table.add_row(kind, *(f"{1000 * values[kind]:.1f}" for values in splits.values()))
    table.add_section()
    table.add_row("round", *(f"{1000 * sum(values.values()):.1f}" for values in splits.values()))
    console.print(table)
    shares = ", ".join(f"{name} {1000 * total:.0f}" for name, total in cpu.items())
    console.print(f"CPU a round, ms, all processes of a kind together: {shares}\n", soft_wrap=True)
