"""The tables of docs/scenarios.md describe the scenarios as their files and the lab do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import ChainableUndefined, Environment

from fl_node.lab.faults import SCENARIOS
from fl_node.runtime.markdown import escape
from tests.helpers import checkout

FOLDER = checkout.ROOT / "ansible" / "scenarios"
FILES = sorted(FOLDER.glob("*.yml"))
ALL_SCENARIOS = "the final weights are the undisturbed run's, bit for bit"
"""An expectation that the playbook adds, so that no file has it."""


def table(backend: str) -> dict[str, list[str]]:
    """Return the cells of a table's rows by the scenario's name."""
    page = (checkout.ROOT / "docs" / "scenarios.md").read_text()
    between = page.partition(f"<!-- {backend}: begin -->")[2].partition(f"<!-- {backend}: end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in between.splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows if name != "scenario"}


def content(path: Path) -> dict[str, Any]:
    """Return a scenario's file as the playbook reads it, with nothing in place of what names hosts."""
    environment = Environment(undefined=ChainableUndefined, autoescape=False)
    environment.filters |= {"role_units": list}
    scenario = yaml.safe_load(environment.from_string(path.read_text()).render())
    if "lie" in scenario:
        template = (FOLDER / "false_header.j2").read_text()
        scenario = yaml.safe_load(environment.from_string(template).render(scenario))
    return dict(scenario)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_row_of_the_hosts_table_has_the_texts_of_the_scenarios_file(path: Path) -> None:
    scenario = content(path)
    text, checks, _ = table("hosts")[path.stem]
    assert text == escape(scenario["text"].strip())
    expected = [escape(expectation["what"]) for expectation in scenario["expectations"]]
    shown = [check.partition(": *")[0] for check in checks.split("<br>")]
    assert [what for what in shown if what != ALL_SCENARIOS] == expected


def test_the_hosts_table_has_no_other_scenarios() -> None:
    assert table("hosts").keys() == {path.stem for path in FILES}


def test_a_row_of_the_lab_table_has_the_text_of_the_scenario() -> None:
    rows = table("processes")
    assert {name: cells[0] for name, cells in rows.items()} == {name: escape(SCENARIOS[name].text) for name in rows}
