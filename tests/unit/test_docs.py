"""The documentation names only files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.checkout import PAGES, ROOT

FOLDERS = "ansible|contracts|docs|examples|fl_node|inventory|plans|requirements|roles|tests|vagrant"
MADE_BY_ITS_READER = {"inventory/lab.yml", "inventory/group_vars/testbed", "inventory/group_vars/testbed/vault.yml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    named = set(re.findall(rf"(?<![\w/.…-])(?:{FOLDERS})/[\w./-]*[\w/]", page.read_text()))
    gone = {name for name in named if not (ROOT / name).exists() and not re.search(r"[A-Z]{4}", Path(name).stem)}
    assert gone <= MADE_BY_ITS_READER


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_text_is_longer_than_120_characters(page: Path) -> None:
    blocks = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in blocks.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
    assert long == []
