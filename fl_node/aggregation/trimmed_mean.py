"""Coordinate-wise trimmed mean.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
https://arxiv.org/abs/1803.01498
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.rule import Aggregate, Robust, Uniform, by_value, shares
from fl_node.runtime.tensors import Tensor, Tensors


class TrimmedMean(Robust):
    """The mean of each value over the learners without the extremes."""

    rule: Literal["trimmed_mean"] = "trimmed_mean"
    weighting: Uniform = "uniform"

    def least(self) -> int:
        """Return how many files there must be so that one is left."""
        return 2 * self.num_malicious + 1

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Take each value by :func:`trimmed_mean`."""
        return by_value(
            shares(counts),
            lambda name, inputs, _parent: trimmed_mean((tensors[name] for tensors in inputs), self.num_malicious),
            inputs,
            parent,
        )


def trimmed_mean(tensors: Iterable[Tensor], num_malicious: int) -> Tensor:
    """Return the mean of one tensor over the learners without the extremes, each value by itself.

    Parameters
    ----------
    tensors
        The same tensor of each learner, float32, all of one shape; more than ``2 * num_malicious``.
    num_malicious
        How many of the smallest values are left out, and how many of the largest.

    Returns
    -------
    float32 array
        Of the same shape; of what is left the sum from the smallest to the largest in float64, rounded once.
    """
    ordered = np.sort(np.stack(list(tensors)), axis=0)
    kept = ordered[num_malicious : len(ordered) - num_malicious]
    return fedavg(kept, [1] * len(kept))
