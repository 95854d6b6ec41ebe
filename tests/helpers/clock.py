"""Clocks for roles under test."""

from __future__ import annotations

import time


class SkippingClock:
    """The time of roles in threads: it passes as ever, and a test can skip a part of it."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._skipped

    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)

    def skip(self, seconds: float) -> None:
        self._skipped += seconds


class FakeClock:
    """Time passes only while a role sleeps, so no test depends on the speed of the machine."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
