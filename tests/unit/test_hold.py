"""Which process a scenario suspends: the role that logs the trigger, and nobody who only names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fl_node.lab.hold import role_of

WANTED = {"event": "training_started", "where": {"round": 1}}

RUN, OTHER = "0xA5d0182bB6d885e867764b0dE9012659f0D57Cd9", "0xB5d0182bB6d885e867764b0dE9012659f0D57Cd9"


def line(pid: int, **event: object) -> str:
    """Return a line of the journal with an event, which a process has logged."""
    text = json.dumps({"message": "some sentence", **event})
    return json.dumps({"__REALTIME_TIMESTAMP": "1", "_PID": str(pid), "_SYSTEMD_UNIT": "u.service", "MESSAGE": text})


def test_the_first_that_logs_the_event_is_suspended() -> None:
    lines = [
        "-- No entries --",
        line(11, event="role_started", contract=RUN),
        line(11, event="training_started", round=0),
        json.dumps({"_PID": "12", "MESSAGE": "training_started in round 1"}),
        line(13, event="training_started", round=1),
        line(14, event="training_started", round=1),
    ]
    assert role_of(lines, RUN, WANTED) == 13


def test_a_journal_without_the_event_names_nobody() -> None:
    assert role_of([line(11, event="training_started", round=2)], RUN, WANTED) is None
    assert role_of([], RUN, WANTED) is None


def test_a_later_run_is_not_meant() -> None:
    lines = [line(11, event="role_started", contract=OTHER), line(11, event="training_started", round=1)]
    assert role_of(lines, RUN, WANTED) is None


def test_the_process_is_suspended_while_the_journal_goes_on(tmp_path: Path) -> None:
    journalctl = tmp_path / "journalctl"
    with subprocess.Popen(["sleep", "600"]) as role:
        journalctl.write_text(
            f"#!/bin/sh\necho '{line(role.pid, event='training_started', round=1)}'\nexec sleep 600\n"
        )
        journalctl.chmod(0o755)
        command = [sys.executable, "-m", "fl_node.lab.hold", "u.service", "cursor", "0", RUN, json.dumps(WANTED)]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        try:
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            state = Path(f"/proc/{role.pid}/stat").read_text().rpartition(")")[2].split()[0]
        finally:
            role.kill()
    assert state == "T"
