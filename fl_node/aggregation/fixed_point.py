"""Sums of updates as integers modulo 2^32 or 2^64: exact in any order, so any tree of partial sums gives one result.

An update (local minus global weights) is clipped to a range, scaled, rounded to integers, and multiplied by what it
counts for. Secure aggregation adds masks in the same ring (Bonawitz et al., "Practical Secure Aggregation for
Privacy-Preserving Machine Learning", CCS 2017, https://doi.org/10.1145/3133956.3133982); they cancel to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_node.runtime.tensors import Tensor, Wide

Words = npt.NDArray[np.unsignedinteger[Any]]
"""Integers modulo 2^32 or 2^64."""
EXACT_BITS = 53
"""Integers up to 2 to this power are exact in float64, in which sums are divided."""


@dataclass(frozen=True)
class FixedPoint:
    """How values become integers of a ring.

    Parameters
    ----------
    range
        Values are clipped to plus or minus this.
    fraction_bits
        Binary digits after the point.
    modulus_bits
        32 or 64: the ring has 2 to this power elements.
    """

    range: float
    fraction_bits: int
    modulus_bits: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the ring's elements, little-endian."""
        return np.dtype(f"<u{self.modulus_bits // 8}")

    @property
    def largest(self) -> int:
        """The largest integer that one value becomes, before it is multiplied by a count."""
        return round(math.ldexp(self.range, self.fraction_bits))

    @property
    def limit(self) -> int:
        """What the absolute value of a sum must stay below."""
        return 1 << min(self.modulus_bits - 1, EXACT_BITS)

    def fits(self, counts: Sequence[int]) -> bool:
        """Return whether no sum of values with these counts can leave the ring."""
        return self.largest * sum(reduced(counts)) < self.limit

    def words(self, values: Wide, count: int) -> Words:
        """Return values, multiplied by what they count for, as elements of the ring.

        Parameters
        ----------
        values
            Of any shape; they are clipped and rounded to the nearest, ties to even.
        count
            What they count for, positive.
        """
        clipped = np.clip(values, -self.range, self.range)
        integers = np.rint(np.ldexp(clipped, self.fraction_bits)).astype(np.int64)
        # NumPy would give a number, not an array, for a tensor without dimensions; masks are added in place.
        return np.asarray(np.multiply(integers, np.int64(count))).astype(self.dtype)

    def integers(self, total: Words) -> npt.NDArray[np.int64]:
        """Return the integers closest to 0 that are these elements of the ring."""
        return total.astype(self.dtype, copy=False).view(f"<i{self.modulus_bits // 8}").astype(np.int64)

    def mean(self, total: Words, counts: Sequence[int]) -> Wide:
        """Return the average of values whose sum is given: one division in float64.

        Parameters
        ----------
        total
            The sum of what :meth:`words` returned, of any shape.
        counts
            What each of them counted for.
        """
        divisor = math.ldexp(sum(counts), self.fraction_bits)
        return np.divide(self.integers(total), divisor, dtype=np.float64)

    def updated(self, start: Tensor, total: Words, counts: Sequence[int]) -> Tensor:
        """Return weights plus the average of the updates whose sum is given, rounded to float32 once.

        Parameters
        ----------
        start
            The weights that the updates were trained from.
        total, counts
            As for :meth:`mean`.
        """
        return np.asarray(np.asarray(start, np.float64) + self.mean(total, counts)).astype(np.float32)


def reduced(counts: Sequence[int]) -> list[int]:
    """Return counts divided by their greatest common divisor, which leaves more room in the ring."""
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]
