"""Example-level differential privacy: the settings of DP-SGD, and the sampling that the accountant needs.

DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133): a step takes each example with the same probability,
independently of the others (Poisson sampling), clips the gradient of each to a norm, and adds Gaussian noise to the
sum. The noise multiplier is the noise's standard deviation divided by that norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fl_node.runtime.settings import FILLED_IN, Settings

Epsilon = Annotated[float, Field(gt=0, le=1e6)]


class DpPlan(Settings):
    """Differential privacy of each learner's data."""

    unit: Annotated[
        Literal["example"],
        Field(description="What is protected: one example of a learner's data (DP-SGD)."),
    ] = "example"
    clipping_norm: Annotated[
        float, Field(gt=0, le=1e6, description="Maximum Euclidean norm of the gradient of one example.")
    ] = 1.0
    noise_multiplier: Annotated[
        Annotated[float, Field(gt=0, le=1e4)] | None,
        FILLED_IN,
        Field(
            description="Standard deviation of the noise divided by `clipping_norm`; by default the least that keeps "
            "to `epsilon`."
        ),
    ] = None
    epsilon: Annotated[
        Epsilon | None,
        Field(description="Target ε of the whole run, if each learner publishes once per round."),
    ] = None
    delta: Annotated[float, Field(gt=0, lt=1, description="δ: should be well below 1 / examples of a learner.")] = (
        1e-5
    )
    epsilon_max: Annotated[
        Epsilon | None,
        Field(
            description="A learner publishes nothing that would take its ε beyond this; the run ends when too few "
            "can publish. By default `epsilon`, if it is set; else there is no limit."
        ),
    ] = None
    sampling: Annotated[
        Literal["poisson"],
        Field(
            description="How a step chooses its examples: each with probability `training.batch_size` divided by the "
            "learner's examples."
        ),
    ] = "poisson"

    @property
    def limit(self) -> float | None:
        """The maximum ε of a learner; None without a limit."""
        return self.epsilon if self.epsilon_max is None else self.epsilon_max


@dataclass(frozen=True)
class Sampling:
    """The sampling of a learner's training in one round."""

    rate: float
    """The probability that an example is part of a step."""
    steps: int
    """Steps in one round."""
    expected: int
    """The mean number of examples in a step."""


def sampling(samples: int, batch_size: int, epochs: int) -> Sampling:
    """Return the sampling of a learner: as many steps as batches without DP-SGD would be.

    Parameters
    ----------
    samples
        The learner's examples.
    batch_size
        Examples in a step, on average.
    epochs
        Local epochs in a round.
    """
    expected = min(batch_size, samples)
    return Sampling(expected / samples, epochs * math.ceil(samples / expected), expected)
