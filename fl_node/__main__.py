"""``fl-node``, and ``python -m fl_node``."""

from fl_node.arithmetic import pin_process


def main() -> None:
    """Run the command line in a process in which nothing that a user has set for other work changes a result."""
    pin_process()
    from fl_node import cli

    cli.main()


if __name__ == "__main__":
    main()
