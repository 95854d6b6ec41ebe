"""Follow a host's role, or several, until the run has ended, and show the events as they are logged."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

from ansible.constants import DEFAULT_LOCAL_TMP
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from fl_node.events import is_wanted
from fl_node.runtime import logs
from fl_node.runtime.terminal import visible

DOCUMENTATION = """
name: follow_role
short_description: Follow the units of a host's roles until the run has ended
description:
  - Shows the events that a unit logs, a line as it comes, until the contract says that the run has ended. Of several
    units it shows warnings and errors, each with its learner.
  - It waits for a host that is out of reach, boots, or has its unit stopped, because it may come back and continue.
  - C(away) says whether the host was out of reach when the run had ended.
  - If the unit failed for good, C(problem) says so there, with its last lines, and the other hosts stop waiting.
options:
  units:
    description: The unit to follow, or those of several learners.
    required: true
    type: list
    elements: str
  cursor:
    description: The place in the journal to begin after; empty means its end.
    required: true
    type: str
  flag:
    description: >-
      The name of files by which the hosts of one play learn that the run has ended or that a unit failed.
      They are in the folder that Ansible makes for itself on the controller and removes at its end.
    required: true
    type: str
  until:
    description: >-
      Follow only until a unit on C(host), or of those the ones in C(units), logs C(event) with the values C(where) in
      its fields, and return there.
    type: dict
  limit:
    description: Seconds after which it is a failure that the run has not ended; 0 means never.
    default: 0
    type: int
"""

POLL = 0.7
"""Seconds between two looks, on a host that answers at once."""
REST = 4
"""Pause before the next look, as a multiple of what the last look took: a slow host should work, not answer."""
MOST = 15.0
"""Maximum of the seconds between two looks."""
NOTICE = 20.0
"""Seconds that a host may be out of reach, or its unit stopped, before this is reported."""
LINGER = 120.0
"""Seconds that a role has to notice that the run has ended."""
LAST_LINES = 8
ENDED = "timeout 120 /usr/local/bin/fl-node status --json"
"""What says, from the contract, whether the run has ended."""
display = Display()


class ActionModule(ActionBase):
    """What Ansible calls, once for each host."""

    _VALID_ARGS = frozenset(("units", "cursor", "flag", "until", "limit"))
    _supports_check_mode = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return when the run has ended, a unit has failed for good, or one has come to where it is followed to."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        units, cursor = self._task.args["units"], self._task.args["cursor"]
        unit = units[0] if len(units) == 1 else f"each of {len(units)} units"
        until: dict[str, Any] = self._task.args.get("until") or {}
        until_host = until.get("host")
        limit = int(self._task.args.get("limit", 0))
        flag = Path(DEFAULT_LOCAL_TMP, self._task.args["flag"])
        reached, ended = Path(f"{flag}.reached"), Path(f"{flag}.ended")
        shown: list[str] = []
        start = heard = time.monotonic()
        away, stopped, ended_since, ask_again = "", 0.0, 0.0, 0.0
        away_told = stopped_told = False

        def fail(problem: str, lines: list[str]) -> dict[str, Any]:
            flag.write_text(host, encoding="utf-8")
            return result | {"problem": problem + "".join(f"\n    {line}" for line in lines)}

        while not flag.exists():
            if until_host and reached.exists():
                return result | {"msg": f"{until_host} has logged {until['event']}", "cursor": cursor}
            now = time.monotonic()
            if limit and now - start > limit:
                if away:
                    return fail(f"{host} is out of reach, and the run has not ended after {limit} s: {away}", shown)
                return fail(f"{unit} on {host} has not ended after {limit} s:", shown)
            if ended.exists():
                ended_since = ended_since or now
                if away or now - ended_since > LINGER:
                    state = "is out of reach" if away else f"has not noticed it: {unit} still runs"
                    display.display(f"  {host}: the run has ended; this host {state}")
                    return result | {"msg": "the run has ended", "restarts": 0, "away": bool(away)}
            try:
                states, cursor, lines = self._look(units, cursor)
            except AnsibleError as error:
                if not away:
                    heard = now
                away = _last_line(error)
                if not away_told and time.monotonic() - heard > NOTICE:
                    away_told = True
                    display.display(f"  {host}: out of reach; its role continues. Waiting for it: {away}")
                with contextlib.suppress(AnsibleError):
                    self._connection.reset()
                time.sleep(min(POLL * 4, MOST))
                continue
            took = time.monotonic() - now
            if away_told:
                display.display(f"  {host}: in reach again")
            away, away_told = "", False
            logged = [(source, logs.parse(line), line) for source, line in lines]
            # Libraries write lines too, which are shown if the unit fails.
            for source, event, _ in logged:
                if event and (len(units) == 1 or event.get("level") != "info"):
                    who = host if len(units) == 1 else f"{host}, {_instance(source)}"
                    display.display(f"  {str(event.get('time'))[11:19]} {who}: {_sentence(event)}")
            failed = next((one for one in units if states[one]["ActiveState"] == "failed"), None)
            said = [(source, _sentence(event) if event else line) for source, event, line in logged]
            shown = [*shown, *(text for source, text in said if failed in (None, source))][-LAST_LINES:]
            wanted_of = until.get("units") or units
            if host == until_host and any(
                event and source in wanted_of and is_wanted(event, until) for source, event, _ in logged
            ):
                reached.touch()
                continue
            if failed is not None:
                code = states[failed]["ExecMainStatus"]
                return fail(f"{failed} failed on {host} with exit code {code}:", shown)
            if all(state["ActiveState"] == "inactive" for state in states.values()):
                # It may have ended with the run, or its host boots, or somebody has stopped it.
                stopped = stopped or now
                if not ended.exists() and now >= ask_again:
                    asked = time.monotonic()
                    if self._has_ended(ended):
                        ended.touch()
                    ask_again = time.monotonic() + min(max(MOST / 5, REST * (time.monotonic() - asked)), 4 * MOST)
                if ended.exists():
                    restarts = sum(int(state["NRestarts"]) for state in states.values())
                    if host == until_host:
                        return fail(f"{unit} has ended on {host} and never logged {until['event']}", [])
                    return result | {"msg": f"{unit} has ended", "restarts": restarts}
                if not stopped_told and now - stopped > NOTICE:
                    stopped_told = True
                    display.display(
                        f"  {host}: {unit} is stopped, the run continues. Waiting for it: "
                        f"sudo systemctl start {' '.join(units)}"
                    )
            else:
                stopped, stopped_told = 0.0, False
            time.sleep(min(max(POLL, REST * took), MOST))
        return result | {
            "cursor": cursor,
            "msg": f"not waited for any longer, since a unit failed on {flag.read_text(encoding='utf-8')}",
        }

    def _look(self, units: list[str], cursor: str) -> tuple[dict[str, dict[str, str]], str, list[tuple[str, str]]]:
        """Return the units' states, the new place in the journal, and the lines up to there, each with its unit."""
        begin = f"--after-cursor={quote(cursor)}" if cursor else "--lines=0"
        of = " ".join(f"--unit={quote(unit)}" for unit in units)
        command = (
            "export SYSTEMD_PAGER=cat SYSTEMD_COLORS=0; "
            f"systemctl show {' '.join(map(quote, units))} --property=Id,ActiveState,ExecMainStatus,NRestarts; echo; "
            "echo -- journal; journalctl --quiet --no-pager --all --output=json "
            f"--output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT --show-cursor {begin} {of}"
        )
        answer = self._low_level_execute_command(command, sudoable=True)
        head, _, journal = answer["stdout"].replace("\r\n", "\n").partition("-- journal\n")
        blocks = [
            dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in head.split("\n\n")
        ]
        states = {block["Id"]: block for block in blocks if "ActiveState" in block}
        if states.keys() != set(units):
            raise AnsibleError(answer["stderr"].strip() or "no answer")
        lines = []
        for line in journal.splitlines():
            if line.startswith("-- cursor: "):
                cursor = line.removeprefix("-- cursor: ")
            elif entry := logs.parse_systemd(line):
                lines.append((entry.unit, entry.text))
        return states, cursor, lines

    def _has_ended(self, ended: Path) -> bool:
        """Return whether the contract says, on this host, that the run has ended; one host asks at a time."""
        with _lock(Path(f"{ended}.asking")) as free:
            if not free or ended.exists():
                return ended.exists()
            try:
                answer = self._low_level_execute_command(ENDED, sudoable=True)
                return bool(json.loads(answer["stdout"])["ended"])
            except (AnsibleError, ValueError, KeyError, TypeError):
                return False  # its Geth or IPFS is not up yet


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Give whether nobody else has the lock."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _instance(unit: str) -> str:
    """Return what a learner of several is called: fl-learner@3.service is learner 3."""
    return f"learner {unit.partition('@')[2].removesuffix('.service')}"


def _sentence(event: dict[str, Any]) -> str:
    """Return an event as one line to read."""
    level = event.get("level", "info")
    text = visible(str(event.get("message", "")), lines=False)
    return text if level == "info" else f"{level}: {text}"


def _last_line(error: AnsibleError) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
