"""What a run with differential privacy has spent, and whether a learner exceeded the plan's limit."""

from __future__ import annotations

from fl_node.audit.result import Audit
from fl_node.plan.schema import Plan
from fl_node.privacy.accounting import rounded
from fl_node.protocol import budget
from fl_node.protocol.budget import Budget
from fl_node.protocol.history import History
from fl_node.protocol.names import learner_label

UNPROVEN = (
    "nobody can prove that a learner clipped its gradients, sampled as planned, added its noise and kept it "
    "secret; ε holds for those who did"
)


def check_budget(plan: Plan, past: History, result: Audit) -> None:
    """Say what was spent, and find who spent more than the plan allows.

    Parameters
    ----------
    plan, past
        The run's plan, and its history by the log.
    result
        Takes what is found.
    """
    dp = plan.dp
    if dp is None:
        return
    found = Budget.of(plan, past)
    for node_id in found.overspent():
        count, most = found.published[node_id], budget.most_publications(plan, node_id)
        spent = rounded(budget.epsilon(plan, node_id, count))
        text = f"is {spent:g} after {count} publications; the plan allows {dp.limit:g}, which is {most} publications"
        result.find(None, learner_label(node_id), "epsilon", text)
    if found.is_over() and len(past.rounds) - 1 < plan.rounds:
        result.note(f"the privacy budget ended the run after {len(past.rounds) - 1} of {plan.rounds} rounds")
    spent_by = ", ".join(f"learner {node_id}: {spent:g}" for node_id, spent in found.epsilons().items())
    result.note(f"privacy: ε for δ = {dp.delta:g} by what each learner published: {spent_by}")
    result.note(f"privacy: {UNPROVEN}")
