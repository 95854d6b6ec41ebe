"""Differential privacy: its settings, and the sampling that the accountant needs.

Of single examples: DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133): a step takes each example with the
same probability, independently of the others (Poisson sampling), clips the gradient of each to a norm, and adds
Gaussian noise to the sum. The noise multiplier is the noise's standard deviation divided by that norm.

Of whole learners: see :mod:`fl_node.privacy.learner_noise`. A publication is one step in which the learner's update
surely is, and the noise multiplier is that of the sum of a round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fl_node.privacy.accounting import LARGEST_NOISE, LEAST_NOISE
from fl_node.runtime.settings import FILLED_IN, Settings

Epsilon = Annotated[float, Field(ge=1e-6, le=1e6)]


class DpPlan(Settings):
    """Differential privacy of each learner's data."""

    if_given: ClassVar[frozenset[str]] = frozenset({"tolerated"})

    unit: Annotated[
        Literal["example", "learner"],
        Field(
            description="What is protected: one `example` of a learner's data (DP-SGD), or all that a `learner` adds "
            "to the sums of a run with masks."
        ),
    ] = "example"
    clipping_norm: Annotated[
        float,
        Field(
            gt=0,
            le=1e6,
            description="Maximum Euclidean norm of the gradient of one example, or of a learner's update.",
        ),
    ] = 1.0
    noise_multiplier: Annotated[
        Annotated[float, Field(ge=LEAST_NOISE, le=LARGEST_NOISE)] | None,
        FILLED_IN,
        Field(
            description="Standard deviation of the noise divided by `clipping_norm`; by default the least that keeps "
            'to `epsilon`. With `unit = "learner"` it is that of the noise in a sum.'
        ),
    ] = None
    tolerated: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description='With `unit = "learner"`: how many learners may be missing in a round, reveal their '
            "noise or leave it out; that of the others is enough.",
        ),
    ] = 0
    epsilon: Annotated[
        Epsilon | None,
        Field(description="Target ε of the whole run, if each learner publishes once per round."),
    ] = None
    delta: Annotated[
        float, Field(ge=1e-30, lt=1, description="δ: should be well below 1 / examples of a learner.")
    ] = 1e-5
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
            description="How a step of DP-SGD chooses its examples: each with probability `training.batch_size` "
            "divided by the learner's examples."
        ),
    ] = "poisson"

    @property
    def limit(self) -> float | None:
        """The maximum ε of a learner; None without a limit."""
        return self.epsilon if self.epsilon_max is None else self.epsilon_max

    @property
    def is_of_learners(self) -> bool:
        """Whether whole learners are protected, not single examples."""
        return self.unit == "learner"


@dataclass(frozen=True)
class Sampling:
    """The sampling of the protected unit in one round."""

    rate: float
    """The probability that an example is part of a step."""
    steps: int
    """Steps in one round."""
    expected: int
    """The mean number of examples in a step."""


OF_LEARNERS = Sampling(rate=1.0, steps=1, expected=1)
"""A learner's update is in the sum of the round, which is looked at once."""


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
