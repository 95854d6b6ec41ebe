"""What a rule is, and the arithmetic that rules share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from fl_node.runtime.settings import Settings
from fl_node.runtime.tensors import Sliceable, Tensor, Tensors, Wide


@dataclass(frozen=True)
class Aggregate:
    """What a rule makes: the share of each input, and the tensors of the global file by name, made when asked for."""

    shares: tuple[float, ...]
    tensor: Callable[[str], Tensor]


class Rule(Settings):
    """The settings of a rule, and how it makes global weights.

    A rule is a class in a file of its own, named as its paper names it, with one line in
    :mod:`fl_node.aggregation`.
    """

    state: ClassVar[tuple[str, ...]] = ()
    """What the rule carries from round to round: for each tensor of the model one more in the global file, named
    ``KIND/NAME`` and zero at first. So the state is published and hashed with the weights, and whoever recomputes a
    round needs nothing else."""
    needs_parent: ClassVar[bool] = False
    """Whether the rule needs the global weights that the local weights were trained from."""
    asynchronous: ClassVar[bool] = False
    """Whether the rule is for runs with ``mode = "async"``."""

    rule: str
    weighting: Annotated[
        Literal["samples", "uniform"],
        Field(description="What each file of local weights counts for: its number of samples, or 1."),
    ] = "samples"

    def least(self) -> int:
        """Return how many local files the rule needs to mean anything."""
        return 1

    def problems(self, files: int) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """Yield key and problem of what is impossible where a round may close with so many files."""
        yield from ()

    def for_fewer(self, files: int) -> Rule:  # noqa: ARG002
        """Return the rule as it is for a smaller number of local files, below :meth:`least`."""
        return self

    @abstractmethod
    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Return what the inputs make.

        Parameters
        ----------
        inputs
            The local weights in the order of nodeId: by name float32 arrays, of the same shapes for each learner.
        counts
            What each input counts for, in the same order; positive whole numbers.
        parent
            The tensors of the last global file, ``state`` included; empty if the rule does not need them.
        """


class Robust(Rule):
    """A rule that withstands a number of malicious learners."""

    number: ClassVar[str | None] = "num_malicious"

    num_malicious: Annotated[
        int, Field(ge=1, le=500, description="The number of malicious learners that the rule withstands (f).")
    ]

    def problems(self, files: int) -> Iterator[tuple[str, str]]:
        """Yield that there are too few files."""
        if self.least() > files:
            yield (
                "num_malicious",
                f"{self.rule} needs {self.least()} local files in each round to withstand {self.num_malicious} "
                f"malicious learners, and a round may close with {files}",
            )

    def for_fewer(self, files: int) -> Self:
        """Return the rule for a set of files of which it leaves out no more than it could have outvoted."""
        return self.model_copy(update={"num_malicious": max((files - 1) // 2, 0)})


def _uniform(value: object) -> object:
    if value in ("samples",):
        raise PydanticCustomError("no_weights", "should be uniform; this rule gives all files the same weight")
    return value


Uniform = Annotated[
    Literal["uniform"],
    BeforeValidator(_uniform),
    Field(description="This rule gives all files of local weights the same weight."),
]


def rounded(values: Wide) -> Tensor:
    """Return values as float32, those beyond its range as its largest: finite weights make finite weights."""
    largest = float(np.finfo(np.float32).max)
    return np.asarray(np.clip(values, -largest, largest)).astype(np.float32)


BLOCK = 2**18
"""Values of one input that are held at a time by rules that need all inputs at once."""


def pieces(inputs: Sequence[Tensors], name: str) -> Iterator[list[Tensor]]:
    """Yield one tensor of all inputs, some rows at a time, so that not all of them need be held at once."""
    first = inputs[0]
    shape = first.shape(name) if isinstance(first, Sliceable) else first[name].shape
    if not math.prod(shape) or not shape:
        yield [one[name] for one in inputs]
        return
    rows = max(BLOCK // max(math.prod(shape[1:]), 1), 1)
    for start in range(0, shape[0], rows):
        yield [_rows(one, name, start, min(start + rows, shape[0])) for one in inputs]


def _rows(model: Tensors, name: str, start: int, stop: int) -> Tensor:
    return model.rows(name, start, stop) if isinstance(model, Sliceable) else model[name][start:stop]


def by_piece(made: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensors], name: str) -> Tensor:
    """Return one tensor of a rule that looks at each value alone, over all inputs at once."""
    parts = [np.asarray(made(piece)) for piece in pieces(inputs, name)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
