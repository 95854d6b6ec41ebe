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
    """A function from the number of rounds that have closed to what an update counts for."""

    staleness: str

    @abstractmethod
    def discount(self, rounds: int) -> float:
        """Return how much an update counts that began so many rounds ago: 1 if it is fresh, else less, never 0."""


class Constant(Staleness):
    """An old update counts as much as a fresh one."""

    staleness: Literal["constant"] = "constant"

    def discount(self, rounds: int) -> float:  # noqa: ARG002
        """Return 1."""
        return 1.0


class Polynomial(Staleness):
    """An update counts (rounds + 1) to the power of minus the exponent."""

    staleness: Literal["polynomial"] = "polynomial"
    exponent: Annotated[
        Positive, Field(description="An update counts (rounds + 1) to the power of minus this exponent (a).")
    ] = 0.5

    def discount(self, rounds: int) -> float:
        """Return the power, rounded."""
        return round(math.pow(rounds + 1, -self.exponent), DIGITS)


class Hinge(Staleness):
    """An update counts in full up to the grace, and 1 / (slope · (rounds - grace) + 1) after it."""

    staleness: Literal["hinge"] = "hinge"
    grace: Annotated[
        int, Field(ge=0, le=1_000_000, description="The number of rounds for which an update counts in full (b).")
    ] = 4
    slope: Annotated[
        Positive, Field(description="After the grace an update counts 1 / (slope · (rounds - grace) + 1) (a).")
    ] = 10.0

    def discount(self, rounds: int) -> float:
        """Return the quotient, rounded."""
        return round(1.0 / (self.slope * (rounds - self.grace) + 1.0), DIGITS) if rounds > self.grace else 1.0


STALENESS_CHOICE = Choice("staleness", (Constant, Polynomial, Hinge), "polynomial", flat=True)
