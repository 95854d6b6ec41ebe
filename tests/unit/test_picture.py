"""The picture of who has which images: every number is in it, and the area of a circle is one."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fl_node.report.picture import shards

SVG = "{http://www.w3.org/2000/svg}"


def circles(svg: str) -> dict[str, float]:
    """Return the radius of each circle by what it is called."""
    found = {}
    for one in ET.fromstring(svg).iter(f"{SVG}circle"):
        title = one.find(f"{SVG}title")
        assert title is not None
        found[str(title.text)] = float(one.attrib["r"])
    return found


def test_each_number_but_zero_is_a_circle_whose_area_it_is() -> None:
    found = circles(shards({1: [100, 0], 3: [25, 50]}, "some"))
    assert set(found) == {
        "learner 1, label 0: 100 images",
        "learner 3, label 0: 25 images",
        "learner 3, label 1: 50 images",
    }
    largest, quarter, half = found.values()
    assert quarter / largest == pytest.approx(0.5, rel=0.01)
    assert (half / largest) ** 2 == pytest.approx(0.5, rel=0.01)


def test_learners_labels_and_sums_are_named_and_nothing_lies_outside() -> None:
    picture = ET.fromstring(shards({node_id: [node_id] * 10 for node_id in range(1, 31)}, "a <plan> & more"))
    texts = [one.text for one in picture.iter(f"{SVG}text")]
    assert texts[0] == "a <plan> & more"
    assert {"0", "9", "images", "learner 30", "300"} <= set(texts)
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    for one in picture.iter(f"{SVG}circle"):
        x, y, r = (float(one.attrib[key]) for key in ("cx", "cy", "r"))
        assert r <= x <= width - r
        assert r <= y <= height - r
