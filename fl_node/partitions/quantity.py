"""Parts of uneven size.

Hsu et al. draw labels from a Dirichlet distribution (see :mod:`fl_node.partitions.dirichlet`); here the numbers are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fl_node.partitions.dirichlet import Alpha
from fl_node.partitions.partition import Partition, Pool, draws, polya
from fl_node.runtime.tensors import Indices
from fl_node.seeds import derive, permutation


class Quantity(Partition):
    """How many samples each learner has is drawn from a Dirichlet distribution; labels are mixed."""

    partition: Literal["quantity"] = "quantity"
    alpha: Alpha = 0.5

    @property
    def description(self) -> str:
        """How the samples are shared out."""
        return f"partitioned by size with a Dirichlet distribution (α = {self.alpha:g})"

    def sizes(self, pool: Pool) -> Sequence[int]:
        """Draw the numbers."""
        return quantities(pool.count, pool.learners, self.alpha, derive(pool.seed, "quantity"))

    def parts(self, pool: Pool) -> list[Indices]:
        """Draw as many samples for each learner."""
        return by_quantity(self.sizes(pool), derive(pool.seed, "partition"))


def by_quantity(sizes: Sequence[int], seed: int) -> list[Indices]:
    """Share out images at random in parts of the sizes given; labels are as mixed as in the whole."""
    order = permutation(sum(sizes), seed)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


@functools.lru_cache(maxsize=8)
def quantities(count: int, learners: int, alpha: float, seed: int) -> tuple[int, ...]:
    """Return the number of images of each learner, with shares drawn from a Dirichlet distribution.

    It uses Pólya's urn, as :func:`fl_node.partitions.dirichlet.by_dirichlet` does. Each learner has at least one
    image.

    Parameters
    ----------
    count
        The number of images.
    learners
        The number of shards.
    alpha
        The concentration; smaller values give less equal shards.
    seed
        Decides everything random.
    """
    draw = draws(seed)
    seen: list[int] = []
    everyone = list(range(learners))
    for _ in range(count - learners):
        seen.append(polya(draw, seen, everyone, alpha))
    return tuple(1 + size for size in np.bincount(np.array(seen, np.int64), minlength=learners).tolist())
