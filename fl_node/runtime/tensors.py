"""Arrays and how they are passed around: tensors of models by their names, images and their labels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping

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


BLOCK = 2**18
"""Values of one tensor that are held at a time, where a tensor is read, computed or written block by block."""


class Sliceable(Mapping[str, Tensor]):
    """Tensors by name of which a part can be had without reading the rest."""

    @abstractmethod
    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Return some values of a tensor, in row-major order, as an array of one dimension.

        Parameters
        ----------
        name
            The tensor's name.
        start, stop
            The first value, and the value after the last.
        """

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a tensor; :class:`Mapping` would read it."""
        return any(name == known for known in self)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return a slice of a tensor along its first axis.

        Parameters
        ----------
        name
            The tensor's name.
        start, stop
            The first row, and the row after the last; there are as many.
        """
        row = self.shape(name)[1:]
        size = math.prod(row)
        return self.flat(name, start * size, stop * size).reshape(stop - start, *row)


class Window(Mapping[str, Tensor]):
    """The same block of each tensor: values ``start`` to ``stop - 1`` in row-major order, of one dimension."""

    def __init__(self, tensors: Tensors, start: int, stop: int) -> None:
        self._tensors = tensors
        self._block = start, stop

    def __getitem__(self, name: str) -> Tensor:
        return flat(self._tensors, name, *self._block)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def flat(tensors: Tensors, name: str, start: int, stop: int) -> Tensor:
    """Return some values of a tensor, in row-major order, as an array of one dimension.

    Parameters
    ----------
    tensors
        Tensors by name.
    name
        The tensor's name.
    start, stop
        The first value, and the value after the last.
    """
    if isinstance(tensors, Sliceable):
        return tensors.flat(name, start, stop)
    return np.reshape(tensors[name], -1)[start:stop]


def shape_of(tensors: Tensors, name: str) -> tuple[int, ...]:
    """Return a tensor's shape, without reading it if that is possible."""
    return tensors.shape(name) if isinstance(tensors, Sliceable) else np.shape(tensors[name])


def blocks_of(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first value of each block of a tensor of this shape, and the value after its last."""
    size = math.prod(shape)
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)
