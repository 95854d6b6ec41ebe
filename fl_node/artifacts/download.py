"""Downloads files in the background and reports their progress."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fl_node import events
from fl_node.artifacts.store import Progress, Store, silent
from fl_node.runtime.logs import emit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

REPORT_INTERVAL = 10.0
"""Seconds between two progress reports on a file."""
MAX_CONCURRENT = 4
"""Files that are fetched concurrently; files that have waited for :data:`TURN_TIMEOUT` are fetched as well."""
TURN_TIMEOUT = 2.0
"""Seconds that a file waits for its turn."""

Report = Callable[[int, int | None, float], None]
"""Called with the bytes received, the length of the file in bytes (if known), and the rate in bytes per second."""


class Meter:
    """Reports the progress of a file periodically; does not report a file that arrives within the first interval."""

    def __init__(self, report: Report, interval: float = REPORT_INTERVAL) -> None:
        self._report = report
        self._interval = interval
        self._reported_at = time.monotonic()
        self._reported_bytes = 0

    def __call__(self, received: int, length: int | None) -> None:
        """Report the progress if it is time."""
        now = time.monotonic()
        if now - self._reported_at >= self._interval:
            self._report(received, length, (received - self._reported_bytes) / (now - self._reported_at))
            self._reported_at, self._reported_bytes = now, received


def with_share(name: object, share: float) -> str:
    """Return a name with the share of its file that was received, such as ``2 (60% received)``, if that is known."""
    return f"{name} ({share:.0%} received)" if share else f"{name}"


def logged(name: str) -> Meter:
    """Return a meter that logs the progress of the file with this CID."""

    def report(received: int, length: int | None, rate: float) -> None:
        emit(events.FileFetching(cid=name, received=received, length=length, rate=round(rate)))

    return Meter(report)


_numbers = itertools.count()


class _Cancelled(Exception):
    """The download was cancelled."""


class Download:
    """The download of a file, in a daemon thread."""

    def __init__(self, store: Store, name: str, path: Path, max_bytes: int, timeout: float) -> None:
        self.name = name
        self.received = 0
        self.length: int | None = None
        self.began = self.arrived = time.monotonic()
        """The times of the request and of the last bytes received (monotonic seconds)."""
        self.ended = threading.Event()
        self._store = store
        self._path = path
        # A cancelled thread may still write, so each download has its own partial file.
        self._part = path.with_name(f"{path.name}.{next(_numbers)}.part")
        self._limits = max_bytes, timeout
        self._meter = logged(name)
        self._has_begun = False
        self._error: Exception | None = None
        self._cancelled = False

    def start(self, turn: threading.Semaphore, ended: Callable[[], None]) -> None:
        """Start the thread, which waits for its turn and calls ``ended`` at the end."""
        threading.Thread(target=self._run, args=(turn, ended), name=f"fetch {self.name}", daemon=True).start()

    def cancel(self) -> None:
        """Cancel the download and discard what it received."""
        self._cancelled = True

    def finish(self) -> None:
        """Move the complete file to its path, or raise the error of the download; call this after it has ended."""
        if self._error is not None:
            raise self._error
        self._part.replace(self._path)

    @property
    def share(self) -> float:
        """The share of the file that was received, in steps of 0.1; 0 if the length is unknown."""
        return (10 * self.received // self.length) / 10 if self.length else 0.0

    @property
    def idle(self) -> float:
        """Seconds since the last bytes arrived; 0 before its turn."""
        return time.monotonic() - self.arrived if self._has_begun else 0.0

    def _progress(self, received: int, length: int | None) -> None:
        if self._cancelled:
            raise _Cancelled
        self.received, self.length, self.arrived = received, length, time.monotonic()
        self._meter(received, length)

    def _run(self, turn: threading.Semaphore, ended: Callable[[], None]) -> None:
        has_turn = turn.acquire(timeout=TURN_TIMEOUT)
        self.arrived, self._has_begun = time.monotonic(), True
        try:
            if not self._cancelled:
                self._store.fetch(self.name, self._part, *self._limits, self._progress)
        except _Cancelled:
            pass
        except Exception as error:  # the caller handles it
            self._error = error
        finally:
            if has_turn:
                turn.release()
            if self._cancelled:
                with contextlib.suppress(OSError):
                    self._part.unlink(missing_ok=True)
            self.ended.set()
            ended()


Key = TypeVar("Key", bound=Hashable)


class Downloads(Generic[Key]):
    """The downloads of a role, by key.

    Parameters
    ----------
    store
        Where they come from.
    told
        Called whenever a download has ended, in its thread.
    """

    def __init__(self, store: Store, told: Callable[[], None] = lambda: None) -> None:
        self.ended = 0
        """Number of downloads that have ended; roles that wait for files watch it."""
        self._store = store
        self._told = told
        self._turn = threading.Semaphore(MAX_CONCURRENT)
        self._running: dict[Key, Download] = {}

    def get(self, key: Key) -> Download | None:
        """Return the download with this key, if it was started and not taken yet."""
        return self._running.get(key)

    def start(self, key: Key, name: str, path: Path, max_bytes: int, timeout: float) -> Download:
        """Start to download a file.

        Parameters
        ----------
        key
            Identifies the download in this object.
        name
            The file's CID.
        path
            Where the file is written.
        max_bytes
            The largest size allowed, in bytes.
        timeout
            Seconds without progress after which the download fails.
        """
        self._running[key] = download = Download(self._store, name, path, max_bytes, timeout)
        download.start(self._turn, self._count)
        return download

    def wait(self, keys: Iterable[Key], seconds: float) -> None:
        """Wait until these downloads have ended, for each at most so many seconds from its start."""
        for key in keys:
            if (download := self._running.get(key)) is not None:
                download.ended.wait(max(download.began + seconds - time.monotonic(), 0.0))

    def take(self, key: Key) -> Download | None:
        """Remove and return the download with this key if it has ended."""
        download = self._running.get(key)
        return self._running.pop(key) if download is not None and download.ended.is_set() else None

    def keep(self, keys: Collection[Key]) -> None:
        """Cancel all downloads except these."""
        for key in [key for key in self._running if key not in keys]:
            self._running.pop(key).cancel()

    def _count(self) -> None:
        self.ended += 1
        self._told()


class Arrival:
    """The progress of a file over repeated downloads.

    Parameters
    ----------
    began
        The time of the first request, in monotonic seconds.
    """

    RETRY = 1.0
    """Seconds between a failed download and the next one."""

    def __init__(self, began: float) -> None:
        self._progressed_at = began
        self._received = 0
        self._retry_at = 0.0

    def failed(self, download: Download, *, counts: bool = True) -> None:
        """Record a failed download; ``counts`` is false if this node's store was unreachable."""
        now = time.monotonic()
        if not counts:
            self._progressed_at = now
        elif download.received > self._received:
            self._received, self._progressed_at = download.received, download.arrived
        self._retry_at = now + self.RETRY

    def is_due(self) -> bool:
        """Return whether it is time to download again."""
        return time.monotonic() >= self._retry_at

    def is_missing(self, timeout: float) -> bool:
        """Return whether no bytes have arrived for so many seconds."""
        return time.monotonic() - self._progressed_at >= timeout


class ShownStore:
    """A store that shows the progress of a file on a terminal if it takes longer than ``interval`` seconds."""

    def __init__(self, store: Store, console: Console, interval: float = 1.0) -> None:
        self.address = store.address
        self._store = store
        self._console = console
        self._interval = interval

    def add(self, path: Path) -> str:
        """Store a file and return its CID."""
        return self._store.add(path)

    def remove(self, names: Iterable[str]) -> None:
        """Stop keeping the files with these CIDs on this node."""
        self._store.remove(names)

    def collect(self) -> None:
        """Free the disk space of files that this node does not keep."""
        self._store.collect()

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path`` and show the progress on the terminal.

        Parameters
        ----------
        file_cid, path, max_bytes, timeout, progress
            As for :meth:`fl_node.artifacts.store.Store.fetch`.
        """
        with contextlib.ExitStack() as shown:
            status: list[Status] = []

            def report(received: int, length: int | None, rate: float) -> None:
                if not status:
                    status.append(shown.enter_context(self._console.status("")))
                status[0].update(f"fetching {file_cid}: {events.size(received, length, rate)}")

            meter = Meter(report, self._interval)

            def show_and_report(received: int, length: int | None) -> None:
                meter(received, length)
                progress(received, length)

            self._store.fetch(file_cid, path, max_bytes, timeout, show_and_report)
