"""Who has which images: shards of the training set, one for each learner, without overlap."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from fl_node.errors import DataError
from fl_node.plan import DATA_SIZES, Plan
from fl_node.seeds import derive, permutation

Indices = npt.NDArray[np.int64]


def equal(count: int, learners: int, seed: int) -> list[Indices]:
    """Share out ``count`` images at random in equal parts, as in Hwang & Kim (2024).

    Returns
    -------
    list of int arrays
        One a learner, in the order of nodeId; their sizes differ by at most one.
    """
    return [np.sort(part) for part in np.array_split(permutation(count, seed), learners)]


def shard(plan: Plan, node_id: int) -> Indices:
    """Return the indices of the training images that a learner trains on, in ascending order.

    Parameters
    ----------
    plan
        The run's plan.
    node_id
        The learner's node, 1 to ``plan.learners``.

    Raises
    ------
    DataError
        The plan has no shard for this node.
    """
    if not 1 <= node_id <= plan.learners:
        raise DataError(
            f"the plan shares the images among learners 1 to {plan.learners}; there is none for learner {node_id}"
        )
    available, _ = DATA_SIZES[plan.data.name]
    chosen = permutation(available, derive(plan.seed, "choose"))[: plan.data.train]
    parts = equal(len(chosen), plan.learners, derive(plan.seed, "partition"))
    return np.sort(chosen[parts[node_id - 1]])


@functools.lru_cache(maxsize=1024)
def shard_size(plan: Plan, node_id: int) -> int:
    """Return how many images :func:`shard` gives a learner."""
    return len(shard(plan, node_id))
