"""FedAvgM and FedAdam: the header follows the average of the updates with momentum, or as Adam follows a gradient.

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
https://arxiv.org/abs/1909.06335 (FedAvgM); Reddi et al., "Adaptive Federated Optimization", ICLR 2021,
https://arxiv.org/abs/2003.00295 (FedAdam, algorithm 2).

What they carry from round to round stands in the global file beside the weights, as ``momentum/NAME`` and
``second_momentum/NAME``, all zero in the initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.rule import Aggregate, Rule, by_value, rounded, shares
from fl_node.runtime.settings import Fraction, Positive
from fl_node.runtime.tensors import Tensor, Tensors, Wide

ServerLearningRate = Annotated[Positive, Field(description="Server learning rate (η).")]


class FedAvgM(Rule):
    """The global weights follow the average of the updates (Δ) with momentum (v).

    v ← momentum · v + Δ;  w ← w + server_learning_rate · v
    """

    state: ClassVar[tuple[str, ...]] = ("momentum",)
    needs_parent: ClassVar[bool] = True

    rule: Literal["fedavgm"] = "fedavgm"
    server_learning_rate: ServerLearningRate = 1.0
    momentum: Annotated[
        Fraction, Field(description="Momentum: the share of the previous direction that is kept (β₁ in Adam).")
    ] = 0.9

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Compute the next weights and momentum."""
        rate, kept = np.float64(self.server_learning_rate), np.float64(self.momentum)

        def combine(name: str, inputs: Sequence[Tensors], parent: Tensors) -> Tensor:
            kind, _, rest = name.partition("/")
            weights = rest if kind == "momentum" else name
            direction = kept * parent[f"momentum/{weights}"] + _update(inputs, counts, parent, weights)
            return rounded(direction if kind == "momentum" else parent[weights] + rate * direction)

        return by_value(shares(counts), combine, inputs, parent)


class FedAdam(Rule):
    """The global weights follow the average of the updates (Δ) as Adam follows a gradient.

    Without Adam's correction of the first steps:
    m ← β₁ m + (1 - β₁) Δ;  v ← β₂ v + (1 - β₂) Δ²;  w ← w + server_learning_rate · m / (√v + τ)
    """

    state: ClassVar[tuple[str, ...]] = ("momentum", "second_momentum")
    needs_parent: ClassVar[bool] = True

    rule: Literal["fedadam"] = "fedadam"
    server_learning_rate: ServerLearningRate = 0.01
    momentum: Annotated[
        Fraction, Field(description="Momentum: the share of the previous direction that is kept (β₁ in Adam).")
    ] = 0.9
    beta_2: Annotated[Fraction, Field(description="Share of the previous squares that is kept (β₂).")] = 0.99
    tau: Annotated[
        Positive,
        Field(
            description="What is added to the root of the squares (τ); with a small value the steps follow the signs "
            "of the updates, with a large one their sizes."
        ),
    ] = 0.001

    def aggregate(self, inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors) -> Aggregate:
        """Compute the next weights, momentum and second momentum."""
        rate, beta_1 = np.float64(self.server_learning_rate), np.float64(self.momentum)
        beta_2, tau = np.float64(self.beta_2), np.float64(self.tau)

        def combine(name: str, inputs: Sequence[Tensors], parent: Tensors) -> Tensor:
            kind, _, rest = name.partition("/")
            weights = rest if kind in self.state else name
            update = _update(inputs, counts, parent, weights)
            direction = beta_1 * parent[f"momentum/{weights}"] + (1 - beta_1) * update
            squares = beta_2 * parent[f"second_momentum/{weights}"] + (1 - beta_2) * (update * update)
            if weights != name:
                return rounded(direction if kind == "momentum" else squares)
            return rounded(parent[weights] + rate * direction / (np.sqrt(squares) + tau))

        return by_value(shares(counts), combine, inputs, parent)


def _update(inputs: Sequence[Tensors], counts: Sequence[int], parent: Tensors, name: str) -> Wide:
    """Return the average of the local weights less the global weights, float64, of one tensor."""
    return np.subtract(fedavg((tensors[name] for tensors in inputs), counts), parent[name], dtype=np.float64)
