"""Equal parts in which labels are mixed unevenly.

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
https://arxiv.org/abs/1909.06335, section 3.1
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fl_node.partitions.partition import Partition, Pool, draws, equal_sizes, polya
from fl_node.runtime.settings import Positive
from fl_node.runtime.tensors import Indices, Labels
from fl_node.seeds import derive, permutation

Alpha = Annotated[
    Positive,
    Field(description="The concentration of the Dirichlet distribution (α); smaller values give more skewed shares."),
]


class Dirichlet(Partition):
    """Each learner's labels are drawn from a Dirichlet distribution."""

    partition: Literal["dirichlet"] = "dirichlet"
    alpha: Alpha = 0.5

    @property
    def description(self) -> str:
        """How the samples are shared out."""
        return f"partitioned by label with a Dirichlet distribution (α = {self.alpha:g})"

    def parts(self, pool: Pool) -> list[Indices]:
        """Draw the parts."""
        seed = derive(pool.seed, "partition")
        return by_dirichlet(pool.labels(), pool.learners, self.alpha, seed, pool.classes())


def by_dirichlet(labels: Labels, learners: int, alpha: float, seed: int, classes: int) -> list[Indices]:
    """Divide images into equal shards, with label proportions drawn from a Dirichlet distribution.

    Hsu et al. 2019, https://arxiv.org/abs/1909.06335, section 3.1, here with the concentration ``alpha`` for each
    label. A learner draws its labels one by one from Pólya's urn, which has the same distribution and needs only
    random integers. If no image with the drawn label is left, it draws again.

    Parameters
    ----------
    labels
        The label of each image, shape ``(count,)``, 0 to ``classes - 1``.
    learners
        The number of shards.
    alpha
        The concentration; smaller values give more skewed shards.
    seed
        Decides everything random.
    classes
        The number of classes.

    Returns
    -------
    list of int arrays
        The indices of each learner's images, ascending, in the order of nodeId; sizes differ by at most one.
    """
    left = [list(permutation(int((labels == c).sum()), derive(seed, "images", c))) for c in range(classes)]
    where = [np.flatnonzero(labels == c) for c in range(classes)]
    sizes = equal_sizes(len(labels), learners)
    numbers = [draws(derive(seed, "labels", learner)) for learner in range(learners)]
    seen: list[list[int]] = [[] for _ in range(learners)]
    parts: list[list[int]] = [[] for _ in range(learners)]
    # In turns, so that those who draw when labels run out are not always the same.
    for turn in range(max(sizes, default=0)):
        for learner in range(learners):
            if turn < sizes[learner]:
                there = [c for c in range(classes) if left[c]]
                label = polya(numbers[learner], seen[learner], there, alpha)
                if not left[label]:
                    label = there[numbers[learner](len(there))]
                seen[learner].append(label)
                parts[learner].append(where[label][left[label].pop()])
    return [np.sort(np.array(part, np.int64)) for part in parts]
