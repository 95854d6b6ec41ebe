"""Files that arrive while a role does other things, and how far they are."""

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

TELL_EVERY = 10.0
"""Seconds between two words on one file."""
AT_A_TIME = 4
"""Files that are fetched at a time, unless they take long: one waits for the swarm while another is written."""
TURN = 2.0
"""Seconds after which a file need not wait any longer for the others."""

Tell = Callable[[int, int | None, float], None]
"""Called with the bytes that are there, those that the file has (if known), and bytes a second."""


class Meter:
    """Tells now and then how far a file is; nothing of one that comes at once."""

    def __init__(self, tell: Tell, every: float = TELL_EVERY) -> None:
        self._tell = tell
        self._every = every
        self._began = self._told = time.monotonic()
        self._before = 0

    def __call__(self, received: int, length: int | None) -> None:
        """Take note of what has arrived."""
        now = time.monotonic()
        if now - self._told >= self._every:
            self._tell(received, length, (received - self._before) / (now - self._told))
            self._told, self._before = now, received


def with_share(name: object, share: float) -> str:
    """Return a name with how much of its file is here, such as ``2 (60% is here)``, where that is known."""
    return f"{name} ({share:.0%} is here)" if share else f"{name}"


def logged(name: str) -> Meter:
    """Return a meter that logs how far the file with this CID is."""

    def tell(received: int, length: int | None, rate: float) -> None:
        emit(events.FileFetching(cid=name, received=received, length=length, rate=round(rate)))

    return Meter(tell)


_numbers = itertools.count()


class _Cancelled(Exception):
    """Nobody wants the file any more."""


class Download:
    """One file on its way, in a thread of its own that never outlives the process."""

    def __init__(self, store: Store, name: str, path: Path, max_bytes: int, timeout: float) -> None:
        self.name = name
        self.received = 0
        self.length: int | None = None
        self.began = self.arrived = time.monotonic()
        """When it was asked for, and when the last of it came (monotonic seconds)."""
        self.ended = threading.Event()
        self._store = store
        self._path = path
        # A thread that was cancelled may still write; it shares its file with nobody.
        self._part = path.with_name(f"{path.name}.{next(_numbers)}.part")
        self._limits = max_bytes, timeout
        self._meter = logged(name)
        self._has_begun = False
        self._error: Exception | None = None
        self._cancelled = False

    def start(self, turn: threading.Semaphore, ended: Callable[[], None]) -> None:
        """Begin, when it is its turn, and call ``ended`` at the end."""
        threading.Thread(target=self._run, args=(turn, ended), name=f"fetch {self.name}", daemon=True).start()

    def cancel(self) -> None:
        """Give up; what arrives is thrown away."""
        self._cancelled = True

    def finish(self) -> None:
        """Put the file in its place, or raise what went wrong; only after it has ended."""
        if self._error is not None:
            raise self._error
        self._part.replace(self._path)

    @property
    def share(self) -> float:
        """The share that is here, in steps of 0.1; 0 where nobody knows."""
        return (10 * self.received // self.length) / 10 if self.length else 0.0

    @property
    def idle(self) -> float:
        """Seconds for which nothing has come."""
        return time.monotonic() - self.arrived if self._has_begun else 0.0

    def _progress(self, received: int, length: int | None) -> None:
        if self._cancelled:
            raise _Cancelled
        self.received, self.length, self.arrived = received, length, time.monotonic()
        self._meter(received, length)

    def _run(self, turn: threading.Semaphore, ended: Callable[[], None]) -> None:
        has_turn = turn.acquire(timeout=TURN)
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
    """The files that a role waits for, each under a key."""

    def __init__(self, store: Store) -> None:
        self.ended = 0
        """How many have ended; a wait for a file watches this."""
        self._store = store
        self._turn = threading.Semaphore(AT_A_TIME)
        self._running: dict[Key, Download] = {}

    def get(self, key: Key) -> Download | None:
        """Return what was started under a key and not taken yet."""
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
        """Wait until files have ended, but for none longer than so many seconds after it was started."""
        for key in keys:
            if (download := self._running.get(key)) is not None:
                download.ended.wait(max(download.began + seconds - time.monotonic(), 0.0))

    def take(self, key: Key) -> Download | None:
        """Return a download that has ended, and forget it."""
        download = self._running.get(key)
        return self._running.pop(key) if download is not None and download.ended.is_set() else None

    def keep(self, keys: Collection[Key]) -> None:
        """Give up all files but these."""
        for key in [key for key in self._running if key not in keys]:
            self._running.pop(key).cancel()

    def _count(self) -> None:
        self.ended += 1


class Arrival:
    """Whether a file that is asked for again and again still arrives.

    Parameters
    ----------
    began
        When it was first asked for, in monotonic seconds.
    """

    RETRY = 1.0
    """Seconds until a file is asked for again that could not be had."""

    def __init__(self, began: float) -> None:
        self._last = began
        self._received = 0
        self._again = 0.0

    def failed(self, download: Download, *, counts: bool = True) -> None:
        """Take note that a download failed; it does not count where this node's own store was away."""
        now = time.monotonic()
        if not counts:
            self._last = now
        elif download.received > self._received:
            self._received, self._last = download.received, download.arrived
        self._again = now + self.RETRY

    def is_due(self) -> bool:
        """Return whether to ask again."""
        return time.monotonic() >= self._again

    def is_missing(self, timeout: float) -> bool:
        """Return whether nothing has arrived for so many seconds."""
        return time.monotonic() - self._last >= timeout


class ShownStore:
    """A store that shows on a terminal how far a file is that takes longer than a moment."""

    def __init__(self, store: Store, console: Console, every: float = 1.0) -> None:
        self.address = store.address
        self._store = store
        self._console = console
        self._every = every

    def add(self, path: Path) -> str:
        """Store a file and return its CID."""
        return self._store.add(path)

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path`` and show the progress on the terminal.

        Parameters
        ----------
        file_cid, path, max_bytes, timeout, progress
            As for :meth:`fl_node.artifacts.store.Store.fetch`.
        """
        with contextlib.ExitStack() as shown:
            status: list[Status] = []

            def tell(received: int, length: int | None, rate: float) -> None:
                if not status:
                    status.append(shown.enter_context(self._console.status("")))
                status[0].update(f"fetching {file_cid}: {events.size(received, length, rate)}")

            meter = Meter(tell, self._every)

            def both(received: int, length: int | None) -> None:
                meter(received, length)
                progress(received, length)

            self._store.fetch(file_cid, path, max_bytes, timeout, both)
