"""Compressed local files: one encoder, and one decoder for header, learners and audit, bit for bit.

A compressed file has an update, not weights. The local weights are the global weights that it was trained from plus
the decoded update, added in float64 and rounded to float32 once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_node.aggregation.rule import names_of
from fl_node.artifacts.model_file import Tensor, Tensors, WeightsFile
from fl_node.compression import Compression
from fl_node.compression.compression import name_of, part_of
from fl_node.errors import WeightsError
from fl_node.plan.schema import Plan
from fl_node.runtime.tensors import Sliceable, Wide


@dataclass(frozen=True)
class Compressed:
    """A compressed update: what a file has of it, the weights that it gives, and what it leaves for the next one."""

    tensors: Mapping[str, npt.NDArray[Any]]
    weights: dict[str, Tensor]
    residual: dict[str, Tensor]


def compress(compression: Compression, trained: Tensors, start: Tensors, residual: Tensors) -> Compressed:
    """Compress an update.

    Parameters
    ----------
    compression
        The plan's.
    trained
        The local weights by name, float32.
    start
        The global weights that they were trained from; at least those of the same names.
    residual
        What earlier compressed updates left out, by name; empty before the first.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    weights, rest = dict[str, Tensor](), dict[str, Tensor]()
    for name in names_of(trained):
        update = np.subtract(trained[name], start[name], dtype=np.float64)
        if name in residual:
            update = np.add(update, residual[name], dtype=np.float64)
        parts = compression.encode(np.asarray(update))
        tensors |= {name_of(part, name): values for part, values in parts.items()}
        decoded = compression.decode(parts, update.shape)
        weights[name] = _added(start[name], decoded)
        rest[name] = np.asarray(update - decoded).astype(np.float32)
    return Compressed(tensors, weights, rest)


def decoded(file: WeightsFile, start: WeightsFile, plan: Plan) -> WeightsFile:
    """Return a local file with the weights that it stands for; one that is not compressed is returned as it is.

    Parameters
    ----------
    file
        A checked local file.
    start
        The checked global file that it was trained from.
    plan
        The run's plan.

    Raises
    ------
    WeightsError
        What the file has is no compressed update.
    """
    compression = plan.compression
    if compression is None or isinstance(file, _Decoded):
        return file
    names = [name for name in file.shapes if not part_of(name)]
    shapes = {name: start.shapes[name] for name in names}
    for name in names if compression.checked else ():
        try:
            compression.check({part: file.tensor(name_of(part, name)) for part in compression.checked}, shapes[name])
        except ValueError as error:
            raise WeightsError(f"tensor {name} {error}", "malformed") from error
    return _Decoded(file.path, file.cid, file.meta, shapes, _Weights(compression, file, start, shapes))


def _added(start: Tensor, update: Wide) -> Tensor:
    with np.errstate(over="ignore"):  # what is too large is found by the plan's bounds
        return np.asarray(np.add(start, update, dtype=np.float64)).astype(np.float32)


class _Weights(Sliceable):
    """The weights that a compressed file stands for, decoded when they are asked for."""

    def __init__(
        self, compression: Compression, file: WeightsFile, start: WeightsFile, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._compression = compression
        self._file = file
        self._start = start
        self._shapes = shapes
        self._last = lru_cache(maxsize=1)(self._read)  # rules take a tensor piece by piece

    def _read(self, name: str) -> Tensor:
        parts = {part: self._file.tensor(name_of(part, name)) for part in self._compression.dtypes}
        return _added(self._start.tensor(name), self._compression.decode(parts, self._shapes[name]))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        return self._last(name)

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Return some values of a tensor; all of it are decoded."""
        return self._last(name).reshape(-1)[start:stop]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True)
class _Decoded(WeightsFile):
    """A compressed file, with the weights that it stands for instead of what is in it."""

    weights: _Weights

    def tensor(self, name: str) -> Tensor:
        """Return one tensor of the weights."""
        return self.weights[name]

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Return some values of a tensor of the weights."""
        return self.weights.flat(name, start, stop)
