"""Numbers that people write in options: only what everybody reads as a number.

Python's own ``int`` and ``float`` also take ``1_0``, ``nan``, spaces and digits of other scripts.
"""

from __future__ import annotations

import math
import re

MOST_DIGITS = 15
_WHOLE = re.compile(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def whole(text: str) -> int:
    """Return a whole number of at most :data:`MOST_DIGITS` digits.

    Raises
    ------
    ValueError
        The text is something else.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:60]} is not a whole number of at most {MOST_DIGITS} digits")
    return int(text)


def real(text: str) -> float:
    """Return a finite decimal number.

    Raises
    ------
    ValueError
        The text is something else.
    """
    number = float(text) if _REAL.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text[:60]} is not a number")
    return number
