"""The documentation's site in a browser: from a disk without a network, found through its search, on a phone too."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect


def pages(site: Path) -> list[Path]:
    """Return all pages but the one that a server shows for those that are not there."""
    return [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of the site behind a server on loopback."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_opens_from_a_disk_and_asks_nobody(site: Path, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    assert len(pages(site)) > 15
    for path in pages(site):
        page.goto(path.as_uri())
        expect(page.locator("article h1")).to_be_visible()
    strangers = {url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))}
    assert not strangers


def test_behind_a_server_it_asks_nobody_else(served: str, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{served}/index.html")
    page.goto(f"{served}/docs/testbed.html")
    assert len(asked) > 5
    assert not {url for url in asked if not url.startswith((served, "data:", "blob:"))}


@pytest.mark.parametrize("where", ["disk", "server"])
def test_search_finds_a_function_of_the_contract(site: Path, served: str, page: Page, where: str) -> None:
    page.goto((site / "index.html").as_uri() if where == "disk" else f"{served}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("setLocalWeight")
    expect(page.locator(".md-search-result__item").first).to_be_visible()
    assert "reference/contract.html" in page.locator(".md-search-result__item a").evaluate_all(
        "links => links.map(link => link.href).join(' ')"
    )


@pytest.mark.parametrize("name", ["index", "docs/lab/2-a-round-by-hand", "reference/commands", "reference/contract"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_has_no_serious_barriers(
    served: str, page: Page, barriers: Callable[[Page], list[str]], name: str, scheme: str
) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(f"{served}/{name}.html")
    assert not barriers(page)


def test_no_page_is_wider_than_a_phone(site: Path, page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    for path in pages(site):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path


def test_answers_are_folded_until_somebody_wants_them(site: Path, page: Page) -> None:
    page.goto((site / "docs" / "lab" / "2-a-round-by-hand.html").as_uri())
    answers = page.locator("details", has_text="Answers")
    expect(answers.locator("li").first).to_be_hidden()
    answers.locator("summary").click()
    expect(answers.locator("li").first).to_be_visible()
