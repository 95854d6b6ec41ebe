"""``fl-node`` with a scenario that does no harm, so that what it promises of the harm must be seen not to hold.

python -m tests.scenarios.harmless NAME lab PLAN …
"""

from __future__ import annotations

import dataclasses
import sys

from fl_node import cli, scenarios


def main() -> None:
    """Take the harm out of the scenario and go on as ``fl-node``."""
    _, name, *rest = sys.argv
    scenarios.SCENARIOS[name] = dataclasses.replace(scenarios.SCENARIOS[name], harm=lambda _lab, _story: None)
    sys.argv = ["fl-node", *rest]
    cli.main()


if __name__ == "__main__":
    main()
