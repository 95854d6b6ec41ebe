"""Krum and Multi-Krum: the local weights that lie closest to their neighbours.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
https://arxiv.org/abs/1703.02757
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.rule import Aggregate, in_order, names_of, pieces, shares
from fl_node.artifacts.model_file import Tensors
from fl_node.plan.schema import AggregationPlan


def krum(inputs: Sequence[Tensors], _counts: Sequence[int], _parent: Tensors, settings: AggregationPlan) -> Aggregate:
    """Take one learner's weights as they are: those with the best :func:`scores`."""
    return _of_the_best(inputs, [1] * len(inputs), settings, 1)


def multi_krum(
    inputs: Sequence[Tensors], counts: Sequence[int], _parent: Tensors, settings: AggregationPlan
) -> Aggregate:
    """Average the weights with the best :func:`scores`, as many as are honest, by what they count for."""
    return _of_the_best(inputs, counts, settings, len(inputs) - (settings.byzantine or 0))


def scores(inputs: Sequence[Tensors], byzantine: int) -> list[float]:
    """Return for each input the sum of squared distances to its ``len(inputs) - byzantine - 2`` nearest others.

    Less is better: of ``byzantine`` inputs that lie far from the majority none has near neighbours enough.
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
    near = max(count - byzantine - 2, 1)
    return [in_order(np.sort(np.delete(row, i))[:near]) for i, row in enumerate(distances)]


def _of_the_best(
    inputs: Sequence[Tensors], counts: Sequence[int], settings: AggregationPlan, number: int
) -> Aggregate:
    ranked = scores(inputs, settings.byzantine or 0)
    best = sorted(sorted(range(len(inputs)), key=lambda index: (ranked[index], index))[:number])
    kept = [counts[index] for index in best]
    share = dict(zip(best, shares(kept), strict=True))
    return Aggregate(
        tuple(share.get(index, 0.0) for index in range(len(inputs))),
        lambda name: fedavg((inputs[index][name] for index in best), kept),
    )
