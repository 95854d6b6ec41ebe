"""Words around numbers in messages."""

from __future__ import annotations

import pytest

from fl_node.wording import counted


@pytest.mark.parametrize(("count", "text"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds")])
def test_a_number_has_the_noun_that_fits_it(count: int, text: str) -> None:
    assert counted(count, "round") == text


def test_a_noun_may_have_a_plural_of_its_own() -> None:
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(2, "entry", "entries") == "2 entries"
