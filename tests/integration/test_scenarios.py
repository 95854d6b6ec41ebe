"""Scenarios as a user has them; here those that take the least time, `make scenarios` runs all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fl_node.lab.faults import SCENARIOS, planned
from fl_node.plan import loading as plans
from fl_node.runtime import logs
from tests.helpers.checkout import ROOT
from tests.helpers.warm import fl_node, run
from tests.scenarios.undefended import WITHOUT

EACH_TIME = ("header-killed", "yesterdays-file", "trespass")


@pytest.mark.parametrize(
    "name", [*EACH_TIME, *(pytest.param(n, marks=pytest.mark.nightly) for n in SCENARIOS if n not in EACH_TIME)]
)
def test_a_scenario_passes_with_every_sentence_of_the_roles_taken_away(
    tiny_plan: Path, tmp_path: Path, name: str
) -> None:
    options = ["--scenario", name, "--backend", SCENARIOS[name].backends[0], "--runs", tmp_path, "--json"]
    done = run("tests.scenarios.wordless", "lab", tiny_plan, *options)
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    assert done.returncode == 0, (found.get("checks"), done.stderr)
    assert all(check["passed"] for check in found["checks"])
    assert len(found["checks"]) >= 5
    folder = tmp_path / f"tiny-{name}"
    assert (folder / "report.md").is_file()
    logged = list(logs.read(str(folder)))
    assert {"round_started", "update_accepted", "global_weights_published"} <= {event["event"] for event in logged}
    assert {event["message"] for event in logged if event["event"] != "message"} == {"x"}


def test_a_promise_that_does_not_hold_is_named_and_ends_with_1(tiny_plan: Path, tmp_path: Path) -> None:
    # Nobody trespasses, so nothing is refused.
    arguments = ("lab", tiny_plan, "--scenario", "trespass", "--runs", tmp_path, "--json")
    done = run("tests.scenarios.without_fault", "trespass", *arguments)
    assert done.returncode == 1, done.stderr
    broken = [check["what"] for check in json.loads(done.stdout)["checks"] if not check["passed"]]
    assert broken == ["the contract reverts every call that the account may not make"]


@pytest.mark.parametrize(
    "name",
    ["learner-killed", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("others-file", "learner-away"))],
)
def test_without_its_defence_a_promise_is_broken(tiny_plan: Path, tmp_path: Path, name: str) -> None:
    """`make scenarios ARGS=--undefended` does so with all that can lose theirs on one machine."""
    done = run("tests.scenarios.undefended", name, tiny_plan, "--runs", tmp_path, "--json")
    assert done.returncode == 1, done.stderr
    broken = [check["what"] for check in json.loads(done.stdout)["checks"] if not check["passed"]]
    assert any(WITHOUT[name].broken in what for what in broken)


def test_every_scenario_has_a_plan_and_a_text(tiny_plan: Path) -> None:
    for one in SCENARIOS.values():
        assert planned(one, plans.load(tiny_plan)).learners >= 3
        assert one.text.endswith(".")


def test_scenarios_are_listed_and_mistakes_named(tiny_plan: Path, tmp_path: Path) -> None:
    listed = fl_node("lab", str(tiny_plan), "--scenario", "list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in SCENARIOS)
    told = json.loads(fl_node("lab", str(tiny_plan), "--scenario", "list", "--json").stdout)
    assert {one["name"]: one["backends"] for one in told} == {
        name: list(one.backends) for name, one in SCENARIOS.items()
    }
    unknown = fl_node("lab", str(tiny_plan), "--scenario", "earthquake")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("fl-node: --scenario earthquake: should be one of learner-killed, ")
    elsewhere = fl_node("lab", str(tiny_plan), "--scenario", "sealers-gone")
    assert elsewhere.returncode == 2
    assert elsewhere.stderr.strip() == "fl-node: --scenario sealers-gone needs --backend processes"
    asynchronous = fl_node("lab", ROOT / "plans" / "async.toml", "--scenario", "header-lies", "--runs", tmp_path)
    assert asynchronous.returncode == 2
    assert asynchronous.stderr.strip() == (
        'fl-node: --scenario header-lies needs a plan without mode = "async"; '
        "only flood-async has asynchronous rounds"
    )
