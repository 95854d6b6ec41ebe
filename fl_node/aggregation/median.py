"""Coordinate-wise median.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
https://arxiv.org/abs/1803.01498
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from fl_node.aggregation.rule import Aggregate, Rule, Uniform, by_value, shares
from fl_node.runtime.tensors import Tensor, Tensors


class Median(Rule):
    """The median of each value over the learners."""

    rule: Literal["median"] = "median"
    weighting: Uniform = "uniform"

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Take each value by :func:`median`."""
        return by_value(
            shares(counts), lambda name, inputs, _parent: median(tensors[name] for tensors in inputs), inputs, parent
        )


def median(tensors: Iterable[Tensor]) -> Tensor:
    """Return the median of one tensor over the learners, each value by itself.

    Parameters
    ----------
    tensors
        The same tensor of each learner, float32, all of one shape.

    Returns
    -------
    float32 array
        Of the same shape. Of an even number the mean of the two in the middle, in float64, rounded once.
    """
    ordered = np.sort(np.stack(list(tensors)), axis=0)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return np.asarray(np.add(low, high, dtype=np.float64) / 2).astype(np.float32)
