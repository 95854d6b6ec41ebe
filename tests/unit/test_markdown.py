"""Texts in Markdown: none of them is more than a text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.experiments.sweep import Figure, write
from fl_node.plan.schema import Plan
from fl_node.runtime.markdown import Markdown, block, code, escape, grid
from fl_node.runtime.templating import render

SIGNS = "".join(chr(n) for n in range(33, 127) if not chr(n).isalnum())


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("<script>", "\\<script\\>"),
        ("**a** _b_ ~~c~~", "\\*\\*a\\*\\* \\_b\\_ \\~\\~c\\~\\~"),
        ("![a](http://b)", "!\\[a\\](http\\://b)"),
        ("https://a.b www.a.b", "https\\://a.b www\\.a.b"),
        ("a | b", "a \\| b"),
        ("`a` \\", "\\`a\\` \\\\"),
        ("&lt; & &#60; AT&T", "\\&lt; & \\&\\#60; AT&T"),
        ("$x$", "\\$x\\$"),
        ("# a", "\\# a"),
        ("- a", "\\- a"),
        ("+ a", "\\+ a"),
        ("1. a", "1\\. a"),
        ("12) a", "12\\) a"),
        ("---", "\\---"),
        ("===", "\\==="),
        ("-0.05 1.5 +3", "-0.05 1.5 +3"),
        ("a\n\n    b\tc", "a b c"),
        ("\x1b[0m\r", "\\\\x1b\\[0m\\\\r"),
        ("1\u202f000 é (99 %)", "1\u202f000 é (99 %)"),
        (1.5, "1.5"),
        (Markdown("**a**"), "**a**"),
    ],
    ids=ascii,
)
def test_a_text_stands_as_it_is(text: object, written: str) -> None:
    assert escape(text) == written


@given(text=st.text(max_size=20) | st.text(SIGNS + " \n", max_size=20))
def test_no_sign_that_has_a_meaning_stays_without_its_backslash(text: str) -> None:
    written = escape(text)
    assert "\n" not in written
    meant = re.sub(r"\\.", "", written)
    assert not re.search(r"[`*_\[\]<>#|~$]|://", meant)


@pytest.mark.parametrize(
    ("text", "written"), [("QmPlan", "`QmPlan`"), ("0x12", "`0x12`"), ("", ""), ("a`|", "a\\`\\|")]
)
def test_what_is_no_hash_is_no_code(text: str, written: str) -> None:
    assert code(text) == written


def test_a_block_ends_where_it_should() -> None:
    assert block("a\n```\nb", "json") == "````json\na\n```\nb\n````"


def test_a_table_keeps_its_columns_whatever_is_in_its_cells() -> None:
    lines = grid([["a|b", "c\nd"], ["|", "\n| x |"]], left=[1]).split("\n")
    assert lines == ["| a\\|b | c d |", "|---:|---|", "| \\| |  \\| x \\| |"]


def test_values_in_a_template_are_escaped_unless_they_are_markdown() -> None:
    plan = Plan.model_validate({"name": "a_b", "rounds": 1, "learners": 2, "data": {"name": "digits"}})
    context = {"plan": plan, "seeds": [1], "heads": ["<b>|x"], "rows": [{"rule": "a|b", "cells": [None]}]}
    text = render("sweep.md.j2", **context)
    assert text.startswith("# a\\_b: rules under attack\n")
    assert text.endswith("| rule | \\<b\\>\\|x |\n|---|---:|\n| a\\|b | – |\n")


def test_a_matrix_has_a_row_for_each_rule(tmp_path: Path) -> None:
    plan = Plan.model_validate({"name": "a", "rounds": 1, "learners": 2, "data": {"name": "digits"}})
    write(tmp_path, plan, [Figure("trimmed_mean", "none", 0.0, 0.5, 0.1, (0.4, 0.6), None)], [1, 2])
    assert "| trimmed\\_mean | 50.00 ± 10.00 |\n" in (tmp_path / "sweep.md").read_text(encoding="utf-8")
