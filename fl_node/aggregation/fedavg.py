"""FedAvg: the average of the local weights, weighted by the number of samples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from fl_node.aggregation.rule import Aggregate, Rule, shares
from fl_node.runtime.tensors import Tensors


class FedAvg(Rule):
    """The average of the local weights."""

    rule: Literal["fedavg"] = "fedavg"

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:  # noqa: ARG002
        """Average each tensor by :func:`fedavg`."""
        return Aggregate(shares(counts), lambda name: fedavg((one[name] for one in inputs), counts))


def fedavg(tensors: Iterable[npt.NDArray[np.float32]], counts: Sequence[int]) -> npt.NDArray[np.float32]:
    """Average one tensor over the learners.

    Parameters
    ----------
    tensors
        The same tensor of each learner, all of one shape, in the order of nodeId.
    counts
        What each counts for, in the same order: its number of samples, or 1 each. A share is count / sum.

    Returns
    -------
    float32 array
        Of the same shape. Products of a float32 and a count are exact in float64, sums are taken in the order
        given, the division is the last step, and the result is rounded to float32 once.

    Raises
    ------
    ValueError
        There are no tensors, or their number differs from that of ``counts``.
    """
    total: npt.NDArray[np.float64] | None = None
    for tensor, count in zip(tensors, counts, strict=True):
        # NumPy would give a number, not an array, for a tensor without dimensions.
        part = np.asarray(np.multiply(tensor, np.float64(count), dtype=np.float64))
        total = part if total is None else np.add(total, part, out=total)
    if total is None:
        raise ValueError("an average of no tensors")
    return np.divide(total, np.float64(sum(counts)), out=total).astype(np.float32)
