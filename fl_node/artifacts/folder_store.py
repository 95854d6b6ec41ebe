"""A folder as a store, for runs on one machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from fl_node.artifacts import cid
from fl_node.artifacts.store import BLOCK_BYTES, Progress, receive, replacing, silent
from fl_node.errors import FileMissing, StoreError


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
        """
        name = cid.of_file(path)
        target = self._folder / name
        # A copy may be damaged after a power failure; this file replaces it.
        if not target.is_file() or cid.of_file(target) != name:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with replacing(target) as file, path.open("rb") as source:
                    shutil.copyfileobj(source, file)
            except OSError as error:
                raise StoreError(f"store folder {self._folder}: {error.strerror or error}") from error
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
        while not source.is_file():
            if time.monotonic() >= deadline:
                raise FileMissing(f"{file_cid} is not in the store folder {self._folder}")
            time.sleep(min(0.05, timeout))
        try:
            file = source.open("rb")
        except OSError as error:  # an error of this file, not of the folder for the copy
            raise StoreError(f"store folder {self._folder}: {file_cid}: {error.strerror or error}") from error
        with file:
            length = source.stat().st_size
            receive(file_cid, path, max_bytes, iter(lambda: file.read(BLOCK_BYTES), b""), lambda: length, progress)

    def remove(self, names: Iterable[str]) -> None:
        """Delete the files with these CIDs; a file that the folder does not have is ignored.

        Raises
        ------
        StoreError
            A file can't be deleted.
        """
        for name in names:
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"store folder {self._folder}: {name}: {error.strerror or error}") from error

    def collect(self) -> None:
        """Do nothing: :meth:`remove` frees the space at once."""
