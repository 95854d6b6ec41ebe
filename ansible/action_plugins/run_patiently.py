"""Run a command on a host, and fetch files from it, again and again until it works."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DOCUMENTATION = """
name: run_patiently
short_description: Run a command until it works, and fetch the files that it wrote
description:
  - A host that is out of reach, and a command that failed, are tried again for C(patience) seconds. So the command
    must be safe to repeat.
  - The task never fails; C(done) says whether it worked, C(problem) why not, C(rc) and C(stdout) the result.
options:
  command:
    description: What the host's shell is to run.
    required: true
    type: str
  good:
    description: Exit codes of a command that worked.
    default: [0]
    type: list
    elements: int
  hopeless:
    description: Exit codes of a command that will fail the next time too.
    default: []
    type: list
    elements: int
  patience:
    description: Seconds after which to give up.
    default: 600
    type: int
  reach:
    description: Seconds after which to give up on a host that has never been reached; C(patience) if it is not given.
    type: int
  folder:
    description: A folder on the host whose files are fetched afterwards. Who logs in must be able to read them.
    type: str
  files:
    description: Names of the files to fetch; one that is not there is left out.
    default: []
    type: list
    elements: str
  into:
    description: The folder on the controller.
    type: str
"""

PAUSE = 3.0
"""Seconds between two tries."""
NOTICE = 15.0
"""Seconds of failures before they are shown."""
display = Display()


class ActionModule(ActionBase):
    """What Ansible calls, once for each host."""

    _VALID_ARGS = frozenset(("command", "good", "hopeless", "patience", "reach", "folder", "files", "into"))
    _supports_check_mode = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the command said when it worked, or the last problem."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = self._task.delegate_to or (task_vars or {})["inventory_hostname"]
        begun = time.monotonic()
        patience = float(self._task.args.get("patience", 600))
        reach = min(float(self._task.args.get("reach", patience)), patience)
        told = ""
        while True:
            answer, problem, hopeless = self._attempt()
            if answer:
                reach = patience
            if not problem:
                return result | answer | {"done": True, "changed": True}
            waited = time.monotonic() - begun
            if hopeless or waited > reach:
                return result | answer | {"done": False, "problem": problem}
            if waited > NOTICE and problem != told:
                told = problem
                display.display(f"  {host}: trying again: {problem}")
            time.sleep(PAUSE)

    def _attempt(self) -> tuple[dict[str, Any], str, bool]:
        """Try it once; return the answer, what went wrong, and whether it would go wrong again."""
        answer: dict[str, Any] = {}
        try:
            said = self._low_level_execute_command(self._task.args["command"], sudoable=True)
            answer = {"rc": said["rc"], "stdout": said["stdout"], "stdout_lines": said["stdout"].splitlines()}
            if said["rc"] not in map(int, self._task.args.get("good", [0])):
                lines = (said["stderr"] or said["stdout"]).strip().splitlines()
                problem = lines[-1] if lines else f"it ended with exit code {said['rc']}"
                return answer, problem, said["rc"] in map(int, self._task.args.get("hopeless", []))
            self._fetch()
        except AnsibleError as error:
            with contextlib.suppress(AnsibleError):
                self._connection.reset()
            lines = str(error).strip().splitlines()
            return answer, lines[-1] if lines else type(error).__name__, False
        return answer, "", False

    def _fetch(self) -> None:
        """Fetch the files that are there, each whole or not at all."""
        folder, names = self._task.args.get("folder"), self._task.args.get("files", [])
        if not folder or not names:
            return
        into = Path(self._task.args["into"])
        into.mkdir(parents=True, exist_ok=True)
        there = self._low_level_execute_command(f"ls -A {folder}", sudoable=True)["stdout"].split()
        for name in names:
            if name in there:
                partial = into / f".{name}.part"
                self._connection.fetch_file(f"{folder}/{name}", str(partial))
                partial.replace(into / name)
