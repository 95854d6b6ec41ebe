"""Waiting for something to come true."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(ready: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Ask until the answer is yes, for up to ``timeout`` seconds; return the last answer."""
    deadline = time.monotonic() + timeout
    while not (answer := ready()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer
