"""Equal parts at random, as in Hwang & Kim (2024)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fl_node.partitions.partition import Partition, Pool
from fl_node.runtime.tensors import Indices
from fl_node.seeds import derive, permutation


class Equal(Partition):
    """The same number of samples for each learner, drawn at random."""

    partition: Literal["equal"] = "equal"

    @property
    def description(self) -> str:
        """How the samples are shared out."""
        return "partitioned at random into equal parts"

    def parts(self, pool: Pool) -> list[Indices]:
        """Draw the parts."""
        return equal(pool.count, pool.learners, derive(pool.seed, "partition"))


def equal(count: int, learners: int, seed: int) -> list[Indices]:
    """Divide ``count`` images at random into equal shards, as in Hwang & Kim (2024).

    Parameters
    ----------
    count
        The number of images.
    learners
        The number of shards.
    seed
        Decides everything random.

    Returns
    -------
    list of int arrays
        The indices of each learner's images, ascending, in the order of nodeId; sizes differ by at most one.
    """
    return [np.sort(part) for part in np.array_split(permutation(count, seed), learners)]
