"""Temporary folders that do not outlive their process for long, even if it was killed.

A process that ends by itself removes its folder. One that was killed (``kill -9``) can't; then the next process that
needs a folder removes it. A lock on a file in the folder shows whether the owner lives: the kernel releases it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "fl-node-"
PREFIXES = (PREFIX, "fl-sweep-")
LOCK = ".owner"
"""The file that the owner of a folder has locked. A folder without it is never removed: it may hold a result."""


@contextlib.contextmanager
def folder(prefix: str = PREFIX, parent: Path | None = None) -> Iterator[Path]:
    """Give a new temporary folder, after those of dead processes are removed.

    Parameters
    ----------
    prefix
        How its name begins.
    parent
        Where it is; in the folder for temporary files if None.
    """
    _remove_abandoned(Path(tempfile.gettempdir()) if parent is None else parent, (*PREFIXES, prefix))
    # The lock is released when the folder is gone.
    with contextlib.ExitStack() as owned, tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        path, unlocked = Path(name), Path(name) / f"{LOCK}.new"
        file = owned.enter_context(unlocked.open("wb"))
        with contextlib.suppress(OSError):  # a file system without locks: then the folder stays
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(path / LOCK)  # only now, so that nobody takes the folder for abandoned
        yield path


def _remove_abandoned(parent: Path, prefixes: tuple[str, ...]) -> None:
    """Remove the temporary folders in a folder that belong to this user and whose owners are dead."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefixes):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the owner lives
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
