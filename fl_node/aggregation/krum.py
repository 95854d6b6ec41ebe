"""Krum and Multi-Krum: the local weights that lie closest to their neighbours.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
https://arxiv.org/abs/1703.02757
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fl_node.aggregation.fedavg import averaged
from fl_node.aggregation.rule import Aggregate, Robust, Uniform, in_order, names_of, pieces, shares
from fl_node.runtime.tensors import Tensors


class _Nearest(Robust):
    def least(self) -> int:
        """Return how many files there must be so that honest ones have honest neighbours."""
        return 2 * self.num_malicious + 3

    @abstractmethod
    def kept(self, files: int) -> int:
        """Return how many of the files are taken."""

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:  # noqa: ARG002
        """Average the weights with the best :func:`scores`, by what they count for."""
        ranked = scores(inputs, self.num_malicious)
        best = sorted(sorted(range(len(inputs)), key=lambda index: (ranked[index], index))[: self.kept(len(inputs))])
        kept = [counts[index] for index in best]
        share = dict(zip(best, shares(kept), strict=True))
        return averaged(
            [inputs[index] for index in best], kept, tuple(share.get(index, 0.0) for index in range(len(inputs)))
        )


class Krum(_Nearest):
    """The local weights of one learner: those that lie closest to their neighbours."""

    rule: Literal["krum"] = "krum"
    weighting: Uniform = "uniform"

    def kept(self, files: int) -> int:  # noqa: ARG002
        """Return 1."""
        return 1


class MultiKrum(_Nearest):
    """The average of the local weights that lie closest to their neighbours, as many as are honest."""

    rule: Literal["multi_krum"] = "multi_krum"

    def kept(self, files: int) -> int:
        """Return how many are honest."""
        return files - self.num_malicious


def scores(inputs: Sequence[Tensors], num_malicious: int) -> list[float]:
    """Return each input's sum of squared distances to its ``len(inputs) - num_malicious - 2`` nearest neighbours.

    A lower score is better: an input far from the majority does not have that many near neighbours.

    Parameters
    ----------
    inputs
        The local weights of each learner, by tensor name.
    num_malicious
        The number of malicious learners to withstand.
    """
    count = len(inputs)
    distances = np.zeros((count, count))
    for name in names_of(inputs[0]):
        for tensors in pieces(inputs, name):
            for i in range(count):
                for j in range(i):
                    difference = np.subtract(tensors[i], tensors[j], dtype=np.float64)
                    distances[i, j] += in_order(np.multiply(difference, difference))
    distances += distances.T
    near = max(count - num_malicious - 2, 1)
    return [in_order(np.sort(np.delete(row, i))[:near]) for i, row in enumerate(distances)]
