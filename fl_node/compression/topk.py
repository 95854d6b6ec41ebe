"""A few values: those of the largest size in each tensor, and where they stand.

Lin et al., "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training", ICLR 2018,
https://arxiv.org/abs/1712.01887. The rest is 0 in this round and stays with the learner for the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.compression.compression import VALUES, Compression, Encoded
from fl_node.runtime.tensors import Wide

INDICES = "indices"
"""The part that says where the values stand: in ascending order, counted from 0 along the flattened tensor."""


class TopK(Compression):
    """The largest values: 64 bits for each of a part of an update's values."""

    dtypes: ClassVar[Mapping[str, str]] = {VALUES: "F32", INDICES: "U32"}
    checked: ClassVar[tuple[str, ...]] = (INDICES,)

    kind: Literal["topk"] = "topk"
    fraction: Annotated[
        float, Field(gt=0, le=0.5, description="Share of the values of each tensor that are published, at least one.")
    ] = 0.05

    def count(self, size: int) -> int:
        """Return how many values are kept of so many."""
        return min(math.ceil(self.fraction * size), size)

    def shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Return the same for values and places."""
        kept = (self.count(math.prod(shape)),)
        return {VALUES: kept, INDICES: kept}

    def encode(self, update: Wide) -> Encoded:
        """Choose the largest; of equal ones those that stand first."""
        flat = update.ravel()
        chosen = np.sort(np.argsort(-np.abs(flat), kind="stable")[: self.count(flat.size)])
        largest = float(np.finfo(np.float32).max)
        values = np.clip(flat[chosen], -largest, largest).astype(np.float32)
        return {VALUES: values, INDICES: chosen.astype(np.uint32)}

    def decode(self, parts: Encoded, shape: tuple[int, ...]) -> Wide:
        """Return the values at their places, and 0 elsewhere."""
        update = np.zeros(math.prod(shape))
        update[parts[INDICES]] = parts[VALUES]
        return update.reshape(shape)

    def check(self, parts: Encoded, shape: tuple[int, ...]) -> None:
        """Check that the places are in ascending order, and in the tensor.

        Raises
        ------
        ValueError
            They are not.
        """
        places, size = parts[INDICES].astype(np.int64), math.prod(shape)
        if places.size and (bool((np.diff(places) <= 0).any()) or int(places[-1]) >= size):
            raise ValueError(f"should have indices below {size} in ascending order")
