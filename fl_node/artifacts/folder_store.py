"""A folder as a store, for runs on one machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from fl_node.artifacts import cid
from fl_node.artifacts.store import BLOCK_BYTES, Progress, receive, replacing, silent
from fl_node.errors import FileMissing, StoreError
from fl_node.runtime import files


class FolderStore:
    """A folder in which the name of each file is its CID."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder)
        self._folder = folder

    def add(self, path: Path) -> str:
        """Store a file and return its CID.

        Raises
        ------
        StoreError
            The folder can't be written.
        OSError
            The file can't be read; the error has its path.
        """
        with files.named(path):
            name = cid.of_file(path)
        target = self._folder / name
        if not _has_content(target, name):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with path.open("rb") as source, replacing(target) as file:
                    shutil.copyfileobj(_Source(source, path), file)
            except OSError as error:
                if error.filename == str(path):
                    raise
                raise StoreError(f"store folder {self._folder}: {files.reason(error)}") from error
        return name

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path``, and wait up to ``timeout`` seconds until it exists.

        Parameters
        ----------
        file_cid, path, max_bytes, timeout, progress
            As for :meth:`fl_node.artifacts.store.Store.fetch`.

        Raises
        ------
        FileMissing
            The folder does not have the file after ``timeout`` seconds.
        StoreError
            The file can't be read, has more than ``max_bytes``, or does not match its CID.
        """
        source = self._folder / file_cid
        deadline = time.monotonic() + timeout
        while not self._has(file_cid):
            if time.monotonic() >= deadline:
                raise FileMissing(f"{file_cid} is not in the store folder {self._folder}")
            time.sleep(min(0.05, timeout))
        with contextlib.ExitStack() as opened:
            with self._errors_of(file_cid):
                file = opened.enter_context(source.open("rb"))
                length = os.fstat(file.fileno()).st_size

            def read() -> bytes:
                with self._errors_of(file_cid):
                    return file.read(BLOCK_BYTES)

            receive(file_cid, path, max_bytes, iter(read, b""), lambda: length, progress)

    def remove(self, names: Iterable[str]) -> None:
        """Delete the files with these CIDs; a file that the folder does not have is ignored.

        Raises
        ------
        StoreError
            A file can't be deleted.
        """
        for name in names:
            with self._errors_of(name):
                (self._folder / name).unlink(missing_ok=True)

    def collect(self) -> None:
        """Do nothing: :meth:`remove` frees the space at once."""

    def _has(self, name: str) -> bool:
        with self._errors_of(name):
            return (self._folder / name).is_file()

    @contextlib.contextmanager
    def _errors_of(self, name: str) -> Iterator[None]:
        """Make an error of one file of the folder an error of the store that names the file.

        Raises
        ------
        StoreError
            The file can't be read or deleted.
        """
        try:
            yield
        except OSError as error:
            raise StoreError(f"store folder {self._folder}: {name}: {files.reason(error)}") from error


class _Source:
    """A file that is added to a store; an error of reading it has its path, and is none of the store."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        with files.named(self._path):
            return self._file.read(size)


def _has_content(path: Path, name: str) -> bool:
    """Return whether a file is what its CID says: after a power failure it may be damaged, or can't be read."""
    try:
        return path.is_file() and cid.of_file(path) == name
    except OSError:
        return False
