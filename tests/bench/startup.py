"""How long a person waits for ``fl-node --help``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fl_node.errors import ProcessError
from tests.bench.results import Part, seconds

RUNS = 10


def measure(*, quick: bool) -> Part:
    """Time the whole process."""
    part = Part("Start: fl-node --help as a whole process")
    program = Path(sys.executable).with_name("fl-node")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "fl_node"]
    times = []
    for _ in range(3 if quick else RUNS):
        start = time.monotonic()
        done = subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, timeout=60)
        times.append(time.monotonic() - start)
        if done.returncode:
            raise ProcessError(f"fl-node --help ended with {done.returncode}")
    part.rows.append(seconds("fl-node --help", times, 0.3))
    return part
