"""FedAvgM and FedAdam: the header follows the average of the updates with momentum, or as Adam follows a gradient.

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
https://arxiv.org/abs/1909.06335 (FedAvgM); Reddi et al., "Adaptive Federated Optimization", ICLR 2021,
https://arxiv.org/abs/2003.00295 (FedAdam, algorithm 2).

What they carry from round to round stands in the global file beside the weights, as ``momentum/NAME`` and
``second_momentum/NAME``, all zero in the initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.rule import Aggregate, Wide, rounded, shares
from fl_node.artifacts.model_file import Tensor, Tensors
from fl_node.plan.schema import AggregationPlan


def fedavgm(
    inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors, settings: AggregationPlan
) -> Aggregate:
    """Keep ``momentum`` of the last direction v, add the average update Δ, and go ``server_learning_rate`` along it.

    v ← momentum · v + Δ;  w ← w + server_learning_rate · v
    """
    rate, kept = np.float64(settings.server_learning_rate or 1), np.float64(settings.momentum or 0)

    def tensor(name: str) -> Tensor:
        kind, _, rest = name.partition("/")
        own = rest if kind == "momentum" else name
        direction = kept * parent[f"momentum/{own}"] + _update(inputs, counts, parent, own)
        return rounded(direction if kind == "momentum" else parent[own] + rate * direction)

    return Aggregate(shares(counts), tensor)


def fedadam(
    inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors, settings: AggregationPlan
) -> Aggregate:
    """Follow the average update Δ as Adam does, without its correction of the first steps.

    m ← β₁ m + (1 - β₁) Δ;  v ← β₂ v + (1 - β₂) Δ²;  w ← w + server_learning_rate · m / (√v + τ)
    """
    rate, first = np.float64(settings.server_learning_rate or 1), np.float64(settings.momentum or 0)
    second, adaptivity = np.float64(settings.second_momentum or 0), np.float64(settings.adaptivity or 1)

    def tensor(name: str) -> Tensor:
        kind, _, rest = name.partition("/")
        own = rest if kind in ("momentum", "second_momentum") else name
        update = _update(inputs, counts, parent, own)
        direction = first * parent[f"momentum/{own}"] + (1 - first) * update
        squares = second * parent[f"second_momentum/{own}"] + (1 - second) * (update * update)
        if own != name:
            return rounded(direction if kind == "momentum" else squares)
        return rounded(parent[own] + rate * direction / (np.sqrt(squares) + adaptivity))

    return Aggregate(shares(counts), tensor)


def _update(inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors, name: str) -> Wide:
    """Return the average of the local weights less the global weights, float64, of one tensor."""
    return np.subtract(fedavg((one[name] for one in inputs), counts), parent[name], dtype=np.float64)
