"""Who has which images: shards of the training set, one for each learner, without overlap.

The ways to share them are in :mod:`fl_node.partitions`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from fl_node.data.datasets import Labels
from fl_node.errors import DataError
from fl_node.partitions import Pool
from fl_node.plan.schema import Plan
from fl_node.runtime.tensors import Indices
from fl_node.seeds import derive, permutation


def shard(plan: Plan, node_id: int, labels: Callable[[], Labels] | None = None) -> Indices:
    """Return the indices of the training images that a learner trains on, in ascending order.

    Parameters
    ----------
    plan
        The run's plan.
    node_id
        The learner's node, 1 to ``plan.learners``.
    labels
        Returns the labels of all training images, shape ``(count,)``; needed where the plan shares out by label.

    Raises
    ------
    DataError
        The plan has no shard for this node.
    """
    _known(plan, node_id)
    chosen = _chosen(plan)
    by_label: Callable[[], Labels] = lambda: _labels(plan, labels)[chosen]  # noqa: E731
    return np.sort(chosen[plan.data.partitioner.parts(_pool(plan, by_label))[node_id - 1]])


def label_counts(plan: Plan, labels: Labels) -> dict[int, list[int]]:
    """Return how many images of each label each learner has, by nodeId."""
    chosen = _chosen(plan)
    parts = plan.data.partitioner.parts(_pool(plan, lambda: labels[chosen]))
    return {
        node_id: np.bincount(labels[chosen[part]], minlength=plan.data.class_count).tolist()
        for node_id, part in enumerate(parts, 1)
    }


def held_out(plan: Plan) -> Indices:
    """Return the indices of the training images that no learner has, in ascending order; none unless planned."""
    return np.sort(_order(plan)[plan.data.train : plan.data.train + plan.data.validation])


def public_set(plan: Plan) -> Indices:
    """Return the indices of the training images that all nodes have, in ascending order; none unless planned."""
    first = plan.data.train + plan.data.validation
    return np.sort(_order(plan)[first : first + plan.data.public_set])


def everyone(plan: Plan) -> Indices:
    """Return the indices of the training images that all learners have together, in ascending order."""
    return np.sort(_chosen(plan))


def _order(plan: Plan) -> Indices:
    available, _ = plan.data.available
    if plan.custom is not None:
        return np.arange(available)
    return permutation(available, derive(plan.seed, "choose"))


def _chosen(plan: Plan) -> Indices:
    return _order(plan)[: plan.data.train]


def _known(plan: Plan, node_id: int) -> None:
    if not 1 <= node_id <= plan.learners:
        raise DataError(
            f"learner {node_id} has no shard; the plan divides the images among learners 1 to {plan.learners}"
        )


def _labels(plan: Plan, labels: Callable[[], Labels] | None) -> Labels:
    if labels is None:
        raise DataError(f"data.partition = {plan.data.partition} needs the labels of the images")
    return labels()


def _pool(plan: Plan, labels: Callable[[], Labels]) -> Pool:
    data = plan.data
    return Pool(data.train, plan.learners, plan.seed, labels, lambda: data.class_count, data.samples)


@lru_cache(maxsize=1024)
def shard_size(plan: Plan, node_id: int) -> int:
    """Return how many images :func:`shard` gives a learner."""
    _known(plan, node_id)
    return plan.data.partitioner.sizes(_pool(plan, lambda: _labels(plan, None)))[node_id - 1]
