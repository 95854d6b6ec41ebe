"""Pictures as SVG that stands in a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from fl_node.report import plots
from fl_node.report.plots import Line, Span

SVG = "{http://www.w3.org/2000/svg}"

PICTURES = {
    "lines": lambda name: plots.lines(
        name,
        "Accuracy",
        [
            Line("learner 1", [(1, 90.0), (2, 92.0)]),
            Line("learner 2", [(1, 91.0), (2, 91.5)]),
            Line("global", [(1, 91.0), (2, 93.0)], "global"),
            Line("paper", [(1, 98.9), (2, 99.1)], "paper"),
        ],
        "accuracy, %",
        "round",
    ),
    "timeline": lambda name: plots.timeline(
        name, "Time", [("learner 1", [Span(0, 3, "work"), Span(3, 5, "wait")]), ("learner 2", [])], [0, 5]
    ),
    "stacks": lambda name: plots.stacks(
        name, "Gas", {"learners": [1.0, 2.0], "header": [3.0, 4.0]}, ["1", "2"], "gas", "round"
    ),
    "bubbles": lambda name: plots.bubbles(name, "Labels", {1: [3, 0, 4], 2: [0, 0, 0]}),
    "points": lambda name: plots.points(name, "Staleness", [Line("learner 1", [(1, 0), (2, 3)])], "rounds", "epoch"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_same_figures_give_the_same_bytes(kind: str) -> None:
    assert PICTURES[kind]("a") == PICTURES[kind]("a")


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_an_element_with_a_title_and_text_and_colours_of_the_page(kind: str) -> None:
    text = PICTURES[kind]("a")
    root = ET.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.get("id") == root.get("aria-labelledby")
    assert "<text" in text
    assert "currentColor" in text
    for colour in (plots.INK, plots.MUTED, plots.GRID, plots.BACKGROUND, "font-family", "<style", "<?xml", "http"):
        assert colour not in text, colour


def test_pictures_in_one_page_share_no_id_and_refer_to_their_own() -> None:
    page = "".join(PICTURES[kind](f"{kind}-{n}") for kind in PICTURES for n in (1, 2))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {"".join(parts) for parts in referred} == set(ids)


def test_a_title_is_escaped() -> None:
    text = plots.bubbles("a", "<script>&", {1: [1]})
    assert "&lt;script&gt;&amp;" in text
    assert "<script" not in text


def test_each_of_a_few_learners_is_told_apart_by_colour_marker_and_dash() -> None:
    assert [len({style[position] for style in plots.STYLES}) for position in range(3)] == [plots.MANY] * 3


def test_of_many_learners_the_range_is_named() -> None:
    lines = [Line(f"learner {n}", [(1, 90.0 + n / 10), (2, 91.0 + n / 10)]) for n in range(20)]
    text = plots.lines("a", "Accuracy", lines, "accuracy, %", "round")
    assert "20 learners, lowest to highest" in text
    assert "learner 3" not in text


@pytest.mark.parametrize("count", [3, 20])
def test_lines_without_points_are_not_in_the_legend(count: int) -> None:
    lines = [Line(f"learner {n}", []) for n in range(1, count)]
    lines += [Line("global", [(1, 90.0)], "global"), Line("paper", [], "paper")]
    text = plots.lines("a", "Accuracy", lines, "accuracy, %", "round")
    assert "global" in text
    assert "learner" not in text
    assert "paper" not in text


def test_a_learner_keeps_its_colour_beside_learners_without_points() -> None:
    text = plots.lines("a", "", [Line("learner 1", []), Line("learner 2", [(1, 90.0)])], "accuracy, %", "round")
    assert plots.STYLES[1][0] in text
    assert plots.STYLES[0][0] not in text


def test_of_many_learners_only_those_with_points_are_counted() -> None:
    lines = [Line(f"learner {n}", [(1, 90.0 + n)] if n < 3 else []) for n in range(20)]
    assert "3 learners, lowest to highest" in plots.lines("a", "Accuracy", lines, "accuracy, %", "round")


def test_what_a_person_has_set_for_their_own_pictures_does_not_matter() -> None:
    import matplotlib as mpl

    before = PICTURES["lines"]("a")
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "svg.fonttype": "path"}):
        assert PICTURES["lines"]("a") == before
        assert mpl.rcParams["font.size"] == 30


def test_a_file_of_shards_names_learners_labels_and_sums_and_its_circles_have_the_area_of_their_number() -> None:
    svg = plots.bubbles_file("a <plan> & $more$", {1: [100, 0], 3: [25, 50]})
    picture = ET.fromstring(svg)
    texts = {"".join(element.itertext()).strip() for element in picture.iter(f"{SVG}text")}
    assert {"a <plan> & $more$", "learner 1", "learner 3", "0", "1", "100", "75", "label"} <= texts
    circles = [group for group in picture.iter(f"{SVG}g") if group.get("id", "").startswith("PathCollection")]
    radii = []
    for path in (path.get("d", "") for group in circles for path in group.iter(f"{SVG}path")):
        heights = [float(number) for number in re.findall(r"-?[\d.]+", path)[1::2]]
        radii.append((max(heights) - min(heights)) / 2)
    assert len(radii) == 3
    largest, quarter, half = radii
    assert quarter / largest == pytest.approx(0.5, rel=0.01)
    assert (half / largest) ** 2 == pytest.approx(0.5, rel=0.01)
    assert svg == plots.bubbles_file("a <plan> & $more$", {1: [100, 0], 3: [25, 50]})
