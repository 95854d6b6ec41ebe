"""Describes in words what a plan hides about its learners."""

from __future__ import annotations

from fl_node.plan.schema import Plan


def hidden(plan: Plan) -> str:
    """Return sentences that say what other participants can and can't read."""
    if not plan.is_masked:
        return "Nothing is hidden: every member of the swarm can read the weights of each learner."
    return (
        "Hidden: the weights, accuracy and loss of each learner. Not hidden: the sum of each round, who took part, "
        f"and the numbers of samples. {plan.threshold} learners together can read more."
    )
