"""Follow a role's unit until it ends, and show what it says as it says it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from shlex import quote
from typing import Any

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
    description: A file on the controller by which the hosts of one play learn that the unit failed on one of them.
    required: true
    type: path
  silence:
    description: Seconds that a host may be out of reach.
    default: 300
    type: int
"""

POLL = 1.5
LAST_LINES = 8
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z \S+: ")
"""How a role's own lines begin; libraries write others, which are shown if the unit fails."""
display = Display()


class ActionModule(ActionBase):
    """What Ansible calls, once for each host."""

    _VALID_ARGS = frozenset(("unit", "cursor", "flag", "silence"))
    _supports_check_mode = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return when the unit has ended, or has failed on another host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        unit, cursor = self._task.args["unit"], self._task.args["cursor"]
        flag, silence = Path(self._task.args["flag"]), int(self._task.args.get("silence", 300))
        shown: list[str] = []
        heard = time.monotonic()
        while not flag.exists():
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
            if state["ActiveState"] == "failed":
                flag.write_text(host)
                said = "".join(f"\n    {line}" for line in shown)
                code = state["ExecMainStatus"]
                return result | {"problem": f"{unit} failed on {host} with exit code {code}:{said}"}
            if state["ActiveState"] == "inactive":
                return result | {"msg": f"{unit} has ended", "restarts": int(state["NRestarts"])}
            time.sleep(POLL)
        return result | {
            "changed": False,
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
