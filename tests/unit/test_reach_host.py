"""What keeps a host from being worked on: each of OpenSSH's and sudo's messages is told apart, with what to do."""

from __future__ import annotations

import pytest

from tests.helpers.checkout import load

reach = load("ansible/action_plugins/reach_host.py")

SSH = {
    "Host key verification failed.": "host_key",
    "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": "host_key",
    "ssh: Could not resolve hostname lab.invalid: Name or service not known": "unknown_name",
    "Permissions 0644 for 'key' are too open. bad permissions\nvagrant@h: Permission denied (publickey).": "key_open",
    '"System is booting up. Unprivileged users are not permitted to log in yet."\nConnection closed': "booting",
    "vagrant@192.168.56.10: Permission denied (publickey).": "permission",
    "Received disconnect from 10.0.0.1: Too many authentication failures": "permission",
    "ssh: connect to host 192.168.56.10 port 22: Connection refused": "refused",
    "ssh: connect to host 192.168.56.10 port 22: Connection timed out": "timeout",
    "Connection timed out during banner exchange": "timeout",
    "ssh: connect to host 192.168.56.10 port 22: No route to host": "no_route",
    "kex_exchange_identification: Connection closed by remote host": "closed",
    "something else": "other",
}
SUDO = {
    "sudo: a password is required": "sudo_password",
    "Missing sudo password": "sudo_password",
    "Incorrect sudo password": "sudo_wrong",
    "vagrant is not in the sudoers file.  This incident will be reported.": "sudo_not_allowed",
    "Sorry, user vagrant may not run sudo on learner-1.": "sudo_not_allowed",
    "/bin/sh: 1: sudo: not found": "sudo_missing",
}


@pytest.mark.parametrize("text", SSH)
def test_sshs_errors_are_told_apart(text: str) -> None:
    assert reach.kind(text, reach.SSH) == SSH[text]


@pytest.mark.parametrize("text", SUDO)
def test_sudos_errors_are_told_apart(text: str) -> None:
    assert reach.kind(text, reach.SUDO) == SUDO[text]


def test_each_problem_has_a_text_that_names_the_host() -> None:
    assert set(reach.TEXTS) >= {*SSH.values(), *SUDO.values(), "no_python", "no_ssh"}
    names = {"host": "h", "where": "h (10.0.0.1)", "address": "10.0.0.1", "user": "u", "key": "k", "port": "22"}
    for name, text in reach.TEXTS.items():
        line = text.format(**names, known_hosts=" -f 'known hosts'")
        assert "\n" not in line
        assert name in {"key_open", "no_ssh"} or "h " in line or " h" in line
