"""What a store of model files is, and how a file that comes out of one is checked against its CID.

A store is a private IPFS swarm, or a folder that names files as IPFS would; the code of the roles does not know which
it has. Neither an IPFS daemon nor a folder has to be believed.
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
"""Called as a file arrives, with the bytes that are there and those it has, if that is known; may raise to end it."""


def silent(_received: int, _length: int | None) -> None:
    """Tell nobody how far a file is."""


class Store(Protocol):
    """A place for files that are named by their content."""

    address: str

    def add(self, path: Path) -> str:
        """Store a file and return its CID."""

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path``, complete and verified.

        A fetch may take any time as long as data arrives. What has arrived stays on this node, so the next call
        continues a failed fetch from there.

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


class TooLarge(StoreError):
    """A file that has more bytes than it may have; the rest of it is not read."""

    code = "too_large"


class WrongContent(StoreError):
    """A file that is not what its CID says."""

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
    received = 0
    with replacing(path) as file:
        for block in blocks:
            received += len(block)
            if received > max_bytes:
                raise TooLarge(f"{file_cid} has more than the {max_bytes} bytes allowed")
            file.write(block)
            progress(received, length())
        file.flush()
        if (whole := length()) is not None and received < whole:
            raise FileMissing(f"{file_cid} is incomplete: {received} of {whole} bytes", received)
        if (actual := cid.of_file(Path(file.name))) != file_cid:
            raise WrongContent(f"what the store gave for {file_cid} is {actual}")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that becomes ``target`` when all went well and vanishes when not."""
    # Not by tempfile, whose files nobody else may read: a run's are for everybody.
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with files.named(target.parent), path.open("xb") as file:
        try:
            yield file
            file.flush()
            path.replace(target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
