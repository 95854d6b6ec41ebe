"""``fl-node`` with a scenario that injects no fault, so that its expectations of the fault must fail.

python -m tests.scenarios.without_fault NAME lab PLAN …
"""

from __future__ import annotations

import dataclasses
import sys

from fl_node.cli import app
from fl_node.lab import faults


def main() -> None:
    """Take the fault out of the scenario and go on as ``fl-node``."""
    _, name, *rest = sys.argv
    faults.SCENARIOS[name] = dataclasses.replace(faults.SCENARIOS[name], fault=lambda _lab, _trace: None)
    sys.argv = ["fl-node", *rest]
    app.main()


if __name__ == "__main__":
    main()
