"""The names of nodes in files and messages, and the reason for missing files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable

HEADER = "header"
MISSING = "missing"
"""The reason for rejecting a file that was not available."""
_NODE = re.compile(rf"{HEADER}|learner-[1-9][0-9]{{0,8}}")


def learner_name(node_id: int) -> str:
    """Return the name of a learner's node, such as ``learner-1``."""
    return f"learner-{node_id}"


def standby_name(node_id: int) -> str:
    """Return the name of a learner's standby header, such as ``standby-1``."""
    return f"standby-{node_id}"


def learner_label(node_id: int) -> str:
    """Return the name of a learner in messages, such as ``learner 1``."""
    return f"learner {node_id}"


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers in ascending order, with ranges for three or more consecutive numbers: ``1–50, 52, 53``."""
    parts: list[str] = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda indexed: indexed[1] - indexed[0]):
        run = [number for _, number in group]
        parts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run)
    return ", ".join(parts)


def learners_label(node_ids: Collection[int]) -> str:
    """Return the name of several learners in messages, such as ``learner 1`` or ``learners 1–50``."""
    return f"learner{'s' if len(node_ids) != 1 else ''} {ranges(node_ids)}"


def learners_have(node_ids: Collection[int]) -> str:
    """Return the start of a sentence about several learners, such as ``learner 1 has`` or ``learners 1–50 have``."""
    return f"{learners_label(node_ids)} {'has' if len(node_ids) == 1 else 'have'}"


def is_node_name(text: str) -> bool:
    """Return whether a string is the name of a node."""
    return _NODE.fullmatch(text) is not None
