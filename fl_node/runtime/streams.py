"""Standard input, output and error, made fit for a program that is started in any way.

A stream that was closed (``>&-``) must not become the number of the next file that is opened, and an error must say
that it was standard output that could not be written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

OUTPUT = "standard output"
"""What an ``OSError`` of standard output has as its file name."""


class _ClosedInput(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def readinto(self, _buffer: Any) -> int:
        raise OSError(errno.EBADF, "standard input is closed")


# At the level of text: were a raw stream's method Python's, a signal could interrupt it after the write, and the
# same bytes would be written again.
class _Output(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        with _named():
            return super().write(text)

    def flush(self) -> None:
        with _named():
            super().flush()


class _Errors(io.TextIOWrapper):
    """What can't be written is lost: there is nowhere to say so, and the work goes on."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = OUTPUT
        if error.errno == errno.EBADF:
            error.strerror = "it is closed"
        raise


def prepare() -> None:
    """Open what was closed, and name standard output in the errors of writing to it.

    Reading from a standard input that was closed, and writing to a standard output that was, are errors. What can't
    be written to standard error is lost. Streams that something else has replaced stay as they are.
    """
    # The wrong way round for the first two, so that using them fails as it would have.
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(_ClosedInput()))  # type: ignore[misc]
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _open(_Output, 1, sys.stdout)  # type: ignore[misc]
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _open(_Errors, 2, sys.stderr)  # type: ignore[misc]


def finish() -> None:
    """Drop what standard output did not take, so that Python does not try again at its end and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _open(kind: type[io.TextIOWrapper], number: int, like: Any) -> io.TextIOWrapper:
    encoding, errors, by_line = "utf-8", "backslashreplace", True
    if like is not None:
        encoding, errors, by_line = like.encoding, like.errors, like.line_buffering
    raw = io.FileIO(number, "w", closefd=False)
    return kind(io.BufferedWriter(raw), encoding, errors, line_buffering=by_line)
