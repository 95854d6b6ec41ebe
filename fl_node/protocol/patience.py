"""Timeouts that grow with the model: what moves and computes a large file takes longer than for a small one."""

from __future__ import annotations

import math

from fl_node.plan.schema import Plan
from fl_node.runtime.tensors import Shapes

SLOWEST = 10_000_000
"""Bytes of model files per second that a node fetches, checks, aggregates and stores at least."""


def header_timeout(plan: Plan, shapes: Shapes) -> float:
    """Return the seconds after which learners vote to replace a header that does nothing in a closed round.

    They are the plan's ``header_timeout``, and the time that the files of a round need at the rate of
    :data:`SLOWEST`: those of all learners, and the new global weights.

    Parameters
    ----------
    plan
        The run's plan.
    shapes
        The shapes of the model's tensors.
    """
    return plan.header_timeout + _seconds_of_files(plan, shapes)


def committee_timeout(plan: Plan, shapes: Shapes) -> float:
    """Return the seconds that a learner waits for a committee before it verifies global weights itself.

    They are those of :func:`header_timeout`, because a committee reads and computes what the header did. In a round
    with a timeout they are at most half of it, to leave time to train and publish.

    Parameters
    ----------
    plan
        The run's plan.
    shapes
        The shapes of the model's tensors.
    """
    seconds = header_timeout(plan, shapes)
    return min(seconds, plan.round_timeout / 2) if plan.round_timeout else seconds


def _seconds_of_files(plan: Plan, shapes: Shapes) -> float:
    """Return the seconds that the local files of a round and its global file need at the rate of :data:`SLOWEST`."""
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    return (plan.learners + 1) * size / SLOWEST
