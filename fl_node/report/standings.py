"""How each learner stands among the others, for runs with more learners than a table or a picture can name."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from fl_node.report.collect import Result
from fl_node.report.turns import Turn

NAMED = 5
"""So many outliers, and so many slow learners, are named in a sentence."""


@dataclass(frozen=True)
class Standing:
    """A learner among the others.

    ``accepted`` counts its updates in global weights. ``distance`` is the median, over rounds, of its accuracy minus
    the median of all accepted updates of the round, in percentage points; a rejected update does not count.
    ``seconds`` and ``longest`` are median and maximum of the time that an update took. None where nothing is known.
    """

    node_id: int
    accepted: int
    accuracy: float | None
    """Of its newest accepted update, a fraction."""
    distance: float | None
    seconds: float | None
    longest: int | None


def standings(result: Result, turns: Iterable[Turn]) -> list[Standing]:
    """Return how the learners stand, those first whose accuracy is furthest from the others'.

    Parameters
    ----------
    result
        What the chain and the files say of the run.
    turns
        The publications of the learners in time.
    """
    accepted: dict[int, int] = defaultdict(int)
    newest: dict[int, float] = {}
    distances: dict[int, list[float]] = defaultdict(list)
    for closed in result.rounds:
        for member in closed.members:
            accepted[member.node_id] += member.reason is None
        known = {n: entry.accuracy for n, entry in closed.accepted.items() if entry.accuracy is not None}
        newest |= known
        middle = statistics.median(known.values()) if known else 0.0
        for node_id, accuracy in known.items():
            distances[node_id].append(100 * (accuracy - middle))
    took: dict[int, list[int]] = defaultdict(list)
    for turn in turns:
        took[turn.node_id].append(turn.ready - turn.start)
    rows = [
        Standing(
            node_id,
            accepted[node_id],
            newest.get(node_id),
            statistics.median(distances[node_id]) if distances[node_id] else None,
            statistics.median(took[node_id]) if took[node_id] else None,
            max(took[node_id], default=None),
        )
        for node_id in sorted(result.learners)
    ]
    return sorted(rows, key=lambda row: (-abs(row.distance or 0.0), row.node_id))


def outliers(rows: Iterable[Standing]) -> list[Standing]:
    """Return the learners whose accuracy is furthest from the others', at most :data:`NAMED`."""
    return [row for row in rows if row.distance][:NAMED]


def slowest(rows: Iterable[Standing]) -> list[Standing]:
    """Return the learners that take the longest, at most :data:`NAMED`, the slowest first."""
    timed = [row for row in rows if row.seconds is not None]
    return sorted(timed, key=lambda row: (-(row.seconds or 0), -(row.longest or 0), row.node_id))[:NAMED]
