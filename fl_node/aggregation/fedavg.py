"""FedAvg: the average of the local weights, weighted by the number of samples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fl_node.aggregation.fixed_point import FixedPoint, reduced
from fl_node.aggregation.rule import Aggregate, Rule, by_value, shares
from fl_node.runtime.tensors import Tensor, Tensors


class FedAvg(Rule):
    """The average of the local weights."""

    if_given: ClassVar[frozenset[str]] = frozenset({"arithmetic", "range", "fraction_bits", "modulus_bits"})

    rule: Literal["fedavg"] = "fedavg"
    arithmetic: Annotated[
        Literal["float", "fixed"],
        Field(
            description="`float` sums local weights in float64, in the order of nodeId; `fixed` sums updates as "
            "integers, which is exact in any order."
        ),
    ] = "float"
    range: Annotated[
        float,
        Field(gt=0, le=1e6, description="With `fixed`: each value of an update is clipped to plus or minus this."),
    ] = 1.0
    fraction_bits: Annotated[
        int, Field(ge=1, le=48, description="With `fixed`: binary digits after the point; more round less.")
    ] = 20
    modulus_bits: Annotated[
        Literal[32, 64],
        Field(description="With `fixed`: sums are modulo 2 to this power; 64 doubles the size of masked files."),
    ] = 32

    @property
    def fixed_point(self) -> FixedPoint | None:
        """How updates become integers; None if they don't."""
        if self.arithmetic == "float":
            return None
        return FixedPoint(self.range, self.fraction_bits, self.modulus_bits)

    def uses_parent(self) -> bool:
        """Return whether updates are summed, not weights."""
        return self.arithmetic == "fixed"

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Average each tensor by :func:`fedavg`, or its updates as integers."""
        point = self.fixed_point
        if point is None:
            return averaged(inputs, counts, shares(counts))
        small = reduced(counts)

        def combine(name: str, inputs: Sequence[Tensors], parent: Tensors) -> Tensor:
            start = parent[name]
            total = np.zeros(start.shape, point.dtype)
            for tensors, count in zip(inputs, small, strict=True):
                total += point.words(np.subtract(tensors[name], start, dtype=np.float64), count)
            return point.updated(start, total, small)

        return by_value(shares(counts), combine, inputs, parent)


def averaged(inputs: Sequence[Tensors], counts: Sequence[int], shares: tuple[float, ...]) -> Aggregate:
    """Return the average of models, each value by :func:`fedavg`.

    Parameters
    ----------
    inputs
        The models: local weights by tensor name.
    counts
        What each counts for.
    shares
        The share of each learner in the result.
    """

    def combine(name: str, inputs: Sequence[Tensors], _parent: Tensors) -> Tensor:
        return fedavg((tensors[name] for tensors in inputs), counts)

    return by_value(shares, combine, inputs, {})


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
