"""Exact samples of the discrete Gaussian distribution, by integers alone.

Canonne, Kamath & Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
https://arxiv.org/abs/2004.00010, algorithms 1 to 3: the probability of an integer x is proportional to exp(-x² /
2σ²). Nothing is rounded, so attacks on floating-point noise (Mironov 2012) have nothing to work with.

All candidates of a batch are drawn at once. Deviations are integers of at most :data:`LARGEST`, and the discrete
Laplace distribution that candidates come from has the same scale, so all numerators and denominators fit in 63
bits: a candidate beyond 127 deviations, whose square would not, comes with a probability below 2^-180.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl_node.privacy.streams import Stream

LARGEST = 2**24
"""The largest deviation."""
LEAST_BATCH = 64

Integers = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]
_WORD = np.dtype("<u8")


def discrete_gaussian(stream: Stream, deviation: int, count: int) -> Integers:
    """Return independent samples, shape ``(count,)``; the same stream gives the same ones.

    Parameters
    ----------
    stream
        Random words that nobody else knows.
    deviation
        σ, from 1 to :data:`LARGEST`.
    count
        How many samples.

    Raises
    ------
    ValueError
        The deviation is out of range.
    """
    if not 1 <= deviation <= LARGEST:
        raise ValueError(f"a discrete Gaussian has a deviation from 1 to {LARGEST} (is {deviation})")
    samples, missing = [np.zeros(0, np.int64)], count
    while missing > 0:
        candidates = _laplace(stream, deviation, max(2 * missing, LEAST_BATCH))
        distance = np.abs(candidates) - deviation
        taken = candidates[_exponential(stream, distance * distance, 2 * deviation * deviation)][:missing]
        samples.append(taken)
        missing -= len(taken)
    return np.concatenate(samples)


def _laplace(stream: Stream, scale: int, count: int) -> Integers:
    """Return samples x with probabilities proportional to exp(-|x| / scale), at most ``count`` of them."""
    low = _below(stream, scale, count)
    low = low[_exponential(stream, low, scale)]
    high = np.zeros(len(low), np.int64)
    pending = np.arange(len(low))
    while len(pending):
        pending = pending[_fraction(stream, np.ones(len(pending), np.int64), 1)]
        high[pending] += 1
    size = low + scale * high
    is_negative = _below(stream, 2, len(size)) == 1
    # Else 0 would come twice as often.
    kept: Integers = np.where(is_negative, -size, size)[~(is_negative & (size == 0))]
    return kept


def _exponential(stream: Stream, numerators: Integers, denominator: int) -> Truths:
    """Return True with the probability exp(-numerator / denominator) for each numerator; none is negative."""
    whole, rest = np.divmod(numerators, denominator)
    answers = np.ones(len(numerators), np.bool_)
    pending = np.flatnonzero(whole > 0)
    while len(pending):
        answers[pending] = _fraction(stream, np.ones(len(pending), np.int64), 1)
        whole[pending] -= 1
        pending = pending[answers[pending] & (whole[pending] > 0)]
    left = np.flatnonzero(answers)
    answers[left] = _fraction(stream, rest[left], denominator)
    return answers


def _fraction(stream: Stream, numerators: Integers, denominator: int) -> Truths:
    """Return True with the probability exp(-numerator / denominator) for each numerator from 0 to ``denominator``.

    By von Neumann: of trials that succeed with numerator / (denominator · k) for k = 1, 2, …, the first to fail
    has an odd k with just this probability.
    """
    answers = np.ones(len(numerators), np.bool_)
    pending, k = np.arange(len(numerators)), 1
    while len(pending):
        drawn = _below(stream, denominator * k, len(pending))
        failed = drawn >= numerators[pending]
        answers[pending[failed]] = k % 2 == 1
        pending, k = pending[~failed], k + 1
    return answers


def _below(stream: Stream, bound: int, count: int) -> Integers:
    """Return uniform integers from 0 to ``bound - 1``, by rejection."""
    drawn = np.zeros(count, np.int64)
    mask = np.uint64((1 << (bound - 1).bit_length()) - 1)
    pending = np.arange(count)
    while len(pending):
        drawn[pending] = (stream.words((len(pending),), _WORD) & mask).astype(np.int64)
        pending = pending[drawn[pending] >= bound]
    return drawn
