"""A quarter of the bytes: each value as a multiple of one step, which is its tensor's largest value over 127.

That is linear quantisation with one scale per tensor, as in Seide et al., "1-Bit Stochastic Gradient Descent and its
Application to Data-Parallel Distributed Training of Speech DNNs", INTERSPEECH 2014, with 8 bits instead of one. It
rounds to the nearest, not at random: error feedback makes up for it, and the same update gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from fl_node.compression.compression import VALUES, Compression, Encoded
from fl_node.runtime.tensors import Wide

STEP = "step"
"""The part that holds the step of a tensor."""
MOST = 127
"""The most steps that a value has, up or down."""


class Int8(Compression):
    """8-bit integers: 8 bits for each value of an update, and a step for each tensor."""

    dtypes: ClassVar[Mapping[str, str]] = {VALUES: "I8", STEP: "F32"}

    kind: Literal["int8"] = "int8"

    def shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Return the tensor's own shape, and that of a number."""
        return {VALUES: shape, STEP: ()}

    def encode(self, update: Wide) -> Encoded:
        """Count the steps of each value, to the nearest, ties to even."""
        step = np.float32(np.abs(update).max(initial=0.0) / MOST)
        steps = np.zeros(update.shape) if step == 0 else np.rint(update / np.float64(step))
        return {VALUES: np.asarray(np.clip(steps, -MOST, MOST)).astype(np.int8), STEP: np.asarray(step)}

    def decode(self, parts: Encoded, shape: tuple[int, ...]) -> Wide:  # noqa: ARG002
        """Return steps times their size, which float64 holds exactly."""
        return np.multiply(parts[VALUES].astype(np.float64), parts[STEP].astype(np.float64))
