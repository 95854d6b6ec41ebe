"""The pairs of learners that share masks: all pairs up to 16 learners, a sparse regular graph beyond.

Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020,
https://doi.org/10.1145/3372297.3417885: about 4 log2 n neighbours suffice. The graph follows from the round's public
label, which nobody can foresee: learners stand in a circle in the order of their hashes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

COMPLETE = 16
"""Maximum number of learners for the complete graph."""


def degree(learners: int) -> int:
    """Return the number of neighbours of each learner, for a number of learners."""
    if learners <= COMPLETE:
        return max(learners - 1, 0)
    half = math.ceil(2 * math.log2(learners))
    return min(2 * half, learners - 1)


def neighbours(node_id: int, learners: Collection[int], label: str) -> tuple[int, ...]:
    """Return a learner's neighbours, in ascending order.

    Parameters
    ----------
    node_id
        The learner.
    learners
        All that have keys in this round, this one too.
    label
        The round's public label.
    """
    count = degree(len(learners))
    if count >= len(learners) - 1:
        return tuple(sorted(set(learners) - {node_id}))

    def place(one: int) -> bytes:
        return hashlib.sha256(f"{label}/{one}".encode()).digest()

    circle = sorted(learners, key=place)
    mine = circle.index(node_id)
    steps = range(1, count // 2 + 1)
    return tuple(sorted({circle[(mine + sign * step) % len(circle)] for step in steps for sign in (1, -1)}))


def threshold(recipients: int) -> int:
    """Return how many recipients of its shares open a secret in a sparse graph: more than two thirds."""
    return 2 * recipients // 3 + 1
