"""Numbers that people write in options."""

from __future__ import annotations

import pytest

from fl_node.runtime import numerals

NONE = [
    "",
    " ",
    "x",
    " 1",
    "1 ",
    "1\n",
    "1_0",
    "0x1",
    "\u0663",
    "\u00b2",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "--1",
    "1,5",
]


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-3", -3), ("+7", 7), ("007", 7), ("9" * 15, 10**15 - 1)])
def test_a_whole_number_is_digits_with_or_without_a_sign(text: str, number: int) -> None:
    assert numerals.whole(text) == number


@pytest.mark.parametrize("text", [*NONE, "1.0", "1e3", "9" * 16, "9" * 5000])
def test_what_only_python_takes_for_a_whole_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        numerals.whole(text)


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0.0), (".5", 0.5), ("5.", 5.0), ("-1e-3", -0.001), ("+2E2", 200.0), ("1e-400", 0.0)]
)
def test_a_number_is_decimal(text: str, number: float) -> None:
    assert numerals.real(text) == number


@pytest.mark.parametrize("text", [*NONE, ".", "e5", "1e", "9" * 5000])
def test_what_is_no_finite_decimal_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        numerals.real(text)
