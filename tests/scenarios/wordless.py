"""``fl-node`` with every sentence that a role logs replaced by "x": programs must match names and fields alone.


python -m tests.scenarios.wordless lab PLAN …
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_node.cli import app
from fl_node.lab import lab

WORDLESS = Path(__file__).parents[1] / "helpers" / "wordless" / "sitecustomize.py"


class _Child(lab.Child):
    """A role that is started through this module."""

    def __init__(self, name: str, command: Sequence[str], *arguments: Any, **options: Any) -> None:
        replaced = [__spec__.name if part == "fl_node" else part for part in command]
        super().__init__(name, replaced, *arguments, **options)


def main() -> None:
    """Replace the sentences and go on as ``fl-node``."""
    runpy.run_path(str(WORDLESS))
    lab.Child = _Child  # type: ignore[misc]
    sys.argv[0] = "fl-node"
    app.main()


if __name__ == "__main__":
    main()
