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
from fl_node.runtime.tensors import BLOCK, Sliceable, Tensor, Tensors, Wide, Window, blocks_of, shape_of
from fl_node.wording import counted

Combine = Callable[[str, Sequence[Tensors], Tensors], Tensor]
"""Computes a global tensor by name from the tensors of the inputs and of the last global file.

Each value of the result depends only on the values at the same place, so the tensors may all be given whole, or the
same block of each."""


@dataclass(frozen=True)
class Aggregate:
    """The result of a rule: the share of each input, and functions that return a global tensor by name.

    ``tensor`` returns it whole, and ``blocks`` block by block, flat and in order, which takes little memory; None if
    the rule computes whole tensors alone.
    """

    shares: tuple[float, ...]
    tensor: Callable[[str], Tensor]
    blocks: Callable[[str], Iterable[Tensor]] | None = None

    def values(self, name: str) -> Iterable[Tensor]:
        """Return the values of a global tensor in order, in blocks if the rule has them."""
        return [self.tensor(name)] if self.blocks is None else self.blocks(name)


def by_value(shares: tuple[float, ...], combine: Combine, inputs: Sequence[Tensors], parent: Tensors) -> Aggregate:
    """Return the result of a rule that computes each value from the values at its place.

    Parameters
    ----------
    shares
        The share of each input.
    combine
        Computes a tensor, or a block of it; see :data:`Combine`.
    inputs, parent
        What the rule was given: local weights, and the tensors of the last global file.
    """

    def blocks(name: str) -> Iterator[Tensor]:
        known = inputs[0] if inputs and name in inputs[0] else parent
        for block in blocks_of(shape_of(known, name)):
            yield combine(name, [Window(tensors, *block) for tensors in inputs], Window(parent, *block))

    return Aggregate(shares, lambda name: combine(name, inputs, parent), blocks)


class Rule(Settings):
    """The settings of an aggregation rule, and its computation.

    Each rule is a class in its own file, named as its paper names it, with one line in :mod:`fl_node.aggregation`.
    """

    state: ClassVar[tuple[str, ...]] = ()
    """What the rule carries from round to round: for each tensor of the model one more in the global file, named
    ``KIND/NAME`` and zero at first. The state is published and hashed with the weights, so recomputing a round needs
    nothing else."""
    needs_parent: ClassVar[bool] = False
    """Whether the rule needs the global weights that the local weights were trained from."""
    asynchronous: ClassVar[bool] = False
    """Whether the rule is for runs with ``mode = "async"``."""

    rule: str
    weighting: Annotated[
        Literal["samples", "uniform"],
        Field(description="Weight of each local file: its number of samples, or 1."),
    ] = "samples"

    def least(self) -> int:
        """Return the smallest number of local files that the rule can aggregate."""
        return 1

    def problems(self, files: int) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """Yield the key and the problem of each setting that the run makes impossible.

        Parameters
        ----------
        files
            The smallest number of local files with which a round of this run may close.
        """
        yield from ()

    def uses_parent(self) -> bool:
        """Return whether the rule, as it is set, needs the global weights that the local weights started from."""
        return self.needs_parent

    def for_fewer(self, files: int) -> Rule:  # noqa: ARG002
        """Return a variant of the rule that can aggregate fewer local files than :meth:`least`.

        Parameters
        ----------
        files
            The number of local files. Shapley values aggregate every subset of a round's files.
        """
        return self

    @abstractmethod
    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Aggregate the local weights of one round.

        Parameters
        ----------
        inputs
            The local weights, one mapping per learner in the order of nodeId. Each maps a tensor's name to a float32
            array. All learners have the same names, and for each name the same shape.
        counts
            The weight of each input, in the same order, as many as ``inputs``: positive integers, the number of
            samples or 1.
        parent
            The tensors of the last global file by name, float32: those of the model, in the shapes of ``inputs``, and
            for each kind in ``state`` one more per tensor in the same shape, named ``KIND/NAME``. Empty if
            :meth:`uses_parent` is false.

        Returns
        -------
        Aggregate
            The share of each input, in the order of ``inputs``; and a function that returns one tensor of the new
            global file by name, float32. It is called for the tensors of the model and for those of ``state``, and
            keeps their shapes.
        """


class Robust(Rule):
    """A rule that withstands a number of malicious learners."""

    number: ClassVar[str | None] = "num_malicious"

    num_malicious: Annotated[
        int, Field(ge=1, le=500, description="Number of malicious learners that the rule tolerates (f).")
    ]

    def problems(self, files: int) -> Iterator[tuple[str, str]]:
        """Yield that there are too few files."""
        if self.least() > files:
            yield (
                "num_malicious",
                f"{self.rule} needs {self.least()} local files per round to tolerate "
                f"{counted(self.num_malicious, 'malicious learner')}, but a round may close with {files}",
            )

    def for_fewer(self, files: int) -> Self:
        """Return the rule with the largest number of malicious learners that a minority of so few files can have."""
        return self.model_copy(update={"num_malicious": max((files - 1) // 2, 0)})


def _uniform(value: object) -> object:
    if value in ("samples",):
        raise PydanticCustomError("no_weights", "should be uniform; this rule weights all files equally")
    return value


Uniform = Annotated[
    Literal["uniform"],
    BeforeValidator(_uniform),
    Field(description="This rule weights all files equally."),
]


def rounded(values: Wide) -> Tensor:
    """Return values as float32; values out of its range become its largest, so finite weights stay finite."""
    largest = float(np.finfo(np.float32).max)
    return np.asarray(np.clip(values, -largest, largest)).astype(np.float32)


def pieces(inputs: Sequence[Tensors], name: str) -> Iterator[list[Tensor]]:
    """Yield one tensor of all inputs, a few rows at a time, to bound the memory of sums whose order counts.

    Parameters
    ----------
    inputs
        The local weights of each learner, by tensor name.
    name
        The tensor's name.
    """
    shape = shape_of(inputs[0], name)
    if not math.prod(shape) or not shape:
        yield [tensors[name] for tensors in inputs]
        return
    rows = max(BLOCK // max(math.prod(shape[1:]), 1), 1)
    for start in range(0, shape[0], rows):
        yield [_rows(tensors, name, start, min(start + rows, shape[0])) for tensors in inputs]


def _rows(model: Tensors, name: str, start: int, stop: int) -> Tensor:
    return model.rows(name, start, stop) if isinstance(model, Sliceable) else model[name][start:stop]


def shares(counts: Sequence[int]) -> tuple[float, ...]:
    """Return the share of each input: its count divided by the sum."""
    return tuple(count / sum(counts) for count in counts)


def in_order(values: Wide) -> float:
    """Return the sum of values, added one after the other.

    ``numpy.sum`` may add in another order in another version; the result of a rule must not depend on that.
    """
    return float(np.add.accumulate(values.ravel())[-1]) if values.size else 0.0


def squared_distance(first: Tensors, second: Tensors, names: Iterable[str]) -> float:
    """Return the squared Euclidean distance of two models.

    Parameters
    ----------
    first, second
        The tensors of each model by name, float32; the shapes are equal.
    names
        The tensors that count, in the order in which they are summed.
    """
    total = 0.0
    for name in names:
        difference = np.subtract(first[name], second[name], dtype=np.float64)
        total += in_order(np.multiply(difference, difference))
    return total


def names_of(model: Mapping[str, object]) -> list[str]:
    """Return the names of a model's tensors in their fixed order."""
    return sorted(model)
