"""Follow a unit that works for a while, show the lines that it writes, and return when it has ended."""

from __future__ import annotations

import contextlib
import time
from shlex import quote
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from fl_node.runtime.terminal import visible

DOCUMENTATION = """
name: follow_unit
short_description: Follow a unit until it has ended
description:
  - Shows the lines that the unit writes as they come. A host that is out of reach is waited for, as the unit goes on.
  - The task never fails; C(problem) says why the unit failed, with its last lines, or that the host is lost.
options:
  unit:
    description: The unit.
    required: true
    type: str
  cursor:
    description: The place in the journal to begin after.
    required: true
    type: str
  patience:
    description: Seconds for which a host may be out of reach.
    default: 600
    type: int
"""

POLL = 1.0
"""Seconds between two looks, on a host that answers at once."""
REST = 4
"""Pause before the next look, as a multiple of what the last look took: a slow host should work, not answer."""
MOST = 15.0
"""Maximum of the seconds between two looks."""
NOTICE = 20.0
"""Seconds that a host may be out of reach before this is reported."""
LAST_LINES = 12
display = Display()


class ActionModule(ActionBase):
    """What Ansible calls, once for each host."""

    _VALID_ARGS = frozenset(("unit", "cursor", "patience"))
    _supports_check_mode = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return when the unit has ended, or when the host is lost."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        unit, cursor = self._task.args["unit"], self._task.args["cursor"]
        patience = float(self._task.args.get("patience", 600))
        shown: list[str] = []
        heard, told = time.monotonic(), False
        while True:
            begun = time.monotonic()
            try:
                state, cursor, lines = self._look(unit, cursor)
            except AnsibleError as error:
                away = time.monotonic() - heard
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                if away > patience:
                    return result | {"problem": f"{host} has been out of reach for {away:.0f} s: {reason}"}
                if away > NOTICE and not told:
                    told = True
                    display.display(f"  {host}: out of reach; {unit} goes on there. Waiting for it: {reason}")
                with contextlib.suppress(AnsibleError):
                    self._connection.reset()
                time.sleep(min(POLL * 4, MOST))
                continue
            heard, told = time.monotonic(), False
            for line in lines:
                display.display(f"  {line}")
            shown = [*shown, *lines][-LAST_LINES:]
            if state["ActiveState"] == "failed":
                problem = f"{unit} failed on {host} with exit code {state['ExecMainStatus']}:"
                return result | {"problem": problem + "".join(f"\n    {line}" for line in shown)}
            if state["ActiveState"] == "inactive":
                return result | {"msg": f"{unit} has ended"}
            time.sleep(min(max(POLL, REST * (time.monotonic() - begun)), MOST))

    def _look(self, unit: str, cursor: str) -> tuple[dict[str, str], str, list[str]]:
        """Return the unit's state, the new place in the journal, and the lines up to there."""
        # The state first: what the unit wrote before it ended is then in the journal.
        command = (
            "export SYSTEMD_PAGER=cat SYSTEMD_COLORS=0; "
            f"systemctl show {quote(unit)} --property=ActiveState,ExecMainStatus; echo -- journal; "
            "journalctl --quiet --no-pager --all --output=cat "
            f"--show-cursor --after-cursor={quote(cursor)} _SYSTEMD_UNIT={quote(unit)}"
        )
        answer = self._low_level_execute_command(command, sudoable=True)
        head, _, journal = answer["stdout"].replace("\r\n", "\n").partition("-- journal\n")
        state = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
        if "ActiveState" not in state:
            raise AnsibleError(answer["stderr"].strip() or "no answer")
        lines = []
        for line in journal.splitlines():
            if line.startswith("-- cursor: "):
                cursor = line.removeprefix("-- cursor: ")
            elif line.strip():
                lines.append(visible(line, lines=False))
        return state, cursor, lines
