"""What a node reports by itself, over WebSocket; and waits that go on when it no longer does."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from fl_node.chain.news import News

HANG = 30.0
BLOCK, EVENT, TRANSACTION = "0xb", "0xe", "0xf"
CONTRACT = "0xC"


class Reporter:
    """A node that reports what a test wants."""

    def __init__(self, *, reports_transactions: bool = True) -> None:
        self.reports_transactions = reports_transactions
        self.requests: list[dict[str, object]] = []
        self.connections: list[ServerConnection] = []
        self.subscribed = threading.Semaphore(0)
        self.server: Server = serve(self._serve, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.socket.getsockname()[1]}"

    def report(self, subscription: str, result: object = None) -> None:
        params = {"subscription": subscription, "result": {} if result is None else result}
        self.connections[-1].send(json.dumps({"jsonrpc": "2.0", "method": "eth_subscription", "params": params}))

    def close(self) -> None:
        self.server.shutdown()
        for connection in self.connections:
            connection.close()
        self._thread.join(HANG)

    def _serve(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        try:
            for message in connection:
                request = json.loads(message)
                self.requests.append(request)
                name = {"newHeads": BLOCK, "logs": EVENT, "newPendingTransactions": TRANSACTION}[request["params"][0]]
                answer: dict[str, object] = {"result": name}
                if name == TRANSACTION and not self.reports_transactions:
                    answer = {"error": {"code": -32601, "message": "no such subscription"}}
                connection.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}))
                if name == EVENT:
                    self.subscribed.release()
        except ConnectionClosed:
            pass


@pytest.fixture
def node() -> Iterator[Reporter]:
    reporter = Reporter()
    yield reporter
    reporter.close()


@pytest.fixture
def news(node: Reporter) -> Iterator[News]:
    found = News(node.url, CONTRACT, ["0xt"])
    before = found.mark()
    found.start()
    assert found.wait_until_alive(HANG)
    assert found.wait(before, HANG)
    yield found
    found.close()


def test_blocks_and_the_contracts_events_are_subscribed_to(node: Reporter, news: News) -> None:
    assert [one["params"] for one in node.requests] == [
        ["newHeads"],
        ["logs", {"address": CONTRACT, "topics": [["0xt"]]}],
    ]


def test_a_block_ends_a_wait_for_anything_but_not_one_for_events(node: Reporter, news: News) -> None:
    before = news.mark()
    node.report(BLOCK)
    assert news.wait(before, HANG)
    assert not news.wait(before, 0.0, for_events=True)
    node.report(EVENT)
    assert news.wait(before, HANG, for_events=True)


def test_the_hash_of_the_newest_block_is_known_if_the_node_reports_it(node: Reporter, news: News) -> None:
    assert news.newest is None
    for header, known in (({"hash": "0xab"}, "0xab"), ({}, None), ("0xab", None), ({"hash": 5}, None)):
        before = news.mark()
        node.report(BLOCK, header)
        assert news.wait(before, HANG)
        assert news.newest == known


@pytest.fixture
def calls(node: Reporter) -> Iterator[queue.Queue[bytes]]:
    """The inputs of pending transactions to the contract that a node reports."""
    inputs: queue.Queue[bytes] = queue.Queue()
    news = News(node.url, CONTRACT, ["0xt"], inputs.put)
    news.start()
    assert news.wait_until_alive(HANG)
    yield inputs
    news.close()


def test_the_contracts_pending_transactions_are_reported(node: Reporter, calls: queue.Queue[bytes]) -> None:
    for to, data in (("0xd", "0x01"), (None, "0x02"), (CONTRACT.lower(), "0x03"), (CONTRACT, "0x04")):
        node.report(TRANSACTION, {"to": to, "input": data})
    assert (calls.get(timeout=HANG), calls.get(timeout=HANG)) == (b"\x03", b"\x04")


def test_a_node_that_reports_no_pending_transactions_reports_the_rest(node: Reporter) -> None:
    node.reports_transactions = False
    news = News(node.url, CONTRACT, ["0xt"], lambda _: None)
    news.start()
    assert news.wait_until_alive(HANG)
    before = news.mark()
    node.report(BLOCK)
    assert news.wait(before, HANG)
    news.close()


def test_a_ring_ends_every_wait(news: News) -> None:
    before = news.mark()
    threading.Timer(0.01, news.ring).start()
    assert news.wait(before, HANG, for_events=True)


def test_a_wait_ends_when_the_connection_does(node: Reporter, news: News) -> None:
    before = news.mark()
    threading.Timer(0.01, node.connections[-1].close).start()
    assert not news.wait(before, HANG)
    assert not news.is_alive


def test_a_node_that_is_distrusted_is_asked_to_report_again(node: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_node.chain.news.FIRST_PAUSE", 0.01)
    news = News(node.url, "0xc", [])
    news.start()
    assert node.subscribed.acquire(timeout=HANG)
    assert news.wait_until_alive(HANG)
    news.distrust()
    assert node.subscribed.acquire(timeout=HANG)
    assert news.wait_until_alive(HANG)
    news.close()


def test_a_node_that_reports_nothing_is_not_alive() -> None:
    news = News("http://127.0.0.1:1", "0xc", [])
    news.start()
    assert not news.wait(news.mark(), HANG)
    assert not news.is_alive
    news.close()
