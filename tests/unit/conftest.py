"""What several test files need: an embedded chain that is served, and unused ports."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from fl_node.nodes.dev_chain import EmbeddedChain
from tests.helpers.chain import rpc, served

__all__ = ["rpc"]

# A machine that trains beside the tests is no reason for one to fail.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


@pytest.fixture
def serve() -> Iterator[Callable[[EmbeddedChain], str]]:
    """Return a function that serves a chain until the end of the test and gives its URL."""
    with contextlib.ExitStack() as stack:
        yield lambda chain: stack.enter_context(served(chain))


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that gives a port of loopback that nobody listens on."""

    def give() -> int:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return int(one.getsockname()[1])

    return give
