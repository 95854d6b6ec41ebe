"""Describes in words what a plan hides about its learners."""

from __future__ import annotations

from fl_node.plan.schema import Plan


def hidden(plan: Plan) -> str:
    """Return sentences that say what other participants can and can't read."""
    return f"{_weights(plan)} {_limited(plan)}".strip()


def _limited(plan: Plan) -> str:
    """Return what differential privacy limits."""
    if plan.dp is None:
        return ""
    if not plan.dp.is_of_learners:
        return "Differential privacy limits what anybody learns of a single example, up to ε."
    others = plan.dp.tolerated
    whom = f"{others} or fewer learners" if others else "who is no learner: each knows its own noise"
    return f"Differential privacy limits what the sums say of a whole learner, up to ε, to {whom}."


def _weights(plan: Plan) -> str:
    if not plan.is_masked:
        return "Nothing is hidden: every member of the swarm can read the weights of each learner."
    return (
        "Hidden: the weights, accuracy and loss of each learner. Not hidden: the sum of each round, who took part, "
        f"and the numbers of samples. {plan.threshold} learners together can read more."
    )
