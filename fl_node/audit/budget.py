"""Checks the privacy budget of a run with differential privacy: who exceeded the limit in the plan."""

from __future__ import annotations

from fl_node.audit.result import Audit
from fl_node.plan.schema import Plan
from fl_node.privacy.accounting import rounded
from fl_node.protocol import budget
from fl_node.protocol.budget import Budget
from fl_node.protocol.history import History
from fl_node.protocol.names import learner_label
from fl_node.wording import counted

UNPROVEN = (
    "ε holds only for learners that clip their gradients, sample as planned, add noise and keep it secret; this "
    "can't be verified"
)
UNPROVEN_OF_LEARNERS = (
    "ε holds only if learners clip their updates, and all but {tolerated} of those in the plan add noise and keep it "
    "secret; this can't be verified"
)


def unproven(plan: Plan) -> str:
    """Return what nobody can prove of a run with differential privacy."""
    dp = plan.dp
    return UNPROVEN_OF_LEARNERS.format(tolerated=dp.tolerated) if dp is not None and dp.is_of_learners else UNPROVEN


def check_budget(plan: Plan, past: History, result: Audit, spent: Budget) -> None:
    """Add findings for learners that exceeded the limit, and notes with the ε of each learner.

    Parameters
    ----------
    plan, past
        The run's plan and history.
    result
        Receives findings and notes.
    spent
        What was spent after all publications.
    """
    dp = plan.dp
    if dp is None:
        return
    for node_id in spent.overspent():
        count, limit = spent.published[node_id], budget.most_publications(plan, node_id)
        epsilon = rounded(budget.epsilon(plan, node_id, count))
        text = (
            f"is {epsilon:g} after {counted(count, 'publication')}; the plan allows {dp.limit:g}, or {limit} of them"
        )
        result.find(None, learner_label(node_id), "epsilon", text)
    if spent.is_over() and len(past.rounds) - 1 < plan.rounds:
        result.note(
            f"the privacy budget ended the run after {len(past.rounds) - 1} of {counted(plan.rounds, 'round')}"
        )
    epsilons = ", ".join(f"learner {node_id}: {epsilon:g}" for node_id, epsilon in spent.epsilons().items())
    result.note(f"privacy: ε for δ = {dp.delta:g}, from the number of publications: {epsilons}")
    result.note(f"privacy: {unproven(plan)}")
