"""Coordinate-wise trimmed mean.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
https://arxiv.org/abs/1803.01498
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fl_node.aggregation.fedavg import fedavg
from fl_node.artifacts.model_file import Tensor


def trimmed_mean(tensors: Iterable[Tensor], byzantine: int) -> Tensor:
    """Return the mean of one tensor over the learners without the extremes, each value by itself.

    Parameters
    ----------
    tensors
        The same tensor of each learner, float32, all of one shape; more than ``2 * byzantine``.
    byzantine
        How many of the smallest values are left out, and how many of the largest.

    Returns
    -------
    float32 array
        Of the same shape; of what is left the sum from the smallest to the largest in float64, rounded once.
    """
    ordered = np.sort(np.stack(list(tensors)), axis=0)
    kept = ordered[byzantine : len(ordered) - byzantine]
    return fedavg(kept, [1] * len(kept))
