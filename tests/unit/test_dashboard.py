"""The live page's server: whom it answers, what it refuses, and what it pushes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from fl_node.errors import ConfigError
from fl_node.monitor import reading
from fl_node.monitor import server as dashboard
from fl_node.monitor.inference import Predictor
from fl_node.monitor.observer import Observer
from fl_node.monitor.server import CANVAS, Page, Pushed, bind, content, is_own
from fl_node.monitor.state import MonitorState, NodeView, RoundView, RunView


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])


Ask = Callable[..., Answer]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Return a function that makes one request of a page that sees nothing."""
    app = Page(Observer({}, lambda: None, tmp_path), Predictor()).app(["lab.example"])

    def make(path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        told = {"host": "127.0.0.1:8090", **{name.replace("_", "-"): value for name, value in headers.items()}}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
        }
        sent: list[dict[str, object]] = []
        received = iter([{"type": "http.request", "body": body}])

        async def receive() -> dict[str, object]:
            for message in received:
                return dict(message)
            await asyncio.Event().wait()  # the client stays, and says no more
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
        start = sent[0]
        headers = {name.decode(): value.decode() for name, value in start["headers"]}  # type: ignore[attr-defined]
        return Answer(int(str(start["status"])), headers, b"".join(part["body"] for part in sent[1:]))  # type: ignore[misc]

    return make


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8090", "127.0.0.1", "localhost:8090", "LOCALHOST", "[::1]:8090", "10.0.0.5:8090", "lab.example"],
)
def test_addresses_and_names_of_ones_own_are_answered(ask: Ask, host: str) -> None:
    assert ask("/", host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1"]
)
def test_a_name_that_may_be_rebound_to_this_machine_is_refused(ask: Ask, host: str) -> None:
    assert not is_own(host, {"localhost", "lab.example"})
    assert ask("/state", host=host).status == 421


@pytest.mark.parametrize("path", ["/", "/state", "/metrics", "/dashboard.js", "/dashboard.css", "/icon.svg", "/none"])
def test_every_answer_says_that_nothing_from_elsewhere_belongs_to_the_page(ask: Ask, path: str) -> None:
    headers = ask(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_the_page_needs_nothing_but_its_own_server() -> None:
    for name in ("index.html", "dashboard.css", "dashboard.js"):
        text = (Path(dashboard.__file__).parents[1] / "static" / name).read_text()
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), name
        assert "innerHTML" not in text
        assert "style=" not in text


@pytest.mark.parametrize("path", ["/", "/state", "/metrics", "/events", "/image"])
def test_nothing_can_be_written(ask: Ask, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(path, method).status == 405


def test_another_sites_page_gets_no_answer(ask: Ask) -> None:
    assert ask("/state", sec_fetch_site="cross-site").status == 403
    assert ask("/predict", "POST", sec_fetch_site="same-site").status == 403
    assert ask("/", sec_fetch_site="cross-site").status == 200  # a link to the page
    assert ask("/state", sec_fetch_site="same-origin").status == 200


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://127.0.0.1:1", "http://127.0.0.1"])
def test_a_page_that_hides_where_it_is_from_gets_no_answer(ask: Ask, origin: str) -> None:
    assert ask("/state", origin=origin).status == 403
    assert ask("/predict", "POST", origin=origin).status == 403
    assert ask("/state", origin="http://127.0.0.1:8090").status == 200


PIXELS = {"content_type": "application/octet-stream"}


@pytest.mark.parametrize("size", [0, 1, 783, 28 * 28 + 1, CANVAS * CANVAS - 1, CANVAS * CANVAS + 1, 10_000_000])
def test_a_drawing_of_another_size_is_refused(ask: Ask, size: int) -> None:
    answer = ask("/predict", "POST", bytes(size), **PIXELS)
    assert answer.status == 413
    assert "280" in answer.error


def test_a_drawing_of_another_kind_is_refused(ask: Ask) -> None:
    assert ask("/predict", "POST", bytes(784), content_type="text/plain").status == 415


def test_an_empty_drawing_is_refused_with_its_reason(ask: Ask) -> None:
    answer = ask("/predict", "POST", bytes(CANVAS * CANVAS), **PIXELS)
    assert answer.status == 422
    assert "the drawing is blank" in answer.error


def test_before_there_are_global_weights_the_page_says_so(ask: Ask) -> None:
    answer = ask("/predict", "POST", bytes([0, 255] * 392), **PIXELS)
    assert answer.status == 409
    assert answer.error == "no global weights yet"
    assert ask("/image").status == 409


def test_of_weights_that_are_too_large_to_be_read_the_page_says_so(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Observer, "unread", reading.UNREAD)
    for answer in (ask("/predict", "POST", bytes([0, 255] * 392), **PIXELS), ask("/image")):
        assert answer.status == 409
        assert reading.TOO_LARGE in answer.error


# What is pushed

RUN = RunView("0xc", "QmPlan", 1, True)
SEEN = MonitorState(run=RUN, nodes=(NodeView("header"),), rounds=(RoundView(0), RoundView(1)))


def test_the_first_push_tells_everything() -> None:
    news = dict(Pushed().news(content(SEEN)))
    assert set(news) == {"reset", "run", "nodes", "blocks", "problem", "rounds"}
    assert [round_["round"] for round_ in news["rounds"]] == [0, 1]


def test_afterwards_only_what_changed_is_told() -> None:
    pushed = Pushed()
    list(pushed.news(content(SEEN)))
    assert list(pushed.news(content(SEEN))) == []
    later = replace(SEEN, rounds=(RoundView(0), RoundView(1, missing_learners=(2,)), RoundView(2)))
    ((name, rounds),) = pushed.news(content(later))
    assert name == "rounds"
    assert [round_["round"] for round_ in rounds] == [1, 2]


def test_another_run_and_a_round_that_is_no_more_begin_anew() -> None:
    pushed = Pushed()
    list(pushed.news(content(SEEN)))
    fewer = dict(pushed.news(content(replace(SEEN, rounds=(RoundView(0),)))))
    assert set(fewer) == {"reset", "rounds"}
    news = dict(pushed.news(content(replace(SEEN, run=replace(RUN, contract="0xd")))))
    assert set(news) == {"reset", "run", "rounds"}


# Addresses


def test_a_visitor_who_comes_before_the_server_waits_for_it() -> None:
    with bind("127.0.0.1", 0) as listener:
        socket.create_connection(listener.getsockname(), 5.0).close()


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="should be an IP address"):
        bind("lab.example", 0)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConfigError, match="in use"):
            bind("127.0.0.1", listener.getsockname()[1])


# Who keeps others out


class Served:
    """The page on loopback, and connections to it."""

    def __init__(self, page: Page, port: int, stack: contextlib.ExitStack) -> None:
        self.page = page
        self._port = port
        self._stack = stack

    def connect(self, content: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
        there = ("127.0.0.1", self._port)
        client = self._stack.enter_context(socket.create_connection(there, 10.0, source_address=(source, 0)))
        client.sendall(content)
        return client

    def ask(self, method: str = "GET", path: str = "/state") -> bytes:
        """Return the first line of an answer."""
        with self.connect(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()) as client:
            return client.makefile("rb").readline().strip()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    page = Page(Observer({}, lambda: None, tmp_path), Predictor())
    server = dashboard.server(page, [])
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        stack.callback(thread.join, 30.0)
        stack.callback(setattr, server, "should_exit", True)
        stack.callback(setattr, page, "ending", True)
        yield Served(page, listener.getsockname()[1], stack)


HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\nContent-Length: 784\r\n"
)
UNFINISHED = [b"", b"GET / HT", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + bytes(783)]
EVENTS = b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def test_unfinished_requests_keep_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "CONNECTIONS", 40)
    held = [served.connect(UNFINISHED[number % len(UNFINISHED)]) for number in range(2 * dashboard.CONNECTIONS)]
    for _ in range(3):
        assert served.ask() == b"HTTP/1.1 200 OK"
    assert held


@pytest.mark.parametrize("content", UNFINISHED, ids=["nothing", "a line", "a head", "no body", "a part of a body"])
def test_a_request_that_does_not_come_in_time_ends_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(dashboard, "PATIENCE", 0.05)
    client = served.connect(content)
    with contextlib.suppress(ConnectionError):
        assert client.recv(1) == b""


def test_no_more_pages_are_open_than_may_be_and_those_that_close_make_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "STREAMS", 5)
    clients = [served.connect(EVENTS) for _ in range(15)]  # all at once: nobody waits for an answer
    lines = [client.makefile("rb").readline() for client in clients]
    assert sorted(lines) == [b"HTTP/1.1 200 OK\r\n"] * 5 + [b"HTTP/1.1 503 Service Unavailable\r\n"] * 10
    assert served.ask("HEAD", "/events") == b"HTTP/1.1 200 OK"  # and holds no place
    for client in clients:
        client.shutdown(socket.SHUT_RDWR)
        client.close()
    deadline = time.monotonic() + 600
    while served.page._streams and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.page._streams == []
    assert served.connect(EVENTS).makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of loopback")
def test_one_address_with_all_pages_makes_room_for_another_until_both_have_as_many(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "STREAMS", 4)

    def answer(source: str) -> tuple[bytes, BinaryIO]:
        lines = served.connect(EVENTS, source).makefile("rb")
        return lines.readline().split()[1], lines

    greedy = [answer("127.0.0.1") for _ in range(5)]
    assert [code for code, _ in greedy] == [b"200"] * 4 + [b"503"]
    assert [answer("127.0.0.2")[0] for _ in range(3)] == [b"200", b"200", b"503"]
    assert answer("127.0.0.1")[0] == b"503"
    for _, lines in greedy[:2]:
        assert b"0\r\n" in lines  # the last chunk
    assert Counter(stream.address for stream in served.page._streams) == {"127.0.0.1": 2, "127.0.0.2": 2}


@pytest.mark.parametrize(
    "content",
    [
        *UNFINISHED,
        EVENTS,
        b"\x16\x03\x01 what TLS sends",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        EVENTS + b"no request\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST /state HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n",
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_what_breaks_off_or_is_no_request_is_no_error_of_the_page(
    served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    for reset in (True, False):
        client = served.connect(content)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert served.ask() == b"HTTP/1.1 200 OK"
    assert served.ask() == b"HTTP/1.1 200 OK"
    assert capfd.readouterr().err == ""
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_text_with_half_a_character_is_told(ask: Ask) -> None:
    assert json.loads(dashboard._sorry(400, "\ud800 é").body) == {"error": "\ud800 é"}
