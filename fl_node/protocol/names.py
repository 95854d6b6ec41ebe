"""What nodes are called, in a run's files and to people, and the word for a file that nobody has."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable

HEADER = "header"
MISSING = "missing"
"""The reason of a rejection because nobody had the file."""
_NODE = re.compile(rf"{HEADER}|learner-[1-9][0-9]{{0,8}}")


def learner_name(node_id: int) -> str:
    """Return the name of a learner's node, such as ``learner-1``."""
    return f"learner-{node_id}"


def standby_name(node_id: int) -> str:
    """Return the name of a learner's standby header, such as ``standby-1``."""
    return f"standby-{node_id}"


def learner_label(node_id: int) -> str:
    """Return what a learner is called in texts, such as ``learner 1``."""
    return f"learner {node_id}"


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers in ascending order, with three or more that follow one another as a range: ``1–50, 52, 53``."""
    parts: list[str] = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda one: one[1] - one[0]):
        run = [number for _, number in group]
        parts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run)
    return ", ".join(parts)


def learners_label(node_ids: Collection[int]) -> str:
    """Return what several learners are called in texts, such as ``learner 1`` or ``learners 1–50``."""
    return f"learner{'s' if len(node_ids) != 1 else ''} {ranges(node_ids)}"


def is_node_name(text: str) -> bool:
    """Return whether a text is the name of a node."""
    return _NODE.fullmatch(text) is not None
