"""Suspends a role as soon as it logs an event, so that a scenario's fault meets it there, however slow the fault is.

On a host, as root, before the run starts::

    systemd-run --unit=fl-scenario-hold python -P -m fl_node.lab.hold UNIT[,UNIT…] CURSOR SECONDS CONTRACT EVENT

EVENT is a JSON object with ``event``, the event's name, and ``where``, values that its fields must have. The journal
is read from the cursor on. Whoever starts this lets the role continue when it ends, which is after so many seconds at
the latest. A run of another contract ends it before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from fl_node.events import RoleStarted, is_wanted
from fl_node.runtime import logs, strict_json


def role_of(lines: Iterable[str], contract: str, wanted: Mapping[str, Any]) -> int | None:
    """Return the process that first logs an event in a run.

    Parameters
    ----------
    lines
        Of the units' journal, as ``journalctl --output=json`` prints them.
    contract
        The run's.
    wanted
        The event's name as ``event``, and values of its fields as ``where``.

    Returns
    -------
    int | None
        Its process ID; None if another run starts or the journal ends first.
    """
    for line in lines:
        said = logs.parse_systemd(line)
        event = logs.parse(said.text) if said is not None else None
        if event is not None and is_wanted(event, wanted):
            return int(strict_json.loads(line)["_PID"])
        if event is not None and event.get("event") == RoleStarted.name and event.get("contract") != contract:
            return None
    return None


def main() -> None:
    """Suspend the role that the arguments name."""
    units, cursor, seconds, contract, wanted = sys.argv[1:]
    # By the unit of the process: what systemd says of a unit is of process 1.
    of = [f"_SYSTEMD_UNIT={unit}" for unit in units.split(",")]
    command = ["journalctl", "--quiet", "--all", "--follow", "--no-tail", f"--after-cursor={cursor}", "--output=json"]
    with subprocess.Popen([*command, *of], stdout=subprocess.PIPE, text=True, errors="replace") as journal:
        role = role_of(journal.stdout or (), contract, strict_json.loads(wanted))
        if role is not None:
            os.kill(role, signal.SIGSTOP)
        journal.terminate()
    if role is None:
        sys.exit("another run has started")
    print(f"process {role} is suspended", flush=True)
    time.sleep(float(seconds))


if __name__ == "__main__":
    main()
