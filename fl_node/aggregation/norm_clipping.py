"""Norm clipping: an average in which no update is longer than a bound.

Sun et al., "Can You Really Backdoor Federated Learning?", 2019, https://arxiv.org/abs/1911.07963
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.aggregation.rule import Aggregate, Rule, by_value, names_of, rounded, shares, squared_distance
from fl_node.runtime.settings import Positive
from fl_node.runtime.tensors import Tensor, Tensors


class NormClipping(Rule):
    """The average of updates that are shortened to a bound."""

    needs_parent: ClassVar[bool] = True
    number: ClassVar[str | None] = "clipping_norm"

    rule: Literal["norm_clipping"] = "norm_clipping"
    clipping_norm: Annotated[
        Positive,
        Field(description="Maximum Euclidean norm of an update (local minus global weights)."),
    ]

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Shorten each update to ``clipping_norm``, average, and add to the global weights.

        The length is the Euclidean norm over all tensors together. An update that is short enough is not changed.
        """
        names = names_of(inputs[0])
        lengths = [math.sqrt(squared_distance(tensors, parent, names)) for tensors in inputs]
        parts, most = shares(counts), self.clipping_norm
        factors = [
            np.float64(part * (1.0 if length <= most else most / length))
            for part, length in zip(parts, lengths, strict=True)
        ]

        def combine(name: str, inputs: Sequence[Tensors], parent: Tensors) -> Tensor:
            start = np.asarray(parent[name], np.float64)
            total = start.copy()
            for tensors, factor in zip(inputs, factors, strict=True):
                total += (tensors[name] - start) * factor
            return rounded(total)

        return by_value(parts, combine, inputs, parent)
