"""How long three hosts take: to come up, to be looked at again, and what train.yml adds to a run of its own length.

    python -m tests.bench.testbed [--plan plans/demo.toml] [--output results/bench-testbed.json]

Docker provider, warm caches: what is fetched once for all hosts is there before the first clock starts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.testbed.conftest import ROOT, Ended, Testbed, copy_checkout

AIMS = {"vagrant up, s": 240.0, "second site.yml, s": 45.0, "train.yml beyond the run, s": 20.0}


def timed(testbed: Testbed, *command: str) -> tuple[float, Ended]:
    """Run a command in the testbed's folder; return its seconds and how it ended."""
    start = time.monotonic()
    ended = testbed.run(*command)
    if ended.code != 0:
        raise SystemExit(
            f"{ended.output}\n{' '.join(command)} failed with exit code {ended.code}; all that it said is above"
        )
    return time.monotonic() - start, ended


def run_seconds(output: str) -> float:
    """Return the seconds from the header's first line in train.yml's output to its last, the end of the run."""
    clocks = re.findall(r"^  (\d\d:\d\d:\d\d) header: ", output, re.MULTILINE)
    first, last = (datetime.strptime(clock, "%H:%M:%S") for clock in (clocks[0], clocks[-1]))
    return (last - first).total_seconds() % 86_400


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="plans/demo.toml")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench-testbed.json")
    options = parser.parse_args()
    subprocess.run([ROOT / "vagrant" / "docker-engine", "start"], check=True)
    subprocess.run([ROOT / "vagrant" / "image"], check=True)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="testbed-bench-") as name:
        testbed = Testbed(Path(name))
        copy_checkout(testbed.root)
        try:
            figures["vagrant up, s"], _ = timed(testbed, "vagrant", "up", "--provider=docker")
            figures["second site.yml, s"], again = timed(testbed, "ansible-playbook", "ansible/site.yml")
            figures["second site.yml, changes"] = sum(counts["changed"] for counts in again.recap.values())
            whole, train = timed(testbed, "ansible-playbook", "ansible/train.yml", "-e", f"fl_plan={options.plan}")
            figures["train.yml, s"], figures["its run, s"] = whole, run_seconds(train.output)
            figures["train.yml beyond the run, s"] = whole - figures["its run, s"]
        finally:
            testbed.vagrant("destroy", "--force")
    for what, value in figures.items():
        aim = f"  (aim ≤ {AIMS[what]:g})" if what in AIMS else ""
        print(f"{what:32} {value:8.1f}{aim}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
