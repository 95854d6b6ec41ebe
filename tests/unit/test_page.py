"""The page of a run: what it says, that nothing in it comes to life, and that it stays small."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import cid
from fl_node.audit.result import Audit, Finding
from fl_node.models.error_analysis import analyze_errors
from fl_node.plan.schema import Plan
from fl_node.report import context, writer
from fl_node.report.collect import Cost, Entry, Member, Result, RoundResult
from fl_node.report.turns import Turn
from fl_node.report.turns import turns as turns_of

START = 1_700_000_000
HOSTILE = (
    "</pre></style><script>alert(1)</script><img src=http://evil.invalid/x onerror=alert(1)>|`*[a](javascript:x)"
)


def plan(**settings: Any) -> Plan:
    common = {"name": "small", "rounds": 2, "learners": 2, "data": {"name": "digits"}, "model": {"name": "mlp"}}
    return Plan.model_validate(common | settings)


def entry(text: str, time: int | None = None, accuracy: float | None = 0.9) -> Entry:
    return Entry(
        cid.of_bytes(text.encode()),
        7,
        "0x" + "ab" * 32,
        accuracy,
        None if accuracy is None else 1 - accuracy,
        100,
        bytes=1000,
        sender="0x" + "cd" * 20,
        gas=53_000,
        time=None if time is None else START + time,
    )


def run(plan: Plan, rounds: int, *, seconds: int = 10, rejected: dict[tuple[int, int], str] | None = None) -> Result:
    """A synchronous run in which learner n publishes n seconds after a round began, and a round takes ``seconds``."""
    closed = []
    for number in range(rounds):
        begin = number * seconds
        members = []
        for node_id in range(1, plan.learners + 1):
            reason = (rejected or {}).get((number, node_id))
            file = entry(f"{number} {node_id}", begin + node_id)
            share = None if reason else 1 / plan.learners
            members.append(Member(node_id, file, share, None if reason else number, reason))
        closed.append(
            RoundResult(
                number,
                {member.node_id: member.entry for member in members},
                entry(f"global {number}", begin + seconds, 0.8 + number / 1000),
                {member.node_id: member.reason for member in members if member.reason},
                (),
                tuple(members),
            )
        )
    learners = {n: f"0x{n:040x}" for n in range(1, plan.learners + 1)}
    costs = tuple(Cost(r, plan.learners, 1000, 500, 4000, 2000) for r in range(rounds))
    initial = entry("initial", 0, 0.1)
    return Result(plan, "Qm", "0xc", "0xh", learners, rounds, initial, tuple(closed), {}, costs=costs)


class Tags(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._data: list[str] = []
        self.feed(text)
        self.close()
        self.text = "".join(self._data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self._data.append(data)

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]


def write(folder: Path, result: Result, audit: Audit | None = None, name: str = "small", **more: Any) -> Tags:
    audit = audit or Audit("0xc", rounds=len(result.rounds), files=9)
    path = writer.write(folder, name, result, audit, more.pop("versions", {}), **more)
    return Tags(path.read_text())


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib is not installed; for tests of a page's text, since drawing takes most of the time."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a)
    )


# What it says


@pytest.mark.usefixtures("without_matplotlib")
def test_the_headline_says_how_a_run_ended(tmp_path: Path) -> None:
    text = write(tmp_path, run(plan(), 2)).text
    for shown in ("Run small", "ended after 2 rounds", "Audit passed", "80.10 %", "none left out"):
        assert shown in text, shown
    assert "FAILED" not in text


def test_a_run_that_goes_on_says_its_round_and_shows_who_has_published(tmp_path: Path) -> None:
    result = replace(run(plan(), 1), open_round={2: entry("open", 14)})
    text = write(tmp_path, result).text
    for shown in (
        "is in progress, in round 1 of 2",
        "accuracy so far",
        "Round 1 in progress: 1 local file so far",
        "80.00 %",
    ):
        assert shown in text, shown
    assert turns_of(result)[-1] == Turn(2, 1, 1, 10, 14, None, None, Member(2, entry("open", 14), began=1))


def test_a_run_that_has_not_begun_has_a_page_too(tmp_path: Path) -> None:
    result = replace(run(plan(), 0), initial=None, costs=())
    text = write(tmp_path, result).text
    assert "No round is closed yet" in text
    assert "No learner has published yet" in text


@pytest.mark.usefixtures("without_matplotlib")
def test_what_an_audit_found_is_told_at_the_top_and_in_full(tmp_path: Path) -> None:
    audit = Audit("0xc", rounds=2, findings=[Finding(1, "learner 1", "samples", "is 5, should be 30000")])
    audit.notes.append("round 0: learner 2 published while it closed")
    text = write(tmp_path, run(plan(), 2), audit).text
    assert "Audit FAILED" in text
    assert "1 finding, the first: round 1, learner 1" in text
    assert "round 1, learner 1, samples: is 5, should be 30000" in text
    assert "round 0: learner 2 published while it closed" in text
    assert "bit for bit" not in text


def test_a_file_that_could_not_be_read_is_shown_with_its_problem(tmp_path: Path) -> None:
    result = run(plan(), 1)
    bad = replace(result.rounds[0].result, problem="not a safetensors file", accuracy=None, loss=None)
    result = replace(result, rounds=(replace(result.rounds[0], result=bad, members=()),))
    text = write(tmp_path, result).text
    assert "not a safetensors file" in text
    assert "can't be read" in text
    assert "not measured" in text
    assert "Learner 1" in text  # what was published is shown all the same


def test_rejected_and_missing_learners_are_named_with_the_reason(tmp_path: Path) -> None:
    result = run(plan(), 2, rejected={(1, 2): "tensor a has values that are not finite"})
    first = replace(result.rounds[0], members=result.rounds[0].members[:1], missing_learners=(2,))
    result = replace(result, rounds=(first, result.rounds[1]))
    assert [(left.round, left.node_id, left.what) for left in context.left_out(result)] == [
        (0, 2, "missing"),
        (1, 2, "rejected"),
    ]
    text = write(tmp_path, result).text
    assert "rejected: tensor a has values that are not finite" in text
    assert "2 times left out" in text
    assert "| 1 | 2 | rejected | tensor a has values that are not finite |" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("without_matplotlib")
def test_without_a_data_set_it_says_so(tmp_path: Path) -> None:
    text = write(tmp_path, run(plan(), 1)).text
    assert "No confusion matrix and no images: the data set digits was not available" in text
    assert "The distribution of labels is not shown" in text


@pytest.mark.usefixtures("without_matplotlib")
def test_of_a_module_of_ones_own_it_shows_no_images_and_says_why(tmp_path: Path) -> None:
    own = {"custom": {"module": "tabular", "sha256": "0" * 64}, "model": {"name": "custom"}}
    data = {"name": "custom", "partition": "module", "samples": [7, 12], "test": 9, "classes": 2}
    text = write(tmp_path, run(plan(**own, data=data), 1)).text
    assert "19 samples of module tabular partitioned by the plan's module, model custom" in text
    assert "the samples of a custom module need not be images" in text
    assert "The distribution of labels is not shown: only the module determines it" in text
    assert "the samples of a custom module need not be images" in (tmp_path / "report.md").read_text()


def test_mistakes_and_labels_are_shown_where_the_data_set_is_at_hand(tmp_path: Path) -> None:
    probabilities = np.eye(10, dtype=np.float32)[[1, 1, 7]]
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([1, 1, 9])
    analysis = analyze_errors(1, lambda _: probabilities, images, labels)
    page = write(tmp_path, run(plan(), 1), error_analysis=analysis, split={1: [3] * 10, 2: [4] * 10})
    assert "misclassify 1 of 3 test images" in page.text
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["Test image 2, a 9"]
    assert "predicted as 7" in page.text
    assert "|  | 0 | 1 | 2 |" in (tmp_path / "report.md").read_text()
    assert "| 2 | 4 | 4 | 4 |" in (tmp_path / "report.md").read_text()


def test_every_file_that_the_picture_leads_to_is_there(tmp_path: Path) -> None:
    page = write(tmp_path, run(plan(rounds=3, learners=3), 3, rejected={(1, 3): "late"}))
    ids = page.ids()
    assert len(ids) == len(set(ids))
    links = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"}
    assert {"global-0", "global-3", "local-0-0", "local-2-2"} <= links <= set(ids)


# The paper


@pytest.mark.usefixtures("without_matplotlib")
def test_the_papers_lines_stand_beside_every_run_on_mnist_and_no_other(tmp_path: Path) -> None:
    mnist = run(plan(data={"name": "mnist", "train": 1000, "test": 100}, rounds=7), 7)
    labels = [line.label for line in context.paper_lines(mnist)]
    assert labels == ["paper, learner 1", "paper, learner 2", "paper, single node", "paper, final global"]
    single = context.paper_lines(mnist)[2].points
    assert (len(single), single[0], single[-1]) == (21, (0.0, 99.24), (4.0, 99.48))
    assert "This run is not the paper's experiment" in " ".join(write(tmp_path, mnist).text.split())
    assert context.paper_lines(run(plan(), 2)) == []
    assert "paper's experiment" not in write(tmp_path, run(plan(), 2)).text


def test_the_papers_lines_end_where_the_run_does() -> None:
    lines = context.paper_lines(run(plan(data={"name": "mnist"}), 2))
    assert [len(line.points) for line in lines] == [2, 2, 6]


# Time


def test_a_learner_works_until_it_publishes_and_waits_until_the_round_closes() -> None:
    turns = turns_of(run(plan(), 2))
    assert [(turn.node_id, turn.round, turn.start, turn.ready, turn.end, turn.free) for turn in turns] == [
        (1, 0, 0, 1, 10, 10),
        (1, 1, 10, 11, 20, 20),
        (2, 0, 0, 2, 10, 10),
        (2, 1, 10, 12, 20, 20),
    ]


def test_an_asynchronous_learner_begins_at_weights_of_any_round_and_is_not_held_up_by_those_who_take() -> None:
    asynchronous = plan(mode="async", rounds=3)
    first, second, third = entry("a", 3), entry("b", 5), entry("c", 9)
    rounds = (
        RoundResult(0, {}, entry("g1", 4), members=(Member(1, first, 0.6, 0),)),
        RoundResult(1, {}, entry("g2", 6), members=(Member(2, second, 0.4, 0),)),
        RoundResult(2, {}, entry("g3", 10), members=(Member(1, third, 0.6, 2),)),
    )
    result = replace(run(asynchronous, 0), rounds=rounds, round=3)
    assert [(t.node_id, t.began, t.start, t.ready, t.free) for t in turns_of(result)] == [
        (1, 0, 0, 3, 6),
        (1, 2, 6, 9, None),
        (2, 0, 0, 5, None),
    ]


def test_staleness_and_weight_of_each_update_are_shown(tmp_path: Path) -> None:
    asynchronous = plan(mode="async", rounds=2)
    rounds = (
        RoundResult(0, {}, entry("g1", 4), members=(Member(1, entry("a", 3), 0.6, 0),)),
        RoundResult(1, {}, entry("g2", 6), members=(Member(2, entry("b", 5), 0.4243, 0),)),
    )
    write(tmp_path, replace(run(asynchronous, 0), rounds=rounds, round=2))
    text = (tmp_path / "report.md").read_text()
    assert "| 1 | 2 | 0 | 1 | 0.4243 | 90.00 |" in text
    assert "Staleness of each update" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("seconds", [2**63, -(2**62), 253_402_300_800])
def test_a_moment_that_no_calendar_has_is_shown_as_it_is(seconds: int) -> None:
    assert context.clock(seconds) == f"{seconds} s since 1970"


# What must not be


def test_nothing_that_comes_from_chain_or_store_comes_to_life(tmp_path: Path) -> None:
    result = run(plan(), 2, rejected={(0, 1): HOSTILE})
    bad = replace(result.rounds[1].result, problem=HOSTILE, cid=HOSTILE, transaction=HOSTILE, sender=HOSTILE)
    result = replace(
        result,
        contract=HOSTILE,
        header=HOSTILE,
        plan_cid=HOSTILE,
        learners={1: HOSTILE, 2: HOSTILE},
        rounds=(result.rounds[0], replace(result.rounds[1], result=bad)),
    )
    audit = Audit("0xc", rounds=2, findings=[Finding(1, HOSTILE, HOSTILE, HOSTILE)], notes=[HOSTILE])
    page = write(tmp_path, result, audit, HOSTILE, versions={HOSTILE: HOSTILE})
    assert HOSTILE in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert str(attributes.get(name) or "#").startswith("#"), (tag, attributes)
    text = (tmp_path / "report.md").read_text()
    assert "\\<script\\>" in text
    prose = [line for line in text.splitlines() if "alert" in line and "`" + HOSTILE not in line]
    assert prose
    assert not [line for line in prose if "<script" in line.replace("\\<", "")]


@pytest.mark.parametrize("where", ["report.md", "report.html"])
def test_no_control_character_and_no_half_of_a_character_is_in_a_report(tmp_path: Path, where: str) -> None:
    strange = "a\x1b[2J\r\x00\u202eb\ud800\n| c\n# d"
    audit = Audit("0xc", rounds=2, findings=[Finding(1, strange, strange, strange)], notes=[strange])
    result = replace(run(plan(), 2, rejected={(0, 1): strange}), plan_cid=strange, contract=strange)
    write(tmp_path, result, audit, strange, versions={strange: strange})
    text = (tmp_path / where).read_text(encoding="utf-8")
    assert not set(text) & set("\x1b\r\x00\u202e\ud800")
    assert "\n# d" not in text.replace("<pre", "") or where == "report.html"


@pytest.mark.usefixtures("without_matplotlib")
def test_each_line_of_a_report_in_markdown_is_one_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, run(plan(), 2), versions={"python": "3.11"})
    before = (tmp_path / "report.md").read_text().splitlines()
    strange = "x\n\n# head\n| a | b |\n```\n<b>"
    result = replace(run(plan(), 2), plan_cid=strange, contract=strange, header=strange)
    write(tmp_path, result, None, strange, versions={"python": strange})
    after = (tmp_path / "report.md").read_text().splitlines()
    assert len(after) == len(before)
    assert [line[:2] for line in after] == [line[:2] for line in before]
    for first, second in zip(before, after, strict=True):
        assert cells(first) == cells(second)


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_a_page_allows_itself_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write(tmp_path, run(plan(), 1))
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert str(policy).startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "url(http" not in (tmp_path / "report.html").read_text()


def test_twenty_learners_and_fifty_rounds_stay_below_three_megabytes(tmp_path: Path) -> None:
    result = run(plan(rounds=50, learners=20), 50)
    write(tmp_path, result, split={n: [7] * 10 for n in range(1, 21)})
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, run(plan(), 2))
    for file in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_all_but_the_diagrams_is_there(tmp_path: Path) -> None:
    page = write(tmp_path, run(plan(), 2))
    assert "matplotlib was not installed" in page.text
    assert "80.10" in page.text
    assert [attributes["class"] for tag, attributes in page.tags if tag == "svg"] == ["tree"]
