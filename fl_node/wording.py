"""Words around numbers in messages."""

from __future__ import annotations


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 round``, ``2 rounds``.

    Parameters
    ----------
    count
        The number.
    singular, plural
        The noun; by default its plural ends in *s*.
    """
    return f"{count} {singular if count == 1 else plural or f'{singular}s'}"
