"""Cryptographic random numbers: the stream of ChaCha20 (RFC 8439) for a key.

numpy's generators are not made for secrets: from enough of their output all the rest follows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

LAST = 2**96 - 1
"""The number of a key's last stream."""
Words = npt.NDArray[np.uint64]


def words(key: bytes, number: int, count: int) -> Words:
    """Return 64-bit words, shape ``(count,)``.

    Parameters
    ----------
    key
        32 bytes.
    number
        Which of the key's streams, from 0 to :data:`LAST`; each has 256 GB.
    count
        How many words.
    """
    nonce = bytes(4) + number.to_bytes(12, "little")  # ChaCha20's block counter stands before the nonce
    cipher = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), "<u8")


def uniform(key: bytes, number: int, count: int) -> npt.NDArray[np.float64]:
    """Return numbers in the open interval (0, 1) with 53 random bits each, shape ``(count,)``.

    Parameters
    ----------
    key, number, count
        As for :func:`words`.
    """
    return _fractions(words(key, number, count))


def gaussian(key: bytes, number: int, count: int) -> npt.NDArray[np.float32]:
    """Return standard normal numbers, by Box & Muller (1958), shape ``(count,)``.

    The angle is computed in float32, for which processors have fast sines; the radius, which decides the tails, in
    float64 from 53 random bits, so that it goes up to 8.6.

    Parameters
    ----------
    key, number, count
        As for :func:`words`.
    """
    pairs = (count + 1) // 2
    drawn = words(key, number, 2 * pairs)
    radius = np.sqrt(-2 * np.log(_fractions(drawn[:pairs]))).astype(np.float32)
    angle = (drawn[pairs:] >> np.uint64(40)).astype(np.float32) * np.float32(2 * np.pi / 2**24)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _fractions(drawn: Words) -> npt.NDArray[np.float64]:
    fractions: npt.NDArray[np.float64] = ((drawn >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return fractions
