"""The lab guide's steps for hosts, typed as printed, where a `vagrant up` brought hosts up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import guide

from .conftest import Testbed

pytestmark = pytest.mark.nightly

PAGES = [
    page for page in sorted(guide.LAB.glob("*.md")) if any(step.title == guide.HOSTS for step in guide.steps(page))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_on_hosts_gives_what_it_shows(provisioned: Testbed, page: Path) -> None:
    with guide.Shell(provisioned.root) as shell:
        for step in guide.steps(page):
            if step.title != guide.HOSTS:
                continue
            if step.commands == "vagrant up":
                # These hosts were brought up by it.
                assert provisioned.up is not None
                guide.check(step, provisioned.up.output)
            else:
                shell.do(step)
