"""Names of runs on the hosts; what a scenario promised, and whether it held."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_node.events import is_wanted
from fl_node.runtime import logs
from fl_node.runtime.terminal import visible

DOCUMENTATION = """
name: promises_kept
short_description: Check a scenario's promises against what the hosts' roles said
description: A list of C(what), C(held) and C(seen), one for each promise.
options:
  _input:
    description:
      - The promises. Each says C(what) must hold, and that C(host), or any, logs C(event) with the values C(where) in
        its fields, or that Geth, IPFS or systemd writes a line that matches C(line), a regular expression.
      - That must come after C(after) (start, harm or restored) and before C(before) (restored or end).
      - With C(absent) it must not come in that time.
    type: list
    required: true
  journals:
    description: What the roles said, a list of lines by host.
    type: dict
    required: true
  moments:
    description: When harm was done and when the hosts were restored, as seconds since 1970, C(harm) and C(restored).
    type: dict
    required: true
"""

MAX_BYTES = 256 * 1024 * 1024
"""Of a report; a larger file is none. Ansible's Python has its default recursion limit, so depth needs no check."""
_LINE = re.compile(r"(\d+\.\d+) \S+ \S+: (.*)")
"""A line of ``journalctl --output=short-unix``: seconds since 1970, host, program, text."""


def promises_kept(
    promises: Sequence[Mapping[str, Any]], journals: Mapping[str, Sequence[str]], moments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return for each promise what was promised, whether it held, and what was seen."""
    times = {name: float(value) for name, value in moments.items()} | {"start": 0.0, "end": float("inf")}
    found = []
    for promise in promises:
        begin, end = times[promise.get("after", "harm")], times[promise.get("before", "end")]
        lines = [
            (when, text)
            for when, text in _said(journals, promise["host"])
            if begin <= when <= end and _is_promised(text, promise)
        ]
        since = times["harm"] if promise.get("after", "harm") == "start" else begin
        name = {times["harm"]: "harm", times["restored"]: "end of the harm"}.get(since, "start")
        seen = "nothing of the kind"
        if lines:
            when, text = lines[0]
            side = "before" if when < since else "after"
            seen = f"{abs(when - since):.1f} s {side} the {name}: {_shown(text)}"
        found.append({"what": promise["what"], "held": bool(lines) != promise.get("absent", False), "seen": seen})
    return found


def undisturbed_run(runs: str, plan: str) -> dict[str, Any]:
    """Return name, CID and accuracy of a run of the same plan that was kept and ended well, without harm; else {}."""
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


def free_name(base: str, runs: str) -> str:
    """Return a name for a run that no other has, kept or deployed: the base, or with -2, -3 and so on behind it."""
    number, name = 1, base
    while any((Path(runs) / name / file).exists() for file in ("report.json", "deployed.json")):
        number += 1
        name = f"{base}-{number}"
    return name


def scenario_line(check: Mapping[str, Any]) -> str:
    """Return a check as a line to read."""
    return f"{'held  ' if check['held'] else 'BROKEN'} {check['what']}: {check['seen']}"


def _is_promised(text: str, promise: Mapping[str, Any]) -> bool:
    event = logs.parse(text)
    if "line" in promise:
        return event is None and re.search(promise["line"], text) is not None
    return event is not None and is_wanted(event, promise)


def _shown(text: str) -> str:
    event = logs.parse(text)
    return visible(text if event is None else str(event.get("message", "")), lines=False)


def _said(journals: Mapping[str, Sequence[str]], host: str) -> list[tuple[float, str]]:
    """Return what a host, or any of them, wrote to its journal, and when."""
    lines = [line for name, each in journals.items() if host in {name, "any"} for line in each]
    return sorted((float(match[1]), match[2]) for match in filter(None, map(_LINE.match, lines)))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "free_name": free_name,
            "promises_kept": promises_kept,
            "scenario_line": scenario_line,
            "undisturbed_run": undisturbed_run,
        }
