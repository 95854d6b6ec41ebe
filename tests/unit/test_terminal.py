"""What is printed for people: nothing is cut, obeyed or lost, whatever text, width and encoding there is."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from fl_node.cli import app
from fl_node.cli.tables import sweep_table
from fl_node.experiments.baseline import Baseline
from fl_node.experiments.baseline import table as baseline_table
from fl_node.experiments.sweep import Figure
from fl_node.lab import show
from fl_node.lab.fault_model import Check
from fl_node.plan.loading import load as load_plan
from fl_node.plan.schema import Plan
from fl_node.report.contribution import RoundContribution
from fl_node.runtime import terminal
from fl_node.runtime.terminal import Console, Numbers, visible
from tests.helpers.checkout import ROOT


def printed(*what: object, width: int | None = None, encoding: str = "utf-8") -> str:
    """Return what is printed to a file, or to a terminal of a width."""
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding)
    console = Console(file=file, force_terminal=width is not None, width=width, color_system=None)
    console.print(*what)
    file.flush()
    return buffer.getvalue().decode(encoding)


def rows(learners: int, rounds: int = 3) -> list[list[str]]:
    """Return a table of rounds in which every number is another."""
    heads = ["round", *(f"learner {n}" for n in range(1, learners + 1)), "global"]
    return [heads, *([str(r), *(f"{r}{n:03}.25" for n in range(learners + 1))] for r in range(1, rounds + 1))]


@pytest.mark.parametrize("columns", [None, "20", "80"])
@pytest.mark.parametrize("learners", [1, 2, 6, 16, 128])
def test_where_there_is_no_terminal_a_table_is_as_wide_as_it_is(
    monkeypatch: pytest.MonkeyPatch, learners: int, columns: str | None
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    table = rows(learners)
    lines = printed(show.rounds_table(table)).splitlines()
    body = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert body == table[1:]


@pytest.mark.parametrize("width", [1, 8, 20, 40, 80, 200])
@pytest.mark.parametrize("learners", [1, 2, 6, 16, 128])
def test_on_a_terminal_a_table_that_is_too_wide_is_shown_in_parts(learners: int, width: int) -> None:
    table = rows(learners)
    text = printed(show.rounds_table(table), width=width)
    assert "…" not in text
    for row in table[1:]:
        for cell in row[1:]:
            assert text.count(cell) == 1
    for head in table[0][1:]:
        assert f" {head} " in text
    if width >= 40:
        assert max(map(len, text.splitlines())) <= width


PLAN: Plan = load_plan(ROOT / "plans" / "paper.toml")
ATTACKS = ("label_flip+scale:5", "sign_flip", "noise:0.5", "constant:1", "backdoor:0.25", "scale:7")
FIGURES = [Figure("norm_clipping:1.5", attack, 0.2, 0.98765, 0.0123, (0.97, 0.98), 0.4321) for attack in ATTACKS]
CONTRIBUTION = RoundContribution(1, 0, 36, {n: Fraction(n) for n in range(1, 9)})
TABLES: dict[str, tuple[object, list[str]]] = {
    "sweep": (sweep_table(FIGURES), ["98.77 ± 1.23 (backdoor 43%)", "backdoor:0.25, 20%"]),
    "contribution": (show.contribution_table([CONTRIBUTION], 1000), ["learner 8", "+0.80", "total", "+3.60"]),
    "shards": (show.shards_table({n: [6000] * 10 for n in range(1, 129)}), ["6000 █", "60000", "128"]),
    "baseline": (baseline_table(PLAN, Baseline([0.98765] * 25, 1.0)), ["98.77", "25"]),
    "checks": (show.checks_table("x", [Check("it holds", False, "123")]), ["FAIL", "123"]),
    "nodes": (
        Numbers([["node", "RPC"], ["header", "http://127.0.0.1:8545"]], justify="left", boxed=False),
        ["http://127.0.0.1:8545"],
    ),
}
"""Every table of numbers, with texts that must be in it whole."""


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [None, 20, 80])
def test_no_table_cuts_a_number(name: str, width: int | None) -> None:
    table, texts = TABLES[name]
    text = printed(table, width=width)
    assert "…" not in text
    for part in texts:
        assert part in text, text


HOSTILE = ["model[final].keras", "[bold]x[/bold]", "[/bold]", "[link=http://a]b[/link]", ":smile: :warning:", "[red"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_no_markup_and_no_emoji(text: str) -> None:
    table = Numbers([[text, "a"], ["b", text]], text, total=[text, ""])
    checks = show.checks_table(text, [Check(text, True, text)])
    for what in (text, terminal.styled(text, "bold"), table, checks, show.rounds_table([[text], [text]])):
        assert text in printed(what)
        assert text in printed(what, width=200)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\rb", "a\\rb"),
        ("\x9b31m", "\\x9b31m"),
        ("\x00\x08\x7f", "\\x00\\x08\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028\u2029\u2066\ud800\udcff", "\\u2028\\u2029\\u2066\\ud800\\udcff"),
        ("é ≥ 한 \t🙂\n", "é ≥ 한 \t🙂\n"),
    ],
    ids=ascii,
)
def test_what_a_terminal_would_obey_is_seen_instead(text: str, seen: str) -> None:
    assert visible(text) == seen
    for what in (text, terminal.styled(text, ""), Numbers([["a"], [text]]), show.checks_table(text, [])):
        for width in (None, 200):
            assert not set(printed(what, width=width)) & set("\x1b\r\x9b\x00\x08\x7f\x07\u202e\u2028\ud800")


def test_a_line_end_is_seen_where_a_text_is_one_line() -> None:
    assert visible("a\nb", lines=False) == "a\\nb"


# Whole commands, to whatever there is


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., tuple[str, str]]]:
    """Run a command with standard output and error in an encoding, and return what they got."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, encoding: str) -> tuple[str, str]:
        buffers = [io.BytesIO(), io.BytesIO()]
        streams = [io.TextIOWrapper(buffer, encoding=encoding, write_through=True) for buffer in buffers]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            patch.setattr(sys, "argv", ["fl-node", *arguments])
            patch.setattr("signal.signal", lambda *_: None)
            with pytest.raises(SystemExit):
                app.main()
        for stream in streams:
            stream.flush()
        out, err = (buffer.getvalue().decode(encoding) for buffer in buffers)
        return out, err

    yield command


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "shift_jis"])
@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["--help"], "Exit codes"),
        (["lab", "--help"], "Usage"),
        (["sweep", "--help"], "Usage"),
        (["lab", "x.toml", "--scenario", "list"], "header-killed"),
        (["plan", "check", "nowhere-\udcff[bold]×é.toml"], "[bold]"),
        (["plan", "check", "--json", str(ROOT / "plans/paper.toml")], '"rounds":5'),
        (["plan", "check", str(ROOT / "plans/paper.toml")], "is a valid plan"),
        (["no such command …"], "No such command"),
        (["lab", "--no-such-option-…"], "No such option"),
        (["status", "runs/[/bold]"], "runs/[/bold]"),
        (["doctor", "--rpc", "…", "--store", "[×]"], "["),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else None,
)
def test_every_encoding_gets_its_text(
    run: Callable[..., tuple[str, str]], arguments: list[str], seen: str, encoding: str
) -> None:
    out, err = run(*arguments, encoding=encoding)
    assert seen in out + err
    assert "Traceback" not in err


def test_signs_that_an_encoding_has_not_are_written_with_those_that_it_has(
    run: Callable[..., tuple[str, str]],
) -> None:
    _, err = run("plan", "check", "a × b ….toml", encoding="ascii")
    assert err.startswith("fl-node: plan a x b ....toml: ")
