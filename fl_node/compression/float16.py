"""Half the bytes: each value in half precision (IEEE 754 binary16)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from fl_node.compression.compression import VALUES, Compression, Encoded
from fl_node.runtime.tensors import Wide

LARGEST = float(np.finfo(np.float16).max)


class Float16(Compression):
    """Half precision: 16 bits for each value of an update."""

    dtypes: ClassVar[Mapping[str, str]] = {VALUES: "F16"}

    kind: Literal["float16"] = "float16"

    def shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Return the tensor's own shape."""
        return {VALUES: shape}

    def encode(self, update: Wide) -> Encoded:
        """Round to the nearest, ties to even; larger values become the largest."""
        return {VALUES: np.asarray(np.clip(update, -LARGEST, LARGEST)).astype(np.float16)}

    def decode(self, parts: Encoded, shape: tuple[int, ...]) -> Wide:  # noqa: ARG002
        """Return the values, which float64 holds exactly."""
        return parts[VALUES].astype(np.float64)
