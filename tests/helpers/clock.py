"""A clock for roles under test."""

from __future__ import annotations


class FakeClock:
    """Time passes only while a role sleeps, so no test depends on the speed of the machine."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
