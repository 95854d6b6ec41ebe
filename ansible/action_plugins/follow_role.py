"""Follow a role's unit until it ends, and show what it says as it says it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from shlex import quote
from typing import Any

from ansible.constants import DEFAULT_LOCAL_TMP
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DOCUMENTATION = """
name: follow_role
short_description: Follow a role's unit until it ends
description:
  - Shows what the unit writes to the journal, a line as it comes, and ends when the unit has ended on every host.
  - If it failed on a host, C(problem) says so there, with the unit's last lines, and the other hosts stop waiting.
options:
  unit:
    description: The unit to follow.
    required: true
    type: str
  cursor:
    description: The place in the journal to begin after.
    required: true
    type: str
  flag:
    description: >-
      The name of a file by which the hosts of one play learn that the unit failed on one of them. It is in the folder
      that Ansible makes for itself on the controller and removes at its end.
    required: true
    type: str
  silence:
    description: Seconds that a host may be out of reach.
    default: 300
    type: int
  until_host:
    description: Follow only until this host's unit says C(until_says), and return there.
    type: str
  until_says:
    description: What that line has in it.
    type: str
  limit:
    description: Seconds after which it is a failure that the unit has not ended; 0 means never.
    default: 0
    type: int
"""

POLL = 0.7
"""Seconds between two looks, on a host that answers at once."""
REST = 4
"""How many times as long as a look has taken the host has peace afterwards; a slow one has to work, not to answer."""
MOST = 15.0
"""Seconds between two looks at the most."""
LAST_LINES = 8
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z \S+: ")
"""How a role's own lines begin; libraries write others, which are shown if the unit fails."""
display = Display()


class ActionModule(ActionBase):
    """What Ansible calls, once for each host."""

    _VALID_ARGS = frozenset(("unit", "cursor", "flag", "silence", "until_host", "until_says", "limit"))
    _supports_check_mode = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return when the unit has ended, has failed on another host, or one has come to where it is followed to."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        unit, cursor = self._task.args["unit"], self._task.args["cursor"]
        flag = Path(DEFAULT_LOCAL_TMP, self._task.args["flag"])
        silence = int(self._task.args.get("silence", 300))
        until_host, until_says = self._task.args.get("until_host"), self._task.args.get("until_says", "")
        reached = Path(f"{flag}.reached")
        shown: list[str] = []
        limit = int(self._task.args.get("limit", 0))
        start = heard = time.monotonic()
        while not flag.exists():
            if until_host and reached.exists():
                return result | {"msg": f"{until_host} has come to {until_says!r}", "cursor": cursor}
            looked = time.monotonic()
            try:
                state, cursor, lines = self._look(unit, cursor)
                heard = time.monotonic()
            except AnsibleConnectionFailure as error:
                if time.monotonic() - heard > silence:
                    flag.write_text(host)
                    return result | {"problem": f"{host} has been out of reach for {silence} s: {error}"}
                self._connection.reset()
                time.sleep(POLL)
                continue
            for line in filter(_STAMP.match, lines):
                display.display(f"  {_short(host, line)}")
            shown = [*shown, *lines][-LAST_LINES:]
            if host == until_host and any(until_says in line for line in lines):
                reached.touch()
                continue
            if state["ActiveState"] == "failed":
                flag.write_text(host)
                said = "".join(f"\n    {line}" for line in shown)
                code = state["ExecMainStatus"]
                return result | {"problem": f"{unit} failed on {host} with exit code {code}:{said}"}
            if state["ActiveState"] == "inactive":
                if host == until_host:
                    flag.write_text(host)
                    return result | {"problem": f"{unit} has ended on {host} and never said {until_says!r}"}
                return result | {"msg": f"{unit} has ended", "restarts": int(state["NRestarts"])}
            if limit and time.monotonic() - start > limit:
                flag.write_text(host)
                said = "".join(f"\n    {line}" for line in shown)
                return result | {"problem": f"{unit} on {host} has not ended after {limit} s:{said}"}
            time.sleep(min(max(POLL, REST * (heard - looked)), MOST))
        return result | {
            "changed": False,
            "cursor": cursor,
            "msg": f"not waited for any longer, since a unit failed on {flag.read_text()}",
        }

    def _look(self, unit: str, cursor: str) -> tuple[dict[str, str], str, list[str]]:
        """Return the unit's state, the new place in the journal, and the lines up to there."""
        command = (
            "export SYSTEMD_PAGER=cat SYSTEMD_COLORS=0; "
            f"systemctl show {quote(unit)} --property=ActiveState,ExecMainStatus,NRestarts; echo; "
            f"journalctl --quiet --no-pager --output=cat --show-cursor --after-cursor={quote(cursor)} "
            f"--unit={quote(unit)}"
        )
        answer = self._low_level_execute_command(command, sudoable=True)
        head, _, journal = answer["stdout"].replace("\r\n", "\n").partition("\n\n")
        state = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
        if "ActiveState" not in state:
            raise AnsibleConnectionFailure(answer["stderr"].strip() or "no answer")
        lines = []
        for line in journal.splitlines():
            if line.startswith("-- cursor: "):
                cursor = line.removeprefix("-- cursor: ")
            elif line.strip():
                lines.append(line)
        return state, cursor, lines


def _short(host: str, line: str) -> str:
    """Return a role's line without its date and with its host, as in ``12:01:02 learner-1: …``."""
    stamp, _, text = line.split(" ", 2)
    return f"{stamp[11:19]} {host}: {text}"
