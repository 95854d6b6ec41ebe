"""The interface of stores, and how a fetched file is checked against its CID.

A store is a private IPFS swarm, or a folder whose files have the names that IPFS gives them. Roles work with either,
and need not trust it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

from fl_node.artifacts import cid
from fl_node.errors import FileMissing, StoreError
from fl_node.runtime import files

BLOCK_BYTES = 256 * 1024

Progress = Callable[[int, int | None], None]
"""Called as a file arrives, with the bytes received and its length in bytes, if known; may raise to cancel it."""


def silent(_received: int, _length: int | None) -> None:
    """Do not report progress."""


class Store(Protocol):
    """Stores files, which are identified by their content."""

    address: str

    def add(self, path: Path) -> str:
        """Store a file and return its CID."""

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path``, complete and verified.

        A fetch may take any time as long as data arrives. Data of a failed fetch stays on this node, and the next
        call continues from there.

        Parameters
        ----------
        file_cid
            The file's CID.
        path
            Where the file appears when it is complete.
        max_bytes
            The largest size allowed, in bytes.
        timeout
            Seconds without progress after which the fetch fails.
        progress
            Called as data arrives; see :data:`Progress`.

        Raises
        ------
        FileMissing
            Nothing arrived for ``timeout`` seconds.
        StoreUnreachable
            The store does not answer.
        StoreError
            The file has more than ``max_bytes``, or does not match its CID.
        """

    def remove(self, names: Iterable[str]) -> None:
        """Stop keeping the files with these CIDs on this node; a file that it does not keep is ignored.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        StoreError
            The store reports an error, or a file can't be deleted.
        """

    def collect(self) -> None:
        """Free the disk space of files that this node does not keep, where it is worth the work.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        StoreError
            The store reports an error.
        """


class TooLarge(StoreError):
    """A file is larger than allowed; the remaining bytes are not read."""

    code = "too_large"


class WrongContent(StoreError):
    """The content of a file does not match its CID."""

    code = "malformed"


def receive(
    file_cid: str,
    path: Path,
    max_bytes: int,
    blocks: Iterable[bytes],
    length: Callable[[], int | None] = lambda: None,
    progress: Progress = silent,
) -> None:
    """Write the blocks of a file to ``path``, complete and verified.

    Parameters
    ----------
    file_cid
        The file's CID.
    path
        Where the file appears when it is complete.
    max_bytes
        The largest size allowed, in bytes.
    blocks
        The content, in order.
    length
        Returns the file's size in bytes, or None while it is unknown.
    progress
        Called as data arrives; see :data:`Progress`.

    Raises
    ------
    TooLarge
        The file has more than ``max_bytes``.
    WrongContent
        The content does not match the CID.
    FileMissing
        The file is incomplete.
    """
    received, hasher = 0, cid.Hasher()
    with replacing(path) as file:
        for block in blocks:
            received += len(block)
            if received > max_bytes:
                raise TooLarge(f"{file_cid} has more than the {max_bytes} bytes allowed")
            file.write(block)
            hasher.update(block)
            progress(received, length())
        file.flush()
        if (total := length()) is not None and received < total:
            raise FileMissing(f"{file_cid} is incomplete: {received} of {total} bytes", received)
        if (actual := hasher.cid()) != file_cid:
            raise WrongContent(f"the store returned a file with the CID {actual} for {file_cid}")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``target`` if no exception occurs, and is deleted otherwise."""
    # Not tempfile, which creates files that only the owner can read; other users may read a run's files.
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with files.named(target.parent), path.open("xb") as file:
        try:
            yield file
            file.flush()
            path.replace(target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
