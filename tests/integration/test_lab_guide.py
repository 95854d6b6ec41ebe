"""The lab guide's steps for one machine, typed as printed, in a fresh copy of the checkout, with real nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import checkout, guide

PAGES = sorted(page.name for page in guide.LAB.glob("*.md") if page.name != "README.md")
LONG = ("3-break-it.md", "4-lie-to-it.md", "5-nobody-waits.md")
"""Pages that take minutes each; what they show is tested elsewhere as well."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.nightly if page in LONG else ()) for page in PAGES]
)
def test_what_a_page_tells_to_type_gives_what_it_shows(page: str, tmp_path: Path) -> None:
    checkout.copy(tmp_path)
    done = guide.follow(tmp_path, guide.steps(guide.LAB / "README.md"), guide.steps(guide.LAB / page))
    assert done, "the page has no steps for one machine"
