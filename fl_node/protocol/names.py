"""What nodes are called, in a run's files and to people, and the word for a file that nobody has."""

from __future__ import annotations

import re

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


def is_node_name(text: str) -> bool:
    """Return whether a text is the name of a node."""
    return _NODE.fullmatch(text) is not None
