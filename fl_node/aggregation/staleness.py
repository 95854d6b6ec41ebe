"""How an update counts less, the more rounds have closed since it began: the functions of FedAsync's paper.

Xie et al., "Asynchronous Federated Optimization", 2019, https://arxiv.org/abs/1903.03934, section 5.2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from fl_node.runtime.settings import Choice, Positive, Settings

DIGITS = 12
"""Decimals of a weight. A power may differ in its last bit between machines; this far it does not."""


class Staleness(Settings):
    """A function from the age of an update, in rounds, to its weight."""

    staleness: str

    @abstractmethod
    def discount(self, rounds: int) -> float:
        """Return the weight of an update.

        Parameters
        ----------
        rounds
            The number of rounds that have closed since the update began, 0 if it is fresh.

        Returns
        -------
        float
            1 for a fresh update, at most 1 for an older one, always greater than 0.
        """


class Constant(Staleness):
    """All updates have the same weight."""

    staleness: Literal["constant"] = "constant"

    def discount(self, rounds: int) -> float:  # noqa: ARG002
        """Return 1."""
        return 1.0


class Polynomial(Staleness):
    """The weight of an update is (rounds + 1) to the power of minus the exponent."""

    staleness: Literal["polynomial"] = "polynomial"
    exponent: Annotated[
        Positive,
        Field(description="The weight of an update is (rounds + 1) to the power of minus this exponent (a)."),
    ] = 0.5

    def discount(self, rounds: int) -> float:
        """Return the power, rounded."""
        return round(math.pow(rounds + 1, -self.exponent), DIGITS)


class Hinge(Staleness):
    """The weight is 1 up to the grace period, then 1 / (slope · (rounds - grace) + 1)."""

    staleness: Literal["hinge"] = "hinge"
    grace: Annotated[
        int, Field(ge=0, le=1_000_000, description="Number of rounds without a penalty for an update (b).")
    ] = 4
    slope: Annotated[
        Positive,
        Field(description="After the grace, the weight of an update is 1 / (slope · (rounds - grace) + 1) (a)."),
    ] = 10.0

    def discount(self, rounds: int) -> float:
        """Return the quotient, rounded."""
        return round(1.0 / (self.slope * (rounds - self.grace) + 1.0), DIGITS) if rounds > self.grace else 1.0


STALENESS_CHOICE = Choice("staleness", (Constant, Polynomial, Hinge), "polynomial", flat=True)
