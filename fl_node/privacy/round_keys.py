"""The keys of a host for its rounds: created on the host, and on disk (mode 0600) only until their round ends."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fl_node.errors import ConfigError
from fl_node.privacy.dealing import RoundKey
from fl_node.privacy.secret import HostSecret
from fl_node.privacy.streams import KEY_BYTES, expand
from fl_node.runtime import files

FOLDER = "round-keys"


class RoundKeys:
    """The keys of a learner in a run.

    A key follows from the host's secret and from random bytes that are kept nowhere. So when its file is erased,
    nobody can make it again, not even with the host's secret.

    Parameters
    ----------
    folder
        The learner's folder.
    secret
        The host's secret.
    """

    def __init__(self, folder: Path, secret: HostSecret) -> None:
        self._folder = folder / FOLDER
        self._secret = secret

    def get(self, contract: str, round_: int) -> RoundKey | None:
        """Return the key for a round; None if it was not created or has been erased.

        Raises
        ------
        ConfigError
            Others may read it, or its file can't be read or is damaged.
        """
        path = self._path(contract, round_)
        try:
            mode, content = path.stat().st_mode & 0o777, path.read_bytes()
        except FileNotFoundError:
            return None
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(f"round key {path}: {files.reason(error)}") from error
        if mode & 0o077:
            raise ConfigError(f"round key {path} has mode {mode:04o}; others may read it: chmod 600 {path}")
        if len(content) != KEY_BYTES:
            problem = f"has {len(content)} bytes, not {KEY_BYTES}"
            raise ConfigError(f"round key {path} {problem}; delete it, and the learner sits out the round")
        return RoundKey(content)

    def make(self, contract: str, round_: int) -> RoundKey:
        """Return the key for a round; create it if there is none."""
        if (known := self.get(contract, round_)) is not None:
            return known
        fresh = secrets.token_bytes(KEY_BYTES)
        content = expand(self._secret.derive(contract, round_, "masks") + fresh, "round key")
        path = self._path(contract, round_)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with (
            files.named(path),
            os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file,
        ):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return RoundKey(content)

    def has_any(self, contract: str) -> bool:
        """Return whether this folder has a key of a run."""
        return any(self._folder.glob(f"{contract.lower()}-*.key"))

    def erase(self, contract: str, before: int) -> None:
        """Erase the keys of all earlier rounds, and those of other runs in this folder."""
        for path in self._folder.glob("*.key"):
            name, _, number = path.stem.rpartition("-")
            if name != contract.lower() or not number.isdigit() or int(number) < before:
                _erase(path)

    def _path(self, contract: str, round_: int) -> Path:
        return self._folder / f"{contract.lower()}-{round_}.key"


def _erase(path: Path) -> None:
    """Overwrite a file, then delete it; on disks that write elsewhere (SSDs), only disk encryption helps."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
