"""The learners that the current round waits for, as far as the chain tells."""

from __future__ import annotations

from collections.abc import Container

from fl_node.plan.schema import Plan
from fl_node.protocol.budget import Budget
from fl_node.protocol.history import History


def awaited(plan: Plan, past: History, missing: Container[int] = ()) -> tuple[int, ...]:
    """Return the learners that the current round waits for, by nodeId; without any it waits for the header.

    Before its first round a run with masks waits for the learners that have announced no key. A learner that has
    spent its privacy budget publishes nothing more, so only a closed round waits for it. The chain does not tell
    whether a learner trains or is gone, nor whether its update is valid.

    Parameters
    ----------
    plan, past
        The run's plan and history.
    missing
        The learners whose files of the current round the store doesn't have. Without these files nobody can open the
        masks of a closed round.
    """
    if not past.rounds:
        announced = {entry.node_id for entry in past.first_keys}
        return tuple(n for n in range(1, plan.learners + 1) if n not in announced) if plan.is_masked else ()
    current = past.rounds[-1]
    published = current.latest()
    if current.closed is not None:
        opened = {entry.node_id for entry in current.openings}
        if len(opened) >= plan.threshold:
            return ()
        lost = tuple(node_id for node_id in sorted(published) if node_id in missing)
        return lost or tuple(sorted(published.keys() - opened))
    unable = {*published, *Budget.of(plan, past).spent_learners()}
    return tuple(node_id for node_id in range(1, plan.learners + 1) if node_id not in unable)
