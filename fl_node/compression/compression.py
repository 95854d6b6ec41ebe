"""What a kind of compression is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy.typing as npt

from fl_node.runtime.settings import Settings
from fl_node.runtime.tensors import Wide

Encoded = Mapping[str, npt.NDArray[Any]]
"""The parts of one encoded tensor, by the names that :attr:`Compression.dtypes` has."""
PREFIX = "compression/"
"""How the names of tensors begin in a compressed file that hold other parts than the values."""
VALUES = ""
"""The part of an encoded tensor that has the tensor's own name in a file."""


class Compression(Settings):
    """The settings of a kind of compression, its encoder, and its decoder.

    Everybody must decode the same bits, so a decoder uses nothing but exact or correctly rounded operations.
    """

    dtypes: ClassVar[Mapping[str, str]]
    """For each part of an encoded tensor its type, as safetensors names it. :data:`VALUES` is always one."""

    checked: ClassVar[tuple[str, ...]] = ()
    """The parts that :meth:`check` looks at, for not everything of their type and shape can be decoded."""

    kind: str

    @abstractmethod
    def shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the parts of a tensor.

        Parameters
        ----------
        shape
            The tensor's shape.
        """

    @abstractmethod
    def encode(self, update: Wide) -> Encoded:
        """Return the parts of a tensor.

        Parameters
        ----------
        update
            One tensor of an update, of any shape, float64, finite.
        """

    @abstractmethod
    def decode(self, parts: Encoded, shape: tuple[int, ...]) -> Wide:
        """Return the tensor that parts stand for, float64.

        Parameters
        ----------
        parts
            The parts, which were checked.
        shape
            The tensor's shape.
        """

    def check(self, parts: Encoded, shape: tuple[int, ...]) -> None:
        """Check parts that come from a stranger.

        Parameters
        ----------
        parts
            Those in :attr:`checked`, with the types and shapes that they should have.
        shape
            The tensor's shape.

        Raises
        ------
        ValueError
            They can't be decoded; the message says what they should be.
        """


def name_of(part: str, tensor: str) -> str:
    """Return the name that a part of a tensor has in a file.

    Parameters
    ----------
    part
        The part.
    tensor
        The tensor's name.
    """
    return f"{PREFIX}{part}/{tensor}" if part else tensor


def part_of(name: str) -> str:
    """Return which part of a tensor a file has by this name."""
    return name.removeprefix(PREFIX).partition("/")[0] if name.startswith(PREFIX) else VALUES
