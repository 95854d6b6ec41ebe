"""The live page's server: whom it answers, what it refuses, and what it pushes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fl_node import dashboard
from fl_node.dashboard import CANVAS, Page, Pushed, bind, content, is_own
from fl_node.errors import ConfigError
from fl_node.observer import Observer
from fl_node.predictor import Predictor
from fl_node.snapshot import NodeView, RoundView, RunView, Snapshot


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

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
        start = sent[0]
        found = {name.decode(): value.decode() for name, value in start["headers"]}  # type: ignore[attr-defined]
        return Answer(int(str(start["status"])), found, b"".join(part["body"] for part in sent[1:]))  # type: ignore[misc]

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
    for name in ("dashboard.html", "dashboard.css", "dashboard.js"):
        text = (Path(dashboard.__file__).parent / "static" / name).read_text()
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
    assert "the drawing shows nothing" in answer.error


def test_before_there_are_global_weights_the_page_says_so(ask: Ask) -> None:
    answer = ask("/predict", "POST", bytes([0, 255] * 392), **PIXELS)
    assert answer.status == 409
    assert answer.error == "there are no global weights yet"
    assert ask("/image").status == 409


# What is pushed

RUN = RunView("0xc", "QmPlan", 1, True)
SEEN = Snapshot(run=RUN, nodes=(NodeView("header"),), rounds=(RoundView(0), RoundView(1)))


def test_the_first_push_tells_everything() -> None:
    news = dict(Pushed().news(content(SEEN)))
    assert set(news) == {"reset", "run", "nodes", "blocks", "problem", "rounds"}
    assert [one["round"] for one in news["rounds"]] == [0, 1]


def test_afterwards_only_what_changed_is_told() -> None:
    pushed = Pushed()
    list(pushed.news(content(SEEN)))
    assert list(pushed.news(content(SEEN))) == []
    later = replace(SEEN, rounds=(RoundView(0), RoundView(1, absent=(2,)), RoundView(2)))
    ((name, rounds),) = pushed.news(content(later))
    assert name == "rounds"
    assert [one["round"] for one in rounds] == [1, 2]


def test_another_run_and_a_round_that_is_no_more_begin_anew() -> None:
    pushed = Pushed()
    list(pushed.news(content(SEEN)))
    fewer = dict(pushed.news(content(replace(SEEN, rounds=(RoundView(0),)))))
    assert set(fewer) == {"reset", "rounds"}
    other = dict(pushed.news(content(replace(SEEN, run=replace(RUN, contract="0xd")))))
    assert set(other) == {"reset", "run", "rounds"}


# Addresses


def test_a_visitor_who_comes_before_the_server_waits_for_it() -> None:
    with bind("127.0.0.1", 0) as listener:
        socket.create_connection(listener.getsockname(), 5.0).close()


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="should be an address"):
        bind("lab.example", 0)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        with pytest.raises(ConfigError, match="in use"):
            bind("127.0.0.1", one.getsockname()[1])
