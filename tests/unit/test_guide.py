"""What carries out the lab guide finds what is wrong with a page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.guide import GuideError, Step, follow, missing, steps

WAIT = """
import pathlib, time
try:
    print("here", flush=True)
    for _ in range(600):
        if pathlib.Path("go").exists():
            print("gone", flush=True)
        time.sleep(0.1)
except KeyboardInterrupt:
    pass
"""
"""Ends well by Ctrl-C, as a lab that stays does."""


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_blocks_and_what_one_sees_are_told_apart(tmp_path: Path) -> None:
    text = "# A\n\n```sh\necho a\n```\n\nprose\n\n```text\na\n```\n\n"
    text += '```sh title="on the hosts"\nvagrant up\n```\n\n```toml\nx = 1\n```\n'
    assert steps(page(tmp_path, text)) == [
        Step("page.md:3", "", "echo a", ["a"]),
        Step("page.md:13", "on the hosts", "vagrant up", []),
    ]


def test_a_block_that_nothing_would_carry_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GuideError, match=r"page\.md:1: nothing carries out a block called 'on the moon'"):
        steps(page(tmp_path, '```sh title="on the moon"\nls\n```\n'))


def test_output_that_comes_from_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GuideError, match="there is nothing that this would come from"):
        steps(page(tmp_path, "```text\na\n```\n"))


@pytest.mark.parametrize(
    ("expected", "first_missing"),
    [
        (["one 1", "two 2"], None),
        (["one …", "…", "… 3"], None),
        (["\u2026ne 1"], None),
        (["two 2", "one 1"], "one 1"),
        (["one"], "one"),
        (["one 1", "one 1"], "one 1"),
        (["on. 1"], "on. 1"),
    ],
)
def test_lines_come_in_their_order_and_dots_stand_for_any_text(
    expected: list[str], first_missing: str | None
) -> None:
    assert missing(expected, "one 1  \n\x1b[32mtwo 2\x1b[0m\nthree 3\n") == first_missing


def test_a_step_is_typed_into_the_shell_of_those_before(tmp_path: Path) -> None:
    before = [Step("a", "", "export A=1")]
    typed = [Step("b", "", "B=2\ncat"), Step("c", "", "echo $A $B", ["1 2"])]
    assert follow(tmp_path, before, typed) == 2


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (Step("page.md:1", "", "echo a", ["b"]), "there is no line\nb"),
        (Step("page.md:1", "", "false\necho a", ["a"]), "page.md:1: a command failed"),
    ],
)
def test_a_step_that_does_not_do_what_the_page_says_fails(tmp_path: Path, step: Step, problem: str) -> None:
    with pytest.raises(GuideError, match=problem):
        follow(tmp_path, [], [step])


def test_what_stays_in_the_foreground_is_looked_at_and_ended_by_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text(WAIT)
    typed = [
        Step("a", "first terminal", f"{sys.executable} wait.py", ["here"]),
        Step("b", "", "touch go"),
        Step("c", "first terminal", "", ["gone"]),
    ]
    assert follow(tmp_path, [], typed) == 3


def test_what_stays_in_the_foreground_and_ends_badly_fails(tmp_path: Path) -> None:
    with pytest.raises(GuideError, match="a: a command failed"):
        follow(tmp_path, [], [Step("a", "first terminal", "echo here; exit 3", ["there"])])
