"""The end of processes that tests fork: as Python's, but nothing that is loaded is taken apart.

With TensorFlow that takes 0.4 s of processor time, ten times as long as the fork. All that a program can see comes
before: other threads have ended, what was registered with ``atexit`` has run, both outputs are flushed.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable

_codes: list[int] = []


def prepare() -> None:
    """Have later forks end so; call it before other imports, as what is registered first runs last."""
    atexit.register(_end)


def call(main: Callable[[], object]) -> None:
    """Call the main function of a program, in a forked process, and end as it does."""
    try:
        main()
        _codes.append(0)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            _codes.append(ended.code or 0)
        raise


def _end() -> None:
    if not _codes:
        return  # not a fork, or an end that Python has something to say of
    # If an output takes nothing, this raises, and Python ends as always.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(_codes[0] & 0xFF)
