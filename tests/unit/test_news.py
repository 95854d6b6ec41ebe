"""What a node reports by itself, over WebSocket; and waits that go on when it no longer does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from fl_node.chain.news import News
from tests.helpers.reporter import BLOCK, EVENT, HANG, TRANSACTION, Reporter

CONTRACT = "0xC"


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


def test_a_wait_ends_when_the_connection_does(node: Reporter, news: News, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_node.chain.news.FIRST_PAUSE", HANG)  # it stays lost while the test looks
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
