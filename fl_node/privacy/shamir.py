"""Shamir's secret sharing: ``threshold`` shares give the secret, and fewer reveal nothing about it.

Shamir, "How to Share a Secret", Communications of the ACM 22(11), 1979, https://doi.org/10.1145/359168.359176
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

PRIME = 2**255 - 19
"""The field's order; secrets of 31 bytes are below it."""


def split(secret: int, coefficients: Sequence[int], places: Iterable[int]) -> dict[int, int]:
    """Return a share for each place: the value there of a polynomial whose value at 0 is the secret.

    Parameters
    ----------
    secret
        From 0 to ``PRIME - 1``.
    coefficients
        The other coefficients, one fewer than the shares that give the secret. They must be random.
    places
        Where the shares are, different and not 0: nodeIds.
    """
    return {place: _value((secret, *coefficients), place) for place in places}


def combine(shares: Mapping[int, int]) -> int:
    """Return the secret for exactly ``threshold`` shares, by place."""
    secret = 0
    for place, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        secret = (secret + share * above * pow(below, -1, PRIME)) % PRIME
    return secret


def _value(coefficients: Sequence[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value
