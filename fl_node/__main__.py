"""``python -m fl_node`` is ``fl-node``."""

from fl_node.cli import main

main()
