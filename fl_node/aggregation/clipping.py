"""Norm clipping: an average in which no update is longer than a bound.

Sun et al., "Can You Really Backdoor Federated Learning?", 2019, https://arxiv.org/abs/1911.07963
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fl_node.aggregation.rule import Aggregate, names_of, rounded, shares, squared_distance
from fl_node.artifacts.model_file import Tensor, Tensors
from fl_node.plan.schema import AggregationPlan


def norm_clipping(
    inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors, settings: AggregationPlan
) -> Aggregate:
    """Shorten each update (local less global weights) to ``settings.clip``, average, and add to the global weights.

    The length is the Euclidean norm over all tensors together. An update that is short enough is not changed.
    """
    clip = settings.clip or math.inf
    names = names_of(inputs[0])
    lengths = [math.sqrt(squared_distance(one, parent, names)) for one in inputs]
    parts = shares(counts)
    factors = [
        np.float64(part * (1.0 if length <= clip else clip / length))
        for part, length in zip(parts, lengths, strict=True)
    ]

    def tensor(name: str) -> Tensor:
        start = np.asarray(parent[name], np.float64)
        total = start.copy()
        for one, factor in zip(inputs, factors, strict=True):
            total += (one[name] - start) * factor
        return rounded(total)

    return Aggregate(parts, tensor)
