"""Names of runs on the hosts, and whether a scenario's expectations hold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fl_node.events import is_wanted
from fl_node.plan.schema import Plan
from fl_node.runtime import logs
from fl_node.runtime.terminal import visible

DOCUMENTATION = """
name: check_expectations
short_description: Check a scenario's expectations against the hosts' journals
description: A list of C(what), C(passed) and C(seen), one for each expectation.
options:
  _input:
    description:
      - The expectations. Each says C(what) must hold, and that C(host), or any, logs C(event) with values C(where)
        in its fields, or that Geth, IPFS or systemd writes a line that matches C(line), a regular expression.
        C(units) are the only units on the host that count.
      - That must come after C(after) (start, fault or restored) and before C(before) (restored or end).
      - With C(absent) it must not come in that time.
      - Or that the audit has a C(note) with this text.
      - Or that the fault began before C(round) ended. If it did not, only this is checked, because the other
        expectations are about that round.
    type: list
    required: true
  journals:
    description: The journals, a list of lines by host, as C(journalctl --output=json) prints them.
    type: dict
    required: true
  times:
    description: When the fault began and when the hosts were restored, as C(fault) and C(restored), in Unix time.
    type: dict
    required: true
  notes:
    description: What the audit noted.
    type: list
"""

LEAST_ROUNDS = 2
"""The round before the fault, and that with it."""
NEEDS: dict[str, tuple[Callable[[Plan], bool], str]] = {
    "verification": (
        lambda plan: plan.is_verified and plan.mode != "async",
        'a synchronous plan whose global weights learners verify: without verification = "none"',
    ),
    "masks": (
        lambda plan: plan.is_masked,
        "a plan with masks, such as -e fl_plan=plans/private.toml",
    ),
    "masks-and-loss": (
        lambda plan: (
            plan.is_masked
            and plan.learners >= 4
            and plan.round_timeout > 0
            and max(plan.required_learners, plan.threshold) < plan.learners
        ),
        "at least four learners, and a plan with masks that allows for the loss of one, such as "
        "-e fl_plan=plans/private.toml -e "
        '\'{"fl_settings": ["min_learners=3", "round_timeout=120", "privacy.threshold=3"]}\'',
    ),
}
"""What a scenario's file may name as C(needs): whether a plan has it, and what would be right."""
FINAL = "final.safetensors"
NEAR = 0.05
"""How much accuracy, as a fraction, a run without one learner's weights in one round may lose at most."""
MAX_BYTES = 256 * 1024 * 1024
"""Of a report; a larger file is none. Ansible's Python has its default recursion limit, so depth needs no check."""


def check_expectations(
    expectations: Sequence[Mapping[str, Any]],
    journals: Mapping[str, Sequence[str]],
    times: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return for each expectation what must hold, whether it passed, and what was seen."""
    moments = {name: float(value) for name, value in times.items()} | {"start": 0.0, "end": float("inf")}
    found = []
    for expected in expectations:
        if "round" in expected:
            in_time = _in_time(expected, journals, moments["fault"])
            if not in_time["passed"]:
                return [in_time]
            found.append(in_time)
            continue
        if "note" in expected:
            noted = next((note for note in notes if expected["note"] in note), None)
            seen = noted or "nothing of the kind"
            found.append({"what": expected["what"], "passed": noted is not None, "seen": seen})
            continue
        begin, end = moments[expected.get("after", "fault")], moments[expected.get("before", "end")]
        lines = [
            (when, text)
            for when, text in _said(journals, expected["host"], expected.get("units"))
            if begin <= when <= end and _is_expected(text, expected)
        ]
        since = moments["fault"] if expected.get("after", "fault") == "start" else begin
        name = {moments["fault"]: "fault", moments["restored"]: "end of the fault"}.get(since, "start")
        seen = "nothing of the kind"
        if lines:
            when, text = lines[0]
            side = "before" if when < since else "after"
            seen = f"{abs(when - since):.1f} s {side} the {name}: {_shown(text)}"
        found.append({"what": expected["what"], "passed": bool(lines) != expected.get("absent", False), "seen": seen})
    return found


def _in_time(expected: Mapping[str, Any], journals: Mapping[str, Sequence[str]], fault: float) -> dict[str, Any]:
    """Return whether a fault began before a round ended, by the first who published the weights of the next round."""
    ends = {"event": "global_weights_published", "where": {"round": int(expected["round"]) + 1}}
    end = next((when for when, text in _said(journals, "any", None) if _is_expected(text, ends)), None)
    seen = (
        "the round has not ended"
        if end is None
        else f"the round ended {abs(end - fault):.1f} s after the fault began"
    )
    if end is not None and end < fault:
        seen = (
            f"it came too late: the round ended {fault - end:.1f} s before; plan longer rounds "
            "(more images, or a larger training.epochs)"
        )
    return {"what": expected["what"], "passed": end is None or end >= fault, "seen": seen}


def unmet_needs(scenario: str, plan: str) -> list[str]:
    """Return what a scenario needs that a plan lacks.

    Parameters
    ----------
    scenario
        The path of the scenario's file. Its templates name hosts, so it is not rendered for this.
    plan
        The plan in its canonical form.
    """
    path, checked = Path(scenario), Plan.model_validate_json(plan)
    named = re.findall(r"^needs: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    needs = [NEEDS[need] for line in named for need in yaml.safe_load(line)]
    lacks = [text for has, text in needs if not has(checked)]
    if checked.rounds < LEAST_ROUNDS:
        lacks.append(f"at least {LEAST_ROUNDS} rounds (the plan has {checked.rounds})")
    return [f"scenario {path.stem} needs {text}" for text in lacks]


def read_fault(text: str) -> dict[str, Any]:
    """Return a scenario's fault from its file as Ansible renders it.

    Within YAML Ansible renders a list of units as text, which becomes a list again here.
    """
    fault: dict[str, Any] = yaml.safe_load(text)
    waits = [step["until"] for step in fault["steps"] if "until" in step]
    for part in (fault["trigger"], *waits, *fault["expectations"]):
        if "units" in part:
            part["units"] = yaml.safe_load(part["units"])
    return fault


def undisturbed_run(runs: str, plan: str) -> dict[str, Any]:
    """Return name, CID and accuracy of a kept run of the same plan that ended well without a fault; else {}."""
    for report in sorted(Path(runs).glob("*/report.json")):
        try:
            if max(path.stat().st_size for path in (report, report.parent / "plan.json")) > MAX_BYTES:
                continue
            content = json.loads(report.read_text(encoding="utf-8"))
            same = json.loads((report.parent / "plan.json").read_text(encoding="utf-8")) == json.loads(plan)
            if not same or (report.parent / "scenario.json").exists():
                continue
            if content["ended"] and content["audit"]["passed"]:
                last = content["rounds"][-1]["result"]
                return {"name": report.parent.name, "cid": last["cid"], "accuracy": last["accuracy"]}
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            continue  # no report of this kind
    return {}


def final_checks(
    final: Mapping[str, Any], folder: str, known: Mapping[str, Any], *, same_bits: bool
) -> list[dict[str, Any]]:
    """Return how the final weights of a run compare with those of a run without a fault.

    Two runs with differential privacy have different noise, for it follows from the contract too. So there is nothing
    to compare.

    Parameters
    ----------
    final
        The last global weights as the run's report has them.
    folder
        The run's folder, beside that of the other run.
    known
        What :func:`undisturbed_run` returned.
    same_bits
        Whether the weights must be the same, not only about as accurate.
    """
    plan = json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8"))
    if (plan.get("privacy") or {}).get("dp"):
        return []
    seen = f"{final['accuracy']:.2%}, undisturbed {known['accuracy']:.2%}"
    if same_bits:
        # With masks the CIDs differ: the files name keys, which no two runs have in common.
        paths = [Path(folder) / FINAL, Path(folder).parent / known["name"] / FINAL]
        passed = final["cid"] == known["cid"] or _weights(paths[0]) == _weights(paths[1])
        return [{"what": "the final weights are the undisturbed run's, bit for bit", "passed": passed, "seen": seen}]
    near = final["accuracy"] >= known["accuracy"] - NEAR
    return [{"what": f"the final accuracy is at most {100 * NEAR:g} points lower", "passed": near, "seen": seen}]


def _weights(path: Path) -> str:
    """Return a hash of all that follows a model file's header."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_name(base: str, runs: str) -> str:
    """Return a name for a run that no other has, kept or deployed: the base, or with -2, -3 and so on behind it."""
    number, name = 1, base
    while any((Path(runs) / name / file).exists() for file in ("report.json", "deployed.json")):
        number += 1
        name = f"{base}-{number}"
    return name


def scenario_line(check: Mapping[str, Any]) -> str:
    """Return a check as a line to read."""
    return f"{'pass' if check['passed'] else 'FAIL'} {check['what']}: {check['seen']}"


def _is_expected(text: str, expected: Mapping[str, Any]) -> bool:
    event = logs.parse(text)
    if "line" in expected:
        return event is None and re.search(expected["line"], text) is not None
    return event is not None and is_wanted(event, expected)


def _shown(text: str) -> str:
    event = logs.parse(text)
    return visible(text if event is None else str(event.get("message", "")), lines=False)


def _said(journals: Mapping[str, Sequence[str]], host: str, units: Sequence[str] | None) -> list[tuple[float, str]]:
    """Return what a host, or any of them, or only some of its units, wrote to its journal, and when."""
    lines = [logs.parse_systemd(line) for name, each in journals.items() if host in {name, "any"} for line in each]
    return sorted((line.time, line.text) for line in lines if line and (units is None or line.unit in units))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "free_name": free_name,
            "check_expectations": check_expectations,
            "scenario_line": scenario_line,
            "final_checks": final_checks,
            "read_fault": read_fault,
            "undisturbed_run": undisturbed_run,
            "unmet_needs": unmet_needs,
        }
