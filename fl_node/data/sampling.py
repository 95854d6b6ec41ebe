"""The sampling of a learner's data in one round, which the accountant of differential privacy needs."""

from __future__ import annotations

from fl_node.data.partition import shard_size
from fl_node.plan.schema import Plan
from fl_node.privacy.dp import OF_LEARNERS, Sampling, sampling


def sampling_of(plan: Plan, node_id: int) -> Sampling:
    """Return the sampling in one round: of a learner's examples, or of its update."""
    if plan.dp is not None and plan.dp.is_of_learners:
        return OF_LEARNERS
    return sampling(shard_size(plan, node_id), plan.training.batch_size, plan.training.epochs)
