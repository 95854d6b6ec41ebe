"""Arrays and how they are passed around: tensors of models by their names, images and their labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Images = npt.NDArray[np.uint8]
"""Shape ``(count, height, width)``."""
Labels = npt.NDArray[np.int64]
"""Shape ``(count,)``."""
Indices = npt.NDArray[np.int64]


class Sliceable(Mapping[str, Tensor]):
    """Tensors by name of which some rows can be had without reading the rest."""

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return a slice of a tensor along its first axis.

        Parameters
        ----------
        name
            The tensor's name.
        start, stop
            The first row, and the row after the last.
        """

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
