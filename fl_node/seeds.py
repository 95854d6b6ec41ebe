"""Seeds and shuffles that are the same on every machine and with every version of NumPy.

Everything random in a run derives from the plan's seed and from what it is for, so a round that is trained
again is the same round. Shuffles sort the raw output of a counter-based generator (Philox, Salmon et al. 2011),
which NumPy keeps stable, unlike the streams of its distributions.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def derive(seed: int, *purpose: str | int) -> int:
    """Return a seed below 2**63 for a purpose, such as ``derive(plan.seed, "dropout", node_id, round)``."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def permutation(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the numbers 0 to ``count - 1`` in an order that depends on ``seed`` alone; shape ``(count,)``."""
    raw = np.random.Philox(key=seed).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64)
