"""What a rule is, and the arithmetic that rules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Mapped, Tensor, Tensors
from fl_node.plan.schema import AggregationPlan

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Aggregate:
    """What a rule makes: the share of each input, and the tensors of the global file by name, made when asked for."""

    shares: tuple[float, ...]
    tensor: Callable[[str], Tensor]


class Rule(Protocol):
    """A function of the local weights in the order of nodeId, what each counts for, and the last global tensors."""

    def __call__(
        self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors, settings: AggregationPlan, /
    ) -> Aggregate:
        """Return what the inputs make."""


def rounded(values: Wide) -> Tensor:
    """Return values as float32, those beyond its range as its largest: finite weights make finite weights."""
    largest = float(np.finfo(np.float32).max)
    return np.asarray(np.clip(values, -largest, largest)).astype(np.float32)


TensorRule = Callable[[Iterable[Tensor], Sequence[int], AggregationPlan], Tensor]

BLOCK = 2**18
"""Values of one input that are held at a time by rules that need all inputs at once."""


def pieces(inputs: Sequence[Tensors], name: str) -> Iterator[list[Tensor]]:
    """Yield one tensor of all inputs, some rows at a time, so that not all of them need be held at once."""
    first = inputs[0]
    shape = first.shape(name) if isinstance(first, Mapped) else first[name].shape
    if not math.prod(shape) or not shape:
        yield [one[name] for one in inputs]
        return
    rows = max(BLOCK // max(math.prod(shape[1:]), 1), 1)
    for start in range(0, shape[0], rows):
        yield [_rows(one, name, start, min(start + rows, shape[0])) for one in inputs]


def _rows(model: Tensors, name: str, start: int, stop: int) -> Tensor:
    return model.rows(name, start, stop) if isinstance(model, Mapped) else model[name][start:stop]


def by_piece(rule: TensorRule) -> Rule:
    """Make a rule of one that looks at each value alone, over all inputs at once, in which all count the same."""

    def made(
        inputs: Sequence[Tensors], counts: Sequence[int], _parent: Tensors, settings: AggregationPlan
    ) -> Aggregate:
        def tensor(name: str) -> Tensor:
            parts = [np.asarray(rule(piece, counts, settings)) for piece in pieces(inputs, name)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        return Aggregate(shares(counts), tensor)

    return made


def by_tensor(rule: TensorRule) -> Rule:
    """Make a rule of one that looks at each tensor alone, and in which each input has its share by count."""

    def made(
        inputs: Sequence[Tensors], counts: Sequence[int], _parent: Tensors, settings: AggregationPlan
    ) -> Aggregate:
        return Aggregate(shares(counts), lambda name: rule((one[name] for one in inputs), counts, settings))

    return made


def shares(counts: Sequence[int]) -> tuple[float, ...]:
    """Return the share of each input by what it counts for."""
    return tuple(count / sum(counts) for count in counts)


def in_order(values: Wide) -> float:
    """Return a sum taken one value after the other.

    ``numpy.sum`` adds in an order that may differ between its versions; a rule's result must not.
    """
    return float(np.add.accumulate(values.ravel())[-1]) if values.size else 0.0


def squared_distance(first: Tensors, second: Tensors, names: Iterable[str]) -> float:
    """Return the squared Euclidean distance of two models, tensors in the order given."""
    total = 0.0
    for name in names:
        difference = np.subtract(first[name], second[name], dtype=np.float64)
        total += in_order(np.multiply(difference, difference))
    return total


def names_of(model: Mapping[str, object]) -> list[str]:
    """Return the names of a model's tensors in their fixed order."""
    return sorted(model)
