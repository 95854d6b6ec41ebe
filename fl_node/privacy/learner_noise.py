"""Differential privacy of whole learners: clipped updates and a share of discrete Gaussian noise, in integers.

Kairouz, Liu & Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, https://arxiv.org/abs/2102.06387. Nobody reads less than the sum of a round, so each
learner adds only a share of the noise: the sum has enough of it.

**Sensitivity.** Two data sets are neighbours if one learner's update is zero in all rounds in one of them. An
update u (in units of the ring's fraction) is scaled to a norm of at most Δ - √d / 2, where d is the number of its
values, and rounded to the nearest integers q. Each value moves by at most 1/2, so ‖q - u‖ ≤ √d / 2 and ‖q‖ ≤ ‖u‖ +
‖q - u‖ ≤ Δ by the triangle inequality, for every update: rounding costs a little of the norm, and no privacy.
Floating-point numbers don't weaken this: the norm of q is computed in integers, and what exceeds Δ is scaled down
again. Δ and the noise follow from the plan alone, not from d. No rotation or randomised rounding as in the paper is
needed, because 20 digits after the point leave room: √d / 2 is 0.01 % of Δ for 50,000 values and a norm of 1.

**Noise.** Each of m learners adds discrete Gaussian noise with the variance σ² > z² Δ² / m, where z is the plan's
noise multiplier, and m all learners but those that may be lost (``tolerated``). The sum of at least m of them
satisfies ε₀²/2-concentrated differential privacy with ε₀ = Δ / (√m σ) + τ √d, τ ≤ 10 m exp(-π² σ²) (the paper's
bound for sums). With σ ≥ :data:`LEAST` the second term is below 10^-1000, and rounding σ up to the next greater
integer lowers the first by more. So ε₀ < 1/z, which is the Gaussian mechanism's bound for z;
:mod:`fl_node.privacy.accounting` converts it by Rényi differential privacy, which concentrated differential privacy
bounds at all orders in the same way. A further learner's noise does no harm: it is independent. Bounds for the
continuous Gaussian alone (privacy loss distributions) are not used, for they don't hold here.

**Room.** A discrete Gaussian is subgaussian with its σ (Canonne et al. 2020), and so is the sum of n with √n σ. It
exceeds :data:`TAIL` deviations with a probability below 2 exp(-TAIL² / 2) < 10^-30 for each value, so below 10^-18
in a run that adds 2^40 values. If it did, a value would be wrong, but as private as the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fl_node.aggregation.fixed_point import FixedPoint
from fl_node.errors import ConfigError
from fl_node.privacy.discrete_gaussian import LARGEST, discrete_gaussian
from fl_node.privacy.streams import Stream, expand
from fl_node.runtime.tensors import Wide

LEAST = 16
"""The least deviation of a learner's noise, in units of the ring's fraction."""
MOST = LARGEST
"""The largest one."""
TAIL = 12

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LearnerNoise:
    """What a learner does to its update.

    Parameters
    ----------
    point
        How values become integers.
    bound
        Δ: the largest norm of an update, in integers.
    deviation
        σ: the standard deviation of one learner's noise, in integers.
    """

    point: FixedPoint
    bound: int
    deviation: int

    @classmethod
    def sized(cls, point: FixedPoint, clipping_norm: float, noise_multiplier: float, adders: int) -> LearnerNoise:
        """Return the noise of each learner, such that a sum has enough of it.

        Parameters
        ----------
        point
            How values become integers.
        clipping_norm
            The largest norm of an update.
        noise_multiplier
            The standard deviation of the noise in a sum, divided by this norm.
        adders
            How many learners add noise to each sum, at least.
        """
        bound = math.floor(Fraction(clipping_norm) * 2**point.fraction_bits)
        variance = Fraction(noise_multiplier) ** 2 * bound**2 / adders
        return cls(point, bound, math.isqrt(math.floor(variance)) + 1)

    def fits(self, learners: int) -> bool:
        """Return whether the sum of so many learners stays in the ring, its noise included."""
        noise = math.isqrt(TAIL**2 * self.deviation**2 * learners) + 1
        return learners * min(self.point.largest, self.bound) + noise < self.point.limit

    def check_values(self, values: int) -> None:
        """Refuse a model whose updates would hardly be more than what rounding takes.

        Raises
        ------
        ConfigError
            It has too many values.
        """
        if math.isqrt(values) + 1 > self.bound:
            more = math.ceil(math.log2((math.isqrt(values) + 2) / self.bound))
            raise ConfigError(
                f"aggregation.fraction_bits: should be at least {self.point.fraction_bits + more} for a model of "
                f"{values} values and this privacy.dp.clipping_norm (is {self.point.fraction_bits})"
            )

    def update(self, names: Collection[str], update: Callable[[str], Wide]) -> Mapping[str, Integers]:
        """Return an update as integers whose norm is at most the bound.

        Parameters
        ----------
        names
            The names of its tensors.
        update
            Returns one of them: local minus global weights. What is not a number counts as 0.

        Raises
        ------
        ConfigError
            It has too many values for the bound.
        """
        scaled = {name: self._scaled(update(name)) for name in names}
        values = sum(tensor.size for tensor in scaled.values())
        self.check_values(values)
        norm = math.sqrt(sum(float(np.sum(tensor * tensor)) for tensor in scaled.values()))
        target = self.bound - math.sqrt(values) / 2
        factor = 1.0 if norm <= target else target / norm
        while True:
            integers = {name: np.rint(tensor * factor).astype(np.int64) for name, tensor in scaled.items()}
            # Python's integers have no largest one.
            squares = sum(value * value for tensor in integers.values() for value in tensor.ravel().tolist())
            if squares <= self.bound**2:
                return integers
            factor *= 1 - 2.0**-20

    def noise(self, secret: bytes, name: str, shape: tuple[int, ...]) -> Integers:
        """Return a learner's noise for one tensor; the same secret gives the same bits.

        Parameters
        ----------
        secret
            Of the host, for one round that starts from certain weights.
        name, shape
            The tensor's.
        """
        samples = discrete_gaussian(Stream(expand(secret, "noise", name)), self.deviation, math.prod(shape))
        return samples.reshape(shape)

    def _scaled(self, values: Wide) -> Wide:
        edge = self.point.range
        clipped = np.clip(np.nan_to_num(values, nan=0.0, posinf=edge, neginf=-edge), -edge, edge)
        return np.asarray(np.ldexp(clipped, self.point.fraction_bits))
