"""Ansible's filters about runs on the hosts: names, the run without the fault, and a scenario's expectations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fl_node.plan.schema import Plan
from tests.helpers import checkout
from tests.helpers.checkout import load

filters = load("ansible/filter_plugins/runs.py")


def line(seconds: float, unit: str, text: str) -> str:
    """Return a line of the journal."""
    return json.dumps({"__REALTIME_TIMESTAMP": str(int(seconds * 1e6)), "_SYSTEMD_UNIT": unit, "MESSAGE": text})


def logged(seconds: float, unit: str = "fl-header.service", **event: object) -> str:
    """Return a line of the journal with an event, and with a sentence that no expectation looks at."""
    return line(seconds, unit, json.dumps({"message": "some sentence, reorg", **event}))


PLAN = {"name": "demo", "rounds": 2}
TIMES = {"fault": "100.5", "restored": "120.0"}
JOURNALS = {
    "header": [
        logged(99, event="round_started", round=1),
        logged(101.25, event="waiting", reason="updates", round=1, learners=[1]),
        logged(130.5, event="update_accepted", round=1, learner=1),
        "-- No entries --",
    ],
    "learner-1": [
        line(125, "geth.service", "INFO Chain reorg detected"),
        logged(126, "fl-learner@2.service", event="masks_opened", round=1),
    ],
}


def keep(runs: Path, name: str, plan: object = PLAN, **changes: Any) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    report = {"ended": True, "audit": {"passed": True}, "rounds": [{"result": {"cid": f"Qm{name}", "accuracy": 0.9}}]}
    (folder / "report.json").write_text(json.dumps(report | changes))
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def test_a_name_that_a_kept_run_has_is_not_taken_again(tmp_path: Path) -> None:
    assert filters.free_name("demo", str(tmp_path / "none")) == "demo"
    keep(tmp_path, "demo")
    assert filters.free_name("demo", str(tmp_path)) == "demo-2"
    keep(tmp_path, "demo-2")
    assert filters.free_name("demo", str(tmp_path)) == "demo-3"
    (tmp_path / "begun").mkdir()
    assert filters.free_name("begun", str(tmp_path)) == "begun"


def test_the_run_without_harm_has_the_same_plan_and_ended_well(tmp_path: Path) -> None:
    plan = json.dumps(PLAN)
    keep(tmp_path, "a-other", {"name": "demo", "rounds": 3})
    keep(tmp_path, "b-open", ended=False)
    keep(tmp_path, "c-failed", audit={"passed": False})
    (keep(tmp_path, "d-harmed") / "scenario.json").write_text("{}")
    (keep(tmp_path, "e-broken") / "report.json").write_text("[")
    assert filters.undisturbed_run(str(tmp_path), plan) == {}
    keep(tmp_path, "f-good")
    assert filters.undisturbed_run(str(tmp_path), plan) == {"name": "f-good", "cid": "Qmf-good", "accuracy": 0.9}
    assert filters.undisturbed_run(str(tmp_path / "none"), plan) == {}


def final(folder: Path, cid: str, weights: bytes) -> dict[str, Any]:
    """Write final weights into a run's folder, with the CID in their header, and return what a report has of them."""
    header = json.dumps({"__metadata__": {"cid": cid}}).encode()
    (folder / "final.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    return {"cid": cid, "accuracy": 0.85}


def test_weights_are_compared_without_what_else_their_files_say(tmp_path: Path) -> None:
    final(keep(tmp_path, "known"), "Qmknown", b"weights")
    known = {"name": "known", "cid": "Qmknown", "accuracy": 0.9}
    folder = keep(tmp_path, "run")
    for cid, weights, passed in (("Qmrun", b"weights", True), ("Qmrun", b"others", False)):
        checks = filters.final_checks(final(folder, cid, weights), str(folder), known, same_bits=True)
        assert [check["passed"] for check in checks] == [passed]
    near, far = {"cid": "Qm", "accuracy": 0.86}, {"cid": "Qm", "accuracy": 0.8}
    for one, passed in ((near, True), (far, False)):
        assert filters.final_checks(one, str(folder), known, same_bits=False)[0]["passed"] == passed
    private = keep(tmp_path, "private", PLAN | {"privacy": {"dp": {"epsilon": 3}}})
    assert filters.final_checks(far, str(private), known, same_bits=True) == []


WAITS = {"host": "header", "event": "waiting", "where": {"reason": "updates"}}
ACCEPTS = {"host": "header", "event": "update_accepted", "where": {"learner": "1"}}
STARTS = {"host": "header", "event": "round_started"}
OPENS = {"host": "learner-1", "event": "masks_opened"}


@pytest.mark.parametrize(
    ("expectation", "passed", "seen"),
    [
        (WAITS, True, "0.8 s after the fault: "),
        (WAITS | {"before": "restored"}, True, "0.8 s after the fault: "),
        (WAITS | {"after": "restored"}, False, "nothing"),
        (WAITS | {"where": {"reason": "block"}}, False, "nothing"),
        (ACCEPTS, True, "30.0 s after the fault: "),
        (ACCEPTS | {"where": {"learner": 2}}, False, "nothing"),
        (ACCEPTS | {"before": "restored"}, False, "nothing"),
        (ACCEPTS | {"before": "restored", "absent": True}, True, "nothing"),
        (ACCEPTS | {"after": "restored"}, True, "10.5 s after the end of the fault: "),
        (ACCEPTS | {"after": "restored", "absent": True}, False, "10.5 s after"),
        (STARTS, False, "nothing"),
        (STARTS | {"after": "start"}, True, "1.5 s before the fault: "),
        (OPENS, True, "25.5 s after the fault: "),
        (OPENS | {"units": ["fl-learner@2.service"]}, True, "25.5 s after the fault: "),
        (OPENS | {"units": ["fl-learner@1.service"]}, False, "nothing"),
        ({"host": "any", "line": "reorg"}, True, "24.5 s after the fault: "),
        ({"host": "header", "line": "reorg"}, False, "nothing"),
        ({"host": "learner-9", "line": "reorg"}, False, "nothing"),
    ],
)
def test_a_promise_is_an_event_or_a_line_of_a_host_in_a_time(
    expectation: dict[str, Any], passed: bool, seen: str
) -> None:
    (checked,) = filters.check_expectations([{"what": "it holds", **expectation}], JOURNALS, TIMES)
    assert (checked["what"], checked["passed"]) == ("it holds", passed)
    assert checked["seen"].startswith(seen)
    assert "{" not in checked["seen"]


IN_TIME = {"what": "the fault began before its round ended", "round": "1"}


@pytest.mark.parametrize(
    ("host", "seconds", "round_", "passed"),
    [
        ("header", 100.6, 2, True),
        ("learner-1", 100.6, 2, True),  # by a standby
        ("header", 100.4, 1, True),  # the round before
        ("header", 100.4, 2, False),
        ("learner-1", 100.4, 2, False),
    ],
)
def test_a_fault_must_begin_before_its_round_ends(host: str, seconds: float, round_: int, passed: bool) -> None:
    ends = logged(seconds, event="global_weights_published", round=round_)
    again = logged(118, event="global_weights_published", round=2)  # by a header that was replaced
    journals = JOURNALS | {host: [*JOURNALS[host], again, ends]}
    others = [{"what": "it holds", **WAITS}, {"what": "it does not", **STARTS}]
    checked = filters.check_expectations([IN_TIME, *others], journals, TIMES)
    # Of a fault that came too late nothing else is said, for it would be about another round.
    assert [one["passed"] for one in checked] == ([True, True, False] if passed else [False])
    assert ("too late" in checked[0]["seen"]) == (not passed)


def test_a_round_that_never_ended_was_open_when_the_fault_began() -> None:
    (checked,) = filters.check_expectations([IN_TIME], JOURNALS, TIMES)
    assert checked["passed"]


def test_what_the_audit_noted_can_be_expected() -> None:
    notes = ["the sealers are the same", "learner 2 rejected correct global weights"]
    expected = [{"what": what, "note": f"{what} rejected correct"} for what in ("learner 2", "learner 1")]
    checked = filters.check_expectations(expected, JOURNALS, TIMES, notes)
    assert [(one["what"], one["passed"], one["seen"]) for one in checked] == [
        ("learner 2", True, notes[1]),
        ("learner 1", False, "nothing of the kind"),
    ]


def test_a_check_is_a_line_to_read() -> None:
    line = filters.scenario_line({"what": "the run ends", "passed": False, "seen": "1 round"})
    assert line == "FAIL the run ends: 1 round"


SCENARIOS = sorted((checkout.ROOT / "ansible" / "scenarios").glob("*.yml"))
FOUR = {"learners": 4, "min_learners": 3, "round_timeout": 60}


def canonical(privacy: dict[str, object] | None = None, **settings: object) -> str:
    """Return a plan in its canonical form, with masks if given settings of privacy."""
    if privacy is not None:
        settings |= {
            "aggregation": {"rule": "fedavg", "arithmetic": "fixed"},
            "privacy": {"secure_aggregation": True, **privacy},
        }
    return Plan.model_validate({"name": "demo", "learners": 3, **settings}).to_bytes().decode()


def test_lists_of_units_are_lists_again_after_ansible_has_rendered_them() -> None:
    units = "['fl-learner@1.service']"
    text = json.dumps(
        {
            "trigger": {"units": units},
            "steps": [{"until": {"units": units}}, {"until": {"event": "run_finished"}}, {"do": "true"}],
            "expectations": [{"units": units}, {"note": "some text"}],
        }
    )
    fault = filters.read_fault(text)
    parts = (fault["trigger"], fault["steps"][0]["until"], fault["expectations"][0])
    assert [part["units"] for part in parts] == [["fl-learner@1.service"]] * 3


def test_the_needs_that_scenarios_name_are_known() -> None:
    for path in SCENARIOS:
        masked = canonical(privacy={"threshold": 3}, **FOUR)
        assert filters.unmet_needs(str(path), masked) == []
        assert len(filters.unmet_needs(str(path), canonical(rounds=1))) >= 1


@pytest.mark.parametrize(
    "path", [path for path in SCENARIOS if "\nlie: " not in path.read_text()], ids=lambda path: path.stem
)
def test_a_trigger_names_the_round_of_the_fault(path: Path) -> None:
    trigger = path.read_text().partition("\ntrigger:")[2].partition("\nsteps:")[0]
    assert "where: {round: 1}" in trigger


def test_a_lie_meets_its_round_however_short_that_is() -> None:
    template = (checkout.ROOT / "ansible" / "scenarios" / "false_header.j2").read_text()
    assert "\nhold: true\n" in template


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("masks-lost-before", canonical()),
        ("masks-lost-before", canonical(privacy={})),
        ("masks-lost-before", canonical(privacy={}, learners=4)),
        ("masks-wrong-shares", canonical(privacy={"threshold": 3}, **FOUR | {"round_timeout": 0, "min_learners": 0})),
        ("header-asks-both", canonical()),
        ("header-lies", canonical(verification="none")),
        ("header-gone", canonical(verification="none")),
    ],
)
def test_a_plan_on_which_a_scenario_shows_nothing_is_refused(name: str, plan: str) -> None:
    (lacks,) = filters.unmet_needs(str(checkout.ROOT / "ansible" / "scenarios" / f"{name}.yml"), plan)
    assert lacks.startswith(f"scenario {name} needs ")


def test_other_scenarios_take_a_plan_without_verification() -> None:
    path = checkout.ROOT / "ansible" / "scenarios" / "learner-killed.yml"
    assert filters.unmet_needs(str(path), canonical(verification="none")) == []
