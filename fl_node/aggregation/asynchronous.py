"""What the asynchronous rules have in common: each update is the change from the global weights that it began at."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

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

    if_given: ClassVar[frozenset[str]] = frozenset({"max_share", "share_window"})
    asynchronous: ClassVar[bool] = True
    needs_parent: ClassVar[bool] = True

    weighting: Uniform = "uniform"
    function: Annotated[Staleness, STALENESS_CHOICE] = Polynomial()

    max_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Largest share of one learner in the last `share_window` updates that counted; 1 means no "
            "limit. Further updates of that learner are rejected.",
        ),
    ] = 1.0
    share_window: Annotated[int, Field(ge=1, le=1000, description="Number of updates that `max_share` is about.")] = (
        20
    )

    @property
    def most_of_one(self) -> int:
        """How many of the last ``share_window`` updates that counted may be one learner's."""
        return math.floor(round(self.max_share * self.share_window, 6))

    @property
    def counted_before(self) -> int:
        """How many of the updates that counted before decide whether one more keeps to its share."""
        return self.share_window - 1 if self.most_of_one < self.share_window else 0

    def problems(self, files: int) -> Iterator[tuple[str, str]]:
        """Yield a problem if the learners can't fill the window, so that the run would not go on."""
        if files * self.most_of_one < self.share_window:
            least = math.ceil(self.share_window / files)
            yield (
                "max_share",
                f"should be at least {least}/{self.share_window}, or {files} learners can't make "
                f"{self.share_window} updates (is {self.max_share:g})",
            )

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
        return self.apply(parent, [Update(tensors, parent, 0) for tensors in inputs])
