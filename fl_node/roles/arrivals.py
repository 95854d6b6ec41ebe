"""Fetches local files for the header in the background; a file without progress counts as missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from fl_node import events
from fl_node.artifacts.download import Arrival, Downloads
from fl_node.artifacts.store import Store, TooLarge, WrongContent
from fl_node.errors import StoreError, StoreUnreachable
from fl_node.protocol.reader import Reader
from fl_node.runtime.logs import emit

FETCH_TRY = 2.0
"""Seconds that the header waits for a file; then it handles other learners while the file arrives."""

Key = tuple[int, int | str]
"""A learner's nodeId, and the number or CID of its file."""


class Arrivals:
    """The local files that a header waits for.

    Parameters
    ----------
    store
        Where they come from.
    reader
        Knows how many bytes they may have.
    timeout
        Seconds without progress after which a file is missing.
    told
        Called whenever a download has ended, in its thread.
    """

    def __init__(self, store: Store, reader: Reader, timeout: float, told: Callable[[], None] = lambda: None) -> None:
        self._reader = reader
        self._timeout = timeout
        self._downloads: Downloads[Key] = Downloads(store, told)
        self._arrivals: dict[Key, Arrival] = {}
        self._reported: set[Key] = set()

    @property
    def ended(self) -> int:
        """Number of downloads that have ended; roles that wait for files watch it."""
        return self._downloads.ended

    def fetch(self, key: Key, name: str, path: Path) -> None:
        """Start to download a file, unless the download is running or failed a moment ago.

        Parameters
        ----------
        key
            The learner's nodeId, and which of its files this is.
        name
            The file's CID.
        path
            Where the file is written.
        """
        arrival = self._arrivals.setdefault(key, Arrival(time.monotonic()))
        if self._downloads.get(key) is None and arrival.is_due():
            path.parent.mkdir(exist_ok=True)
            self._downloads.start(key, name, path, self._reader.max_bytes(key[0]), self._timeout)

    def wait(self, keys: Iterable[Key]) -> None:
        """Wait for files, but no longer than :data:`FETCH_TRY` since they were asked for."""
        self._downloads.wait(keys, FETCH_TRY)

    def is_here(self, key: Key, name: str, round_: int) -> bool:
        """Return whether a requested file has arrived; log once if it has not.

        Parameters
        ----------
        key, name
            The file and its CID.
        round_
            The round that waits for it.

        Raises
        ------
        StoreUnreachable
            This node's store does not answer.
        TooLarge
            The file has more bytes than it may have.
        WrongContent
            The content does not match the CID.
        """
        download = self._downloads.take(key)
        if download is None:
            running = self._downloads.get(key)
            if running is not None and not running.received and running.idle >= FETCH_TRY:
                self._report(key, name, round_, "no bytes received yet")
            return False
        try:
            download.finish()
        except StoreUnreachable:
            self._arrivals[key].failed(download, counts=False)
            raise
        except (TooLarge, WrongContent):
            raise
        except StoreError as error:
            # Nobody has it, or what the hash names is no file: either may change while the round is open.
            self._arrivals[key].failed(download)
            self._report(key, name, round_, str(error))
            return False
        return True

    def is_missing(self, key: Key) -> bool:
        """Return whether a file was requested and no bytes of it arrived for the timeout."""
        arrival = self._arrivals.get(key)
        return arrival is not None and self._downloads.get(key) is None and arrival.is_missing(self._timeout)

    def share(self, key: Key) -> float:
        """Return the share of a file that was received, 0 to 1; 0 if its length is unknown."""
        download = self._downloads.get(key)
        return download.share if download else 0.0

    def keep(self, keys: Collection[Key]) -> None:
        """Cancel the downloads of all files except these."""
        self._downloads.keep(keys)

    def asked(self) -> list[Key]:
        """Return the files that were requested and not cancelled."""
        return list(self._arrivals)

    def forget(self, keys: Iterable[Key]) -> None:
        """Forget how long files have been missing, when they are no longer needed."""
        for key in keys:
            self._arrivals.pop(key, None)
            self._reported.discard(key)

    def _report(self, key: Key, name: str, round_: int, why: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            emit(events.UpdateMissing(round=round_, learner=key[0], cid=name, detail=why))
