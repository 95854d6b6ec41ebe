"""What the asynchronous rules have in common: each update is the change from the global weights that it began at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fl_node.aggregation.rule import Aggregate, Rule, Uniform
from fl_node.aggregation.staleness import STALENESS_CHOICE, Polynomial, Staleness
from fl_node.runtime.tensors import Tensors


@dataclass(frozen=True)
class Update:
    """The tensors of local weights, those that they were trained from, and how many rounds have closed since."""

    local: Tensors
    start: Tensors
    rounds: int


class AsynchronousRule(Rule):
    """A rule by which global weights are made of the updates that come first."""

    asynchronous: ClassVar[bool] = True
    needs_parent: ClassVar[bool] = True

    weighting: Uniform = "uniform"
    function: Annotated[Staleness, STALENESS_CHOICE] = Polynomial()

    @property
    @abstractmethod
    def updates(self) -> int:
        """How many updates make the next global weights."""

    @abstractmethod
    def apply(self, parent: Tensors, updates: Sequence[Update]) -> Aggregate:
        """Return what updates make of the last global weights.

        Parameters
        ----------
        parent
            The tensors of the last global file.
        updates
            As many as :attr:`updates` says, in the order in which they were published.
        """

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:  # noqa: ARG002
        """Apply inputs that all began at the last global weights."""
        return self.apply(parent, [Update(one, parent, 0) for one in inputs])
