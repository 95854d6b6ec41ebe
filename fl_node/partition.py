"""Who has which images: shards of the training set, one for each learner, without overlap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl_node.errors import DataError
from fl_node.plan import Plan
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


def shard(plan: Plan, node_id: int, available: int) -> Indices:
    """Return the indices of the training images that a learner trains on.

    Parameters
    ----------
    plan
        The run's plan.
    node_id
        The learner's node, 1 to ``plan.learners``.
    available
        Number of training images in the data set.

    Raises
    ------
    DataError
        The plan has no shard for this node, or wants more images than there are.
    """
    if not 1 <= node_id <= plan.learners:
        raise DataError(
            f"the plan shares the images among learners 1 to {plan.learners}; there is no shard for learner {node_id}"
        )
    count = plan.data.train or available
    if count > available:
        raise DataError(f"the plan wants {count} training images; {plan.data.name} has {available}")
    chosen = permutation(available, derive(plan.seed, "choose"))[:count]
    return np.sort(chosen[equal(count, plan.learners, derive(plan.seed, "partition"))[node_id - 1]])
