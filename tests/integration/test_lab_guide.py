"""The lab guide's steps for one machine, typed as printed, in a fresh copy of the checkout, with real nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import checkout, guide

PAGES = sorted(page.name for page in guide.LAB.glob("*.md") if page.name != "README.md")
SOON = ("1-bring-it-up.md", "2-a-round-by-hand.md")
"""The others take minutes each; what they show is tested elsewhere as well."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page in SOON else pytest.mark.nightly) for page in PAGES]
)
def test_what_a_page_tells_to_type_gives_what_it_shows(page: str, tmp_path: Path) -> None:
    checkout.copy(tmp_path)
    done = guide.follow(tmp_path, guide.steps(guide.LAB / "README.md"), guide.steps(guide.LAB / page))
    assert done, "the page has no steps for one machine"
