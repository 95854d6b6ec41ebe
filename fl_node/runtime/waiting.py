"""Waiting for something to come true."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(ready: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Poll a condition until it holds, and return whether it does.

    Parameters
    ----------
    ready
        Returns whether the condition holds.
    timeout
        Seconds to wait at most.
    pause
        Seconds between two calls.
    """
    deadline = time.monotonic() + timeout
    while not (answer := ready()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer
