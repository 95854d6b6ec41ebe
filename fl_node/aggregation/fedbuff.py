"""FedBuff: a number of updates makes new global weights.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
https://arxiv.org/abs/2106.06639
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.aggregation.asynchronous import AsynchronousRule, Update
from fl_node.aggregation.fedopt import ServerLearningRate
from fl_node.aggregation.rule import Aggregate, by_value, rounded
from fl_node.aggregation.staleness import DIGITS
from fl_node.runtime.tensors import Tensor, Tensors


class FedBuff(AsynchronousRule):
    """The global weights follow the average of a number of updates: global + rate · Σ share · (local - start)."""

    if_given: ClassVar[frozenset[str]] = AsynchronousRule.if_given | {"distinct"}

    rule: Literal["fedbuff"] = "fedbuff"
    buffer: Annotated[int, Field(ge=1, le=1000, description="Number of updates per aggregation (K).")]
    server_learning_rate: ServerLearningRate = 1.0
    distinct: Annotated[
        bool, Field(description="Take at most one update of each learner per aggregation; more of it wait.")
    ] = True

    @property
    def takes_one_of_each(self) -> bool:
        """Whether the buffer takes at most one update of each learner."""
        return self.distinct

    @property
    def updates(self) -> int:
        """The size of the buffer."""
        return self.buffer

    def problems(self, files: int) -> Iterator[tuple[str, str]]:
        """Yield a problem if there are too few learners to fill the buffer, or the window of ``max_share``."""
        yield from super().problems(files)
        if self.buffer > files:
            yield "buffer", f"should be at most {files}, the number of learners that can fill it (is {self.buffer})"

    def apply(self, parent: Tensors, updates: Sequence[Update]) -> Aggregate:
        """Add the average of the updates to the global weights."""
        shares = tuple(round(self.function.discount(update.rounds) / len(updates), DIGITS) for update in updates)

        def combine(name: str, inputs: Sequence[Tensors], parent: Tensors) -> Tensor:
            start = parent[name]
            change = np.zeros(start.shape)
            for local, began, share in zip(inputs[::2], inputs[1::2], shares, strict=True):
                change += np.float64(share) * np.subtract(local[name], began[name], dtype=np.float64)
            return rounded(start + np.float64(self.server_learning_rate) * change)

        inputs = [tensors for update in updates for tensors in (update.local, update.start)]
        return by_value(shares, combine, inputs, parent)
