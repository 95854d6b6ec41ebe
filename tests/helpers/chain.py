"""An embedded chain that is served to tests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from fl_node.chain.contract import Terms
from fl_node.nodes.dev_chain import EmbeddedChain, _Server
from tests.helpers.accounts import FUNDED

OPEN = Terms(learners=9, asynchronous=True)
"""Terms of contracts whose rounds never close, so that a test publishes what it likes."""


@contextlib.contextmanager
def served(chain: EmbeddedChain) -> Iterator[str]:
    """Serve a chain on loopback and give its URL."""
    with _Server(0, chain) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def rpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a chain on which the accounts of ``FUNDED`` own ether; tests deploy contracts of their own."""
    chain = EmbeddedChain(tmp_path_factory.mktemp("chain") / "blocks", [one.address for one in FUNDED])
    with served(chain) as url:
        yield url


@pytest.fixture
def serve() -> Iterator[Callable[[EmbeddedChain], str]]:
    """Return a function that serves a chain until the end of the test and gives its URL."""
    with contextlib.ExitStack() as stack:
        yield lambda chain: stack.enter_context(served(chain))


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """Return a function that gives a port of loopback on which nobody listens until the end of the test."""
    with contextlib.ExitStack() as stack:

        def give() -> int:
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            return int(held.getsockname()[1])

        yield give
