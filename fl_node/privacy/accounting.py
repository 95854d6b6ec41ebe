"""The privacy budget: ε for δ of DP-SGD, by the accountant of dp-accounting.

Rényi differential privacy of the sampled Gaussian mechanism (Mironov et al. 2019, https://arxiv.org/abs/1908.10530)
never says less than is spent, takes milliseconds and needs no grid, so header, learners and audit get the same. Two
data sets are neighbours if one has one example more than the other.
"""

from __future__ import annotations

import functools
import logging
import math

NOISE_DIGITS = 4
"""Decimal places of a noise multiplier that is derived from a target ε; it is rounded up."""
LEAST_NOISE, LARGEST_NOISE = 1e-3, 1e4
"""The range of noise multipliers in plans."""


@functools.lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return the ε that DP-SGD has spent for δ.

    Parameters
    ----------
    noise_multiplier
        The noise's standard deviation divided by the clipping norm.
    sampling_rate
        The probability of an example to be in a step, up to 1.
    steps
        The number of steps; 0 spends nothing.
    delta
        δ.
    """
    if steps == 0:
        return 0.0
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    # It says which orders it leaves out, which is all right: each order bounds ε.
    logging.getLogger("absl").setLevel(logging.ERROR)
    step = dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    try:
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
        return float(accountant.get_epsilon(delta))
    except ArithmeticError:  # so little noise that its square is no number
        return math.inf


def noise_multiplier(target: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return the smallest noise multiplier for a target ε, rounded up to :data:`NOISE_DIGITS` decimal places.

    Parameters
    ----------
    target
        ε.
    sampling_rate, steps, delta
        As for :func:`epsilon`.

    Raises
    ------
    ValueError
        No noise up to :data:`LARGEST_NOISE` is enough.
    """
    unit: int = 10**NOISE_DIGITS
    low, high = 0, unit  # in units of the last digit; high is enough, low is not
    largest = round(LARGEST_NOISE * unit)
    while epsilon(high / unit, sampling_rate, steps, delta) > target:
        if high == largest:
            raise ValueError(f"no noise up to {LARGEST_NOISE:g} keeps to ε = {target:g}")
        low, high = high, min(2 * high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        if epsilon(middle / unit, sampling_rate, steps, delta) > target:
            low = middle
        else:
            high = middle
    return max(high / unit, LEAST_NOISE)


def rounded(value: float) -> float:
    """Return ε rounded up to three decimal places, as files and reports have it."""
    return math.ceil(value * 1000 - 1e-6) / 1000


def largest_auc(noise_multiplier: float, sampling_rate: float, steps: int) -> float:
    """Return what no membership attack on one example exceeds: an upper bound of its AUC.

    For every ε and its δ(ε) the rate of true positives is at most ``δ + exp(ε) · false`` and at most
    ``1 - exp(-ε) · (1 - δ - false)`` (Kairouz et al. 2015, https://arxiv.org/abs/1311.0776); the bound is the area
    below the least of these.

    Parameters
    ----------
    noise_multiplier, sampling_rate, steps
        As for :func:`epsilon`.
    """
    import dp_accounting
    import numpy as np
    from dp_accounting.rdp import RdpAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)
    step = dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    false = np.linspace(0, 1, 10_001)
    true = np.ones_like(false)
    for spent in np.linspace(0, 10, 101):
        delta = min(1.0, float(accountant.get_delta(spent)))
        true = np.minimum(true, delta + np.exp(spent) * false)
        true = np.minimum(true, 1 - np.exp(-spent) * np.maximum(1 - delta - false, 0))
    return float(np.trapezoid(true, false))
