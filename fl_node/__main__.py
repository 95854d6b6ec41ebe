"""The program ``fl-node``, which ``python -m fl_node`` is too."""

from fl_node import safe_path

safe_path.apply()  # before anything else is imported

import atexit  # noqa: E402
import gc  # noqa: E402
import signal  # noqa: E402

# Ctrl-C during the imports ends the process without a traceback; then the command line takes care of it.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as after nohup
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from fl_node.runtime.arithmetic import pin_process  # noqa: E402


def main() -> None:
    """Run the command line in a process in which nothing that a user has set for other work changes a result."""
    pin_process()
    # Python's last garbage collections look at all that web3 and TensorFlow are made of, most of half a second.
    atexit.register(gc.freeze)
    from fl_node.cli import app

    app.main()


if __name__ == "__main__":
    main()
