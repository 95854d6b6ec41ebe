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
    """The tensors of local weights, the global tensors they were trained from, and the rounds closed since then."""

    local: Tensors
    start: Tensors
    rounds: int


class AsynchronousRule(Rule):
    """A rule that computes global weights from the first updates that arrive."""

    asynchronous: ClassVar[bool] = True
    needs_parent: ClassVar[bool] = True

    weighting: Uniform = "uniform"
    function: Annotated[Staleness, STALENESS_CHOICE] = Polynomial()

    @property
    def takes_one_of_each(self) -> bool:
        """Whether the next global weights take at most one update of each learner."""
        return False

    @property
    @abstractmethod
    def updates(self) -> int:
        """The number of updates that the next global weights are computed from."""

    @abstractmethod
    def apply(self, parent: Tensors, updates: Sequence[Update]) -> Aggregate:
        """Apply updates to the last global weights.

        Parameters
        ----------
        parent
            The tensors of the last global file by name, float32.
        updates
            As many as :attr:`updates`, in the order of publication. Their tensors have the names and shapes of
            ``parent``.

        Returns
        -------
        Aggregate
            As for :meth:`fl_node.aggregation.rule.Rule.aggregate`.
        """

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:  # noqa: ARG002
        """Apply inputs that were all trained from the last global weights."""
        return self.apply(parent, [Update(one, parent, 0) for one in inputs])
