"""What a rule is, and the arithmetic that rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fl_node.plan import AggregationPlan
from fl_node.weights import Tensor, Tensors

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


TensorRule = Callable[[Iterable[Tensor], Sequence[int], AggregationPlan], Tensor]


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
