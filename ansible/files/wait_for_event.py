"""Wait until a role's unit, or one of several, has logged an event.

Usage: wait_for_event.py UNIT[,UNIT…] CURSOR SECONDS WANTED

WANTED is a JSON object with ``event``, the event's name, and ``where``, values that its fields must have. The journal
is read from the cursor on. Exit code 1: the event did not come in time. Runs with the Python of the host's fl-node.
"""

import json
import subprocess
import sys
import time

from fl_node.events import is_wanted
from fl_node.runtime import logs


def main() -> None:
    """Look once a second."""
    units, cursor, seconds, wanted = sys.argv[1:]
    of = [f"--unit={unit}" for unit in units.split(",")]
    command = ["journalctl", "--quiet", "--output=cat", *of, f"--after-cursor={cursor}"]
    end = time.monotonic() + float(seconds)
    while True:
        events = map(logs.parse, subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines())
        if any(is_wanted(event, json.loads(wanted)) for event in events if event):
            return
        if time.monotonic() > end:
            sys.exit(f"{units} has not logged {wanted} in {seconds} s")
        time.sleep(1)


main()
