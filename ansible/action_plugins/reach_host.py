"""Wait until SSH, Python and sudo work on a host; else report what does not work and what to do."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import time
from shlex import quote
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

DOCUMENTATION = """
name: reach_host
short_description: Wait until SSH, Python and sudo work on a host
description:
  - Tries SSH, Python and sudo, until all work. C(problem) says which does not, and what to do.
  - Problems that only a person can solve are reported after a few seconds, others after C(patience), for a boot.
options:
  patience:
    description: Seconds to wait.
    default: 60
    type: int
"""

PAUSE = 1.0
"""Seconds between two tries."""
SURE = 5.0
"""Seconds after which a problem that waiting does not solve is believed."""
WAITING_HELPS = {"refused", "timeout", "no_route", "closed", "booting", "other"}

# ssh has one exit code for all its errors, so what it says decides; the patterns are of OpenSSH and sudo in English.
SSH = {
    "host_key": r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key .* has changed",
    "unknown_name": r"Could not resolve hostname|Name or service not known|nodename nor servname",
    "key_open": r"UNPROTECTED PRIVATE KEY FILE|bad permissions",
    "booting": r"System is booting up|System is going down|pam_nologin",
    "permission": r"Permission denied|Too many authentication failures|No more authentication methods",
    "refused": r"Connection refused",
    "timeout": r"timed out|timeout",
    "no_route": r"No route to host|Network is unreachable",
    "closed": r"Connection (closed|reset)|kex_exchange_identification|Broken pipe",
    "no_ssh": r"No such file or directory: b?'ssh'|ssh: not found|sshpass",
}
SUDO = {
    "sudo_password": r"password is required|Missing sudo password|no askpass|a terminal is required",
    "sudo_wrong": r"Incorrect sudo password|Sorry, try again|incorrect password attempt",
    "sudo_not_allowed": r"not in the sudoers|may not run sudo|is not allowed to (execute|run)",
    "sudo_missing": r"sudo: (command )?not found|sudo: No such file",
}
TEXTS = {
    "host_key": "{where} has another host key than before: if it is new, ssh-keygen -R {address}{known_hosts}",
    "unknown_name": "{address}, the address of {host}, can't be resolved: correct ansible_host, or give an address",
    "key_open": "the private key {key} can be read by others, so SSH refuses it: chmod 600 {key}",
    "booting": "{where} still boots or shuts down",
    "permission": "{where} refuses the login of {user} with {key}: look at ansible_user, "
    "ansible_ssh_private_key_file, and at ~{user}/.ssh/authorized_keys on the host",
    "refused": "{where} answers, but nothing listens on port {port}: start its SSH server, or give it ansible_port",
    "timeout": "{where} does not answer by SSH as {user}, the time ran out: is it up (vagrant status), is its "
    "address right, is there a firewall?",
    "no_route": "{where} does not answer by SSH as {user}, there is no route to it: is it up (vagrant status), is "
    "its address right?",
    "closed": "{where} closes the connection: look at its SSH server (journalctl --unit=ssh)",
    "no_ssh": "this machine has no ssh: install OpenSSH's client (Debian, Ubuntu: apt-get install openssh-client)",
    "no_python": "{where} has no Python 3: install it (Debian, Ubuntu: apt-get install python3), or give "
    "ansible_python_interpreter",
    "sudo_password": "sudo on {host} needs a password of {user}: --ask-become-pass, or ansible_become_password in a "
    "file of ansible-vault, or NOPASSWD for {user}",
    "sudo_wrong": "sudo on {host} refuses the password given for {user}",
    "sudo_not_allowed": "{user} may not use sudo on {host}: add it to the group sudo, or give another ansible_user",
    "sudo_missing": "{host} has no sudo: install it (Debian, Ubuntu: apt-get install sudo), or log in as root with "
    "ansible_become=false",
    "other": "{where} can't be used",
}


def kind(text: str, patterns: dict[str, str]) -> str:
    """Return which of the known problems a program's message is, or ``other``."""
    return next((name for name, pattern in patterns.items() if re.search(pattern, text, re.IGNORECASE)), "other")


class ActionModule(ActionBase):
    """What Ansible calls, once for each host."""

    _VALID_ARGS = frozenset(("patience",))
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return nothing when the host can be worked on, else the problem in one line."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        patience = float(self._task.args.get("patience", 60))
        host = (task_vars or {})["inventory_hostname"]
        self._interpreter = (task_vars or {}).get("ansible_python_interpreter")
        begun = time.monotonic()
        while True:
            found, said = self._attempt()
            waited = time.monotonic() - begun
            if not found:
                return result | {"changed": False}
            if waited > patience or (found not in WAITING_HELPS and waited > min(SURE, patience)):
                return result | {"kind": found, "problem": self._text(found, said, host)}
            with contextlib.suppress(AnsibleError):
                self._connection.reset()
            time.sleep(PAUSE)

    def _attempt(self) -> tuple[str, str]:
        """Return what does not work, and what was said of it; nothing if all does."""
        try:
            said = self._low_level_execute_command("command -v python3 || true", sudoable=False)
        except AnsibleError as error:
            return kind(str(error), SSH), str(error)
        if not said["stdout"].strip() and not self._interpreter:
            return "no_python", ""
        if not self._connection.become:
            return "", ""
        try:
            said = self._low_level_execute_command("id -u", sudoable=True)
        except AnsibleError as error:
            return _sudo(str(error))
        return ("", "") if said["rc"] == 0 else _sudo(said["stderr"] + said["stdout"])

    def _option(self, name: str) -> str:
        """Return an option of the connection, such as the user who logs in."""
        try:
            return str(self._connection.get_option(name) or "")
        except KeyError:
            return ""

    def _text(self, found: str, said: str, host: str) -> str:
        """Return the problem and what to do, in one line."""
        address, port = self._option("host") or host, self._option("port") or "22"
        known = re.search(r"UserKnownHostsFile=\"?([^\"']+)", self._option("ssh_common_args"))
        names = {
            "host": host,
            "where": host if address == host else f"{host} ({address})",
            "address": address if port == "22" else f"[{address}]:{port}",
            "user": self._option("remote_user") or getpass.getuser(),
            "key": self._option("private_key_file") or "the keys that SSH finds",
            "port": port,
            "known_hosts": f" -f {quote(os.path.normpath(known.group(1).strip()))}" if known else "",
        }
        text = TEXTS[found].format(**names)
        last = [line.strip() for line in said.splitlines() if line.strip()]
        return f"{text}: {last[-1]}" if found == "other" and last else text


def _sudo(text: str) -> tuple[str, str]:
    found = kind(text, SUDO)
    return (found, text) if found != "other" else (kind(text, SSH), text)
