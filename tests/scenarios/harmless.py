"""``fl-node`` with a scenario that does no harm, so that what it promises of the harm must be seen not to hold.

python -m tests.scenarios.harmless NAME lab PLAN …
"""

from __future__ import annotations

import dataclasses
import sys

from fl_node.cli import app
from fl_node.lab import faults


def main() -> None:
    """Take the harm out of the scenario and go on as ``fl-node``."""
    _, name, *rest = sys.argv
    faults.SCENARIOS[name] = dataclasses.replace(faults.SCENARIOS[name], harm=lambda _lab, _story: None)
    sys.argv = ["fl-node", *rest]
    app.main()


if __name__ == "__main__":
    main()
