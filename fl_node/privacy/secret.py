"""The secret of a host, from which its masks and its noise follow; nobody else can compute them.

A plan's seed is public, and so is everything derived from it. What must stay unknown to the other members of a run
follows from 32 random bytes in a file on the host, by HKDF (RFC 5869) with the contract, the round and the purpose.
So a role that is killed continues with the same bits.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_node.errors import ConfigError
from fl_node.runtime import files

SECRET_BYTES = 32
FILE_NAME = "host.secret"
"""The file's name; it is in the folder of the role's key."""


@dataclass(frozen=True)
class HostSecret:
    """The secret of a host; its ``repr`` does not contain the bytes."""

    content: bytes = field(repr=False)

    def derive(self, contract: str, round_: int, *purpose: str | int, length: int = SECRET_BYTES) -> bytes:
        """Derive the key for a purpose in a round of a run.

        Parameters
        ----------
        contract
            The address of the run's contract, in any case.
        round_
            The round.
        purpose
            What the key is for, such as ``"noise"``; each purpose has a key of its own.
        length
            The number of bytes.
        """
        info = "/".join(["fl-node", contract.lower(), str(round_), *map(str, purpose)])
        return HKDF(SHA256(), length, salt=None, info=info.encode()).derive(self.content)


def beside(key: Path) -> Path:
    """Return the path of the host's secret, from the path of the role's key file."""
    return key.with_name(FILE_NAME)


def load_or_create(path: Path) -> HostSecret:
    """Return the host's secret; create it if there is none.

    The file appears whole: a process that is killed leaves no part of it.

    Raises
    ------
    ConfigError
        The file can't be written or read, others may read it, or it does not hold a secret.
    """
    if not path.exists():
        try:
            # Another role of this host may have made it in the meantime; then that one counts.
            files.create_private(path, secrets.token_hex(SECRET_BYTES) + "\n")
        except OSError as error:
            raise ConfigError(f"host secret {path}: {files.reason(error)}") from error
    return load(path)


def load(path: Path) -> HostSecret:
    """Read the host's secret: 64 hexadecimal digits, mode 0600.

    Raises
    ------
    ConfigError
        The file is missing, does not hold a secret, or others may read it.
    """
    text = files.private_text(path, "host secret", files.KEY_DIGITS)
    try:
        content = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"host secret {path} should hold {files.KEY_DIGITS}") from error
    if len(content) != SECRET_BYTES:
        raise ConfigError(f"host secret {path} should hold {files.KEY_DIGITS}")
    return HostSecret(content)
