"""Wait until a role's unit has logged an event.

Usage: wait_for_event.py UNIT CURSOR SECONDS EVENT WHERE

WHERE is a JSON object with values that the event's fields must have. The journal is read from the cursor on.
Exit code 1: the event did not come in time. Runs with the Python of a host.
"""

import json
import subprocess
import sys
import time


def is_wanted(line, name, where):
    """Return whether a line of the journal is the event."""
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return (
        isinstance(event, dict)
        and event.get("event") == name
        and all(str(event.get(key)) == str(value) for key, value in where.items())
    )


def main():
    """Look once a second."""
    unit, cursor, seconds, name, where = sys.argv[1:]
    command = ["journalctl", "--quiet", "--output=cat", "--unit=" + unit, "--after-cursor=" + cursor]
    end = time.monotonic() + float(seconds)
    while True:
        lines = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
        if any(is_wanted(line, name, json.loads(where)) for line in lines):
            return
        if time.monotonic() > end:
            sys.exit(f"{unit} has not logged {name} {where} in {seconds} s")
        time.sleep(1)


main()
