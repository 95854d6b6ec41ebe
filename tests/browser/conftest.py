"""Pages as people see them: Debian's Chromium, driven by Playwright, and axe-core for those who can't see them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

# No word to anybody but the page: without these Chromium looks for its maker's servers at every start. No graphics
# processor either, which this one would imitate.
FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
)
PATIENCE = 600_000
"""Milliseconds after which something has hung; the first prediction has to load TensorFlow."""
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, as the machine has it; for a module alone, as while Playwright has its loop none else runs."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "no Chromium is installed (Debian: apt-get install chromium)"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(FLAGS), timeout=PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own for each test; whatever it complains of on the console fails the test."""
    complaints: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE)
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    opened.close()
    assert not complaints, complaints


@pytest.fixture(scope="session")
def barriers() -> Callable[[Page], list[str]]:
    """Return a function that gives axe-core's serious findings on a page, a line each."""

    def find(page: Page) -> list[str]:
        violations = Axe().run(page).response["violations"]
        return [
            f"{violation['id']}: {violation['help']}: {node['html'][:200]}"
            for violation in violations
            if violation["impact"] in SERIOUS
            for node in violation["nodes"]
        ]

    return find
