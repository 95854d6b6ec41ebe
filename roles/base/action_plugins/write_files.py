"""Write several files to a host; one command on the host says which of them differ."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

DOCUMENTATION = """
name: write_files
short_description: Write several files, in a fraction of the time that copy and template need if nothing changes
description:
  - Compares content, owner, group and mode of all files with one shell command on the host. C(copy) and C(template)
    run two modules on the host for each file, even if nothing changes.
  - A file that differs is written by C(ansible.builtin.copy) or C(ansible.builtin.template), so check mode, C(--diff)
    and C(validate) are theirs.
options:
  files:
    description: The files, in the order in which they are written. Each has C(dest) and one of the first three.
    required: true
    type: list
    elements: dict
    suboptions:
      src:
        description: A file of the role, or a path on the controller.
        type: path
      template:
        description: A template of the role.
        type: path
      content:
        description: The content itself.
        type: str
      dest:
        description: The absolute path on the host.
        required: true
        type: path
      owner:
        description: The owner.
        default: root
        type: str
      group:
        description: The group.
        default: root
        type: str
      mode:
        description: The mode, in octal digits.
        default: "0644"
        type: str
      validate:
        description: As for C(ansible.builtin.copy).
        type: str
"""

SOURCES = ("src", "template", "content")
KEYS = {*SOURCES, "dest", "owner", "group", "mode", "validate"}
LOOK = """for file in {paths}; do
if [ -f "$file" ] && [ ! -L "$file" ]; then stat --format='%a %U %G' "$file" && sha256sum < "$file"
else echo; echo
fi
done"""
"""Prints two lines for each file: mode, owner and group, and the digest; two empty lines if there is no such file."""


class ActionModule(ActionBase):  # type: ignore[misc] - Ansible has no types
    """What Ansible loads."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Compare all files, and write those that differ."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        files = [self._checked(file) for file in self._task.args.get("files") or ()]
        written, diffs = [], []
        for file, found in zip(files, self._look([str(file["dest"]) for file in files]), strict=True):
            if found == self._wanted(file, variables):
                continue
            one = self._write(file, variables)
            if one.get("failed"):
                return one | {"msg": f"{file['dest']}: {one.get('msg', 'failed')}"}
            if one.get("changed"):
                written.append(file["dest"])
                diffs += [one["diff"]] if isinstance(one.get("diff"), dict) else one.get("diff") or []
        return result | {"changed": bool(written), "written": written, "diff": diffs}

    def _checked(self, file: Any) -> dict[str, Any]:
        if not isinstance(file, dict) or "dest" not in file or sum(source in file for source in SOURCES) != 1:
            raise AnsibleActionFail(f"write_files: {file}: each file needs dest, and one of {', '.join(SOURCES)}")
        if unknown := sorted(file.keys() - KEYS):
            raise AnsibleActionFail(f"write_files: {file['dest']}: unknown {', '.join(unknown)}")
        whole = {"owner": "root", "group": "root", "mode": "0644"} | file
        if not isinstance(whole["mode"], str) or not re.fullmatch("[0-7]{3,4}", whole["mode"]):
            wrong = f"mode {whole['mode']}: should be octal digits in quotes"
            raise AnsibleActionFail(f"write_files: {file['dest']}: {wrong}")
        return whole

    def _look(self, paths: list[str]) -> list[tuple[str, str]]:
        """Return mode, owner and group of each file on the host, and its digest; empty texts if there is none."""
        done = self._low_level_execute_command(LOOK.format(paths=" ".join(map(shlex.quote, paths))))
        lines = str(done["stdout"]).splitlines()
        if done["rc"] != 0 or len(lines) != 2 * len(paths):
            return [("", "")] * len(paths)  # what is wrong is said by the action that writes
        return [(attributes, digest[:64]) for attributes, digest in zip(lines[::2], lines[1::2], strict=True)]

    def _wanted(self, file: dict[str, Any], variables: dict[str, Any]) -> tuple[str, str]:
        mode = file["mode"].lstrip("0")
        return f"{mode} {file['owner']} {file['group']}", self._digest(file, variables)

    def _digest(self, file: dict[str, Any], variables: dict[str, Any]) -> str:
        if "src" in file:
            with Path(self._find_needle("files", file["src"])).open("rb") as source:
                return hashlib.file_digest(source, "sha256").hexdigest()
        content = file.get("content")
        if content is None:
            lookup = self._shared_loader_obj.lookup_loader.get(
                "ansible.builtin.template", loader=self._loader, templar=self._templar
            )
            (content,) = lookup.run([file["template"]], variables=variables)
        return hashlib.sha256(str(content).encode()).hexdigest()

    def _write(self, file: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Write a file as the builtin action does."""
        name = "template" if "template" in file else "copy"
        task = self._task.copy()
        task.args = {key: value for key, value in file.items() if key != "template"}
        if name == "template":
            task.args["src"] = file["template"]
        action = self._shared_loader_obj.action_loader.get(
            f"ansible.builtin.{name}",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        written: dict[str, Any] = action.run(task_vars=variables)
        return written
