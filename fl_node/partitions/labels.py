"""Parts with few labels each.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629, section 3
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fl_node.partitions.partition import Partition, Pool, equal_sizes
from fl_node.runtime.tensors import Indices, Labels
from fl_node.seeds import derive, permutation


class FewLabels(Partition):
    """Samples are sorted by label, and each learner gets a few pieces."""

    partition: Literal["labels"] = "labels"
    labels_each: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="The number of pieces of the samples sorted by label that each learner gets, hence about as "
            "many labels.",
        ),
    ] = 2

    @property
    def description(self) -> str:
        """How the samples are shared out."""
        return f"sorted by label and partitioned into {self.labels_each} parts per learner"

    def parts(self, pool: Pool) -> list[Indices]:
        """Deal the pieces out."""
        return by_labels(pool.labels(), pool.learners, self.labels_each, derive(pool.seed, "partition"))


def by_labels(labels: Labels, learners: int, each: int, seed: int) -> list[Indices]:
    """Sort images by label, cut them into parts, and deal ``each`` parts to every learner at random.

    McMahan et al. 2017, https://arxiv.org/abs/1602.05629, section 3: with two parts, most learners have two labels.

    Parameters
    ----------
    labels
        The label of each image, shape ``(count,)``.
    learners
        The number of shards.
    each
        The number of parts per learner.
    seed
        Decides everything random.

    Returns
    -------
    list of int arrays
        The indices of each learner's images, ascending, in the order of nodeId; sizes differ by at most one.
    """
    shuffled = permutation(len(labels), derive(seed, "images"))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Every learner gets the same number of images, whichever parts it is dealt.
    sizes = equal_sizes(len(labels), learners)
    hands = np.array_split(permutation(learners * each, derive(seed, "deal")), learners)
    owner = np.empty(learners * each, np.int64)
    for learner, hand in enumerate(hands):
        owner[hand] = learner
    cuts = [np.array_split(np.arange(size), each) for size in sizes]
    lengths = {learner: [len(part) for part in parts] for learner, parts in enumerate(cuts)}
    parts: list[list[Indices]] = [[] for _ in range(learners)]
    start = 0
    for learner in owner.tolist():
        length = lengths[learner].pop()
        parts[learner].append(ordered[start : start + length])
        start += length
    return [np.sort(np.concatenate(part)) for part in parts]
