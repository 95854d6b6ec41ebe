"""FedAsync: each update makes new global weights.

Xie et al., "Asynchronous Federated Optimization", 2019, https://arxiv.org/abs/1903.03934
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fl_node.aggregation.asynchronous import AsynchronousRule, Update
from fl_node.aggregation.rule import Aggregate, by_value, rounded
from fl_node.aggregation.staleness import DIGITS
from fl_node.runtime.tensors import Tensor, Tensors


class FedAsync(AsynchronousRule):
    """The global weights move towards the local weights: (1 - α) · global + α · local."""

    rule: Literal["fedasync"] = "fedasync"
    mixing: Annotated[
        float,
        Field(gt=0, le=1, description="Share of new local weights in the next global weights (α)."),
    ] = 0.6

    @property
    def updates(self) -> int:
        """One."""
        return 1

    def apply(self, parent: Tensors, updates: Sequence[Update]) -> Aggregate:
        """Mix the weights of one update with the global weights."""
        (update,) = updates
        share = round(self.mixing * self.function.discount(update.rounds), DIGITS)

        def combine(name: str, inputs: Sequence[Tensors], parent: Tensors) -> Tensor:
            local = np.float64(share)
            return rounded((1 - local) * parent[name] + local * inputs[0][name])

        return by_value((share,), combine, [update.local], parent)
