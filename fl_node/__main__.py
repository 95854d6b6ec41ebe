"""The program ``fl-node``, which ``python -m fl_node`` is too."""

from fl_node import safe_path

safe_path.apply()  # before anything else is imported

from fl_node.arithmetic import pin_process  # noqa: E402


def main() -> None:
    """Run the command line in a process in which nothing that a user has set for other work changes a result."""
    pin_process()
    from fl_node import cli

    cli.main()


if __name__ == "__main__":
    main()
