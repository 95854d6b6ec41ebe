"""Streams of random words for a seed: ChaCha20 (RFC 8439), keyed by HKDF (RFC 5869)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_NONCE = bytes(16)  # each key makes one stream


def expand(secret: bytes, *purpose: str | int, length: int = KEY_BYTES) -> bytes:
    """Derive the key for a purpose from a secret.

    Parameters
    ----------
    secret
        The secret; at least 31 random bytes, or the result of a key agreement.
    purpose
        What the key is for; each purpose has a key of its own.
    length
        The number of bytes.
    """
    info = "/".join(["fl-node", *map(str, purpose)]).encode()
    return HKDF(SHA256(), length, salt=None, info=info).derive(secret)


class Stream:
    """A stream of random words."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(ChaCha20(key, _NONCE), mode=None).encryptor()

    def words(self, shape: tuple[int, ...], dtype: np.dtype[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
        """Return the next words.

        Parameters
        ----------
        shape
            How many, and in which shape.
        dtype
            Their type: 4 or 8 bytes each, little-endian.
        """
        count = math.prod(shape)
        return np.frombuffer(self._stream.update(bytes(count * dtype.itemsize)), dtype).reshape(shape)
