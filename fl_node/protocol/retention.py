"""Which files a plan with ``retention`` no longer keeps: all who delete, verify or audit go by this.

These are the local files of old rounds, and their openings in a run with masks. Global files and the plan stay, as do
all files of withdrawn rounds, which are evidence against a header. A round is old when the plan's number of rounds
have closed after it, and when more than half of the learners have attested the global weights that it ended with: by
then the contract can't withdraw these any more, so nobody will aggregate the round again.
"""

from __future__ import annotations

from collections.abc import Iterator

from fl_node.plan.schema import Plan
from fl_node.protocol.history import History, Round


def first_kept(plan: Plan, past: History) -> int:
    """Return the first round whose local files all hosts keep; 0 without ``retention``."""
    if plan.retention is None:
        return 0
    last = max(len(past.rounds) - 1 - plan.retention.rounds, 0)
    while last and not past.is_finalized(last):
        last -= 1
    return last


def gone(plan: Plan, kept: int) -> str:
    """Return a sentence about the local files that may be deleted.

    Parameters
    ----------
    plan
        The run's plan.
    kept
        What :func:`first_kept` returned.
    """
    rounds = "round 0" if kept == 1 else f"rounds 0 to {kept - 1}"
    number = plan.retention.rounds if plan.retention is not None else 0
    return f"the local files of {rounds} are pruned (retention.rounds = {number})"


def prunable(past: History, old: Round, node_id: int | None = None) -> Iterator[str]:
    """Yield the CIDs of the files of an old round that need not be kept: its local files and its openings.

    Parameters
    ----------
    past
        The run's history.
    old
        The round.
    node_id
        The learner that published them; None means all learners.
    """
    withdrawn = {str(entry.cid) for gone in past.withdrawn for entry in (gone.started, *gone.published)}
    stay = withdrawn | {str(started.started.cid) for started in past.rounds}
    for entry in (*old.published, *old.openings):
        if node_id in (None, entry.node_id) and str(entry.cid) not in stay:
            yield str(entry.cid)
