"""How far local weights are from the global weights that they were trained from, measured block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl_node.runtime.tensors import Tensor, Tensors, blocks_of, flat, shape_of


@dataclass(frozen=True)
class Distance:
    """What was measured.

    ``start`` is the CID of the global weights, ``largest`` the largest absolute value of each tensor of the local
    weights, by name, and ``squares`` the squared norm of the update, in float64, summed in any order.
    """

    start: str
    largest: Mapping[str, float]
    squares: float


class Ruler:
    """Measures local weights while they are read.

    Parameters
    ----------
    start
        The tensors of the global weights, by name.
    cid
        Their CID.
    """

    def __init__(self, start: Tensors, cid: str) -> None:
        self._start = start
        self._cid = cid
        self._largest: dict[str, float] = {}
        self._squares = 0.0

    def take(self, name: str, values: Tensor, first: int) -> None:
        """Take a block of local weights into account.

        Parameters
        ----------
        name
            The tensor.
        values
            The block, flat.
        first
            The place of its first value in the tensor.
        """
        largest = float(max(values.max(initial=0.0), -values.min(initial=0.0)))
        self._largest[name] = max(self._largest.get(name, 0.0), largest)
        start = flat(self._start, name, first, first + len(values))
        difference = np.subtract(values, start, dtype=np.float64)
        self._squares += float(np.multiply(difference, difference, out=difference).sum())

    def distance(self) -> Distance:
        """Return what was measured so far."""
        return Distance(self._cid, self._largest, self._squares)


def measure(local: Tensors, start: Tensors, cid: str) -> Distance:
    """Measure local weights.

    Parameters
    ----------
    local
        Their tensors by name.
    start, cid
        As for :class:`Ruler`.
    """
    ruler = Ruler(start, cid)
    for name in sorted(local):
        for first, stop in blocks_of(shape_of(local, name)):
            ruler.take(name, flat(local, name, first, stop), first)
    return ruler.distance()
