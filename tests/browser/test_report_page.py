"""The report of a real run, as a person sees it who opens the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route

Barriers = Callable[[Page], list[str]]


@pytest.fixture
def path(lab_run: tuple[Path, dict[str, Any]]) -> Path:
    """The report that a lab has written."""
    folder, summary = lab_run
    assert summary["report"] == str(folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def report(page: Page, path: Path) -> Page:
    """The report in a browser, in which anything but the file itself that the page asks for fails the test."""
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            route.abort()

    page.route("**/*", answer)
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    assert asked == [path.as_uri()]
    return page


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")


def test_a_report_shows_the_run_and_loads_nothing(report: Page, lab_run: tuple[Path, dict[str, Any]]) -> None:
    assert report.title() == "Run tiny"
    accuracy = f"{100 * lab_run[1]['final']['accuracy']:.2f} %"
    assert accuracy in report.locator(".facts").inner_text()
    assert "Audit passed" in report.locator(".verdict").inner_text()
    titles = report.locator("svg[role=img] > title").all_text_contents()
    assert {title.split()[0] for title in titles} == {"Accuracy", "Loss", "When", "Gas", "Bytes", "Images"}
    assert report.locator("img").count() > 0
    assert report.evaluate("[...document.images].every(one => one.naturalWidth == 28)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_report_has_no_barrier(report: Page, barriers: Barriers, scheme: Any, width: int) -> None:
    report.emulate_media(color_scheme=scheme)
    report.set_viewport_size({"width": width, "height": 900})
    open_all(report)
    assert barriers(report) == []


def test_a_report_follows_the_colours_that_a_person_prefers(report: Page) -> None:
    def colours() -> list[str]:
        ink = "getComputedStyle(document.querySelector('svg.plot text')).fill"
        return list(report.evaluate(f"[getComputedStyle(document.body).backgroundColor, {ink}]"))

    report.emulate_media(color_scheme="light")
    light = colours()
    report.emulate_media(color_scheme="dark")
    assert [*light, *colours()] == ["rgb(255, 255, 255)", "rgb(27, 28, 30)", "rgb(21, 23, 26)", "rgb(233, 232, 228)"]


def test_a_narrow_page_does_not_scroll_sideways(report: Page) -> None:
    report.set_viewport_size({"width": 400, "height": 900})
    open_all(report)
    assert report.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_ancestry_opens_by_keyboard(report: Page, lab_run: tuple[Path, dict[str, Any]]) -> None:
    file = report.locator("details.file").last
    details = file.locator("dl")
    assert not details.is_visible()
    file.locator("summary").focus()
    report.keyboard.press("Enter")
    text = details.inner_text()
    for detail in (lab_run[1]["final"]["cid"], "bytes", "sender", "block", "transaction", "gas", "UTC"):
        assert detail in text, detail


def test_a_file_in_the_picture_leads_to_its_details(report: Page) -> None:
    details = report.locator("#global-2")
    assert not details.is_visible()
    report.locator("svg.tree a[href='#global-2']").click()
    details.wait_for(state="visible")


def test_on_paper_everything_is_light_and_rounds_are_open(report: Page) -> None:
    report.emulate_media(media="print", color_scheme="dark")
    assert report.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert report.locator("nav").is_hidden()
    assert report.locator("details.numbers table").first.is_visible()
