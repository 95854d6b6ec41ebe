"""Waiting in tests, with a bound."""

from __future__ import annotations

from collections.abc import Callable

from fl_node.runtime.waiting import wait_until


def eventually(condition: Callable[[], bool], timeout: float) -> None:
    """Wait until a condition holds; it must within so many seconds, which no test should ever need."""
    assert wait_until(condition, timeout, 0.02), "it never came true"
