"""The command line, ``fl-node``.

What takes long to import is imported where it is used, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fl_node import __version__
from fl_node.cli import attacks, experiments, lab, live_page, models, node, node_config, plans, results, roles
from fl_node.cli.command import Command
from fl_node.cli.common import Terminated, console, errors, process
from fl_node.errors import ConfigError, FLNodeError
from fl_node.runtime import files, streams
from fl_node.runtime.arithmetic import pin_environment
from fl_node.runtime.terminal import prepare

EXIT_CODES = (
    "[bold]Exit codes[/bold]  0 success · 1 an audit or check failed · 2 invalid option, plan or configuration · "
    "3 data set · 4 chain · 5 store · 6 model file rejected · 7 timed out waiting · 8 Geth or IPFS not installed · "
    "9 a lab process ended · 10 the run can't go on · 130 interrupted · 141 output pipe closed"
)

INTERRUPTED = 130
NO_READER = 141
"""What a shell gives for SIGPIPE."""

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Run": {
        "demo": lab.demo,
        "lab": lab.lab,
        "deploy": roles.deploy,
        "header": roles.header,
        "learner": roles.learner,
        "trainer": roles.trainer,
    },
    "Inspect a run": {
        "status": results.status,
        "logs": results.logs,
        "dashboard": live_page.dashboard,
        "journal": results.journal,
        "audit": results.audit,
        "report": results.report,
        "contribution": results.contribution,
    },
    "Use the model of a run": {
        "export": models.export,
        "evaluate": models.evaluate,
        "predict": models.predict,
    },
    "Compare runs": {
        "baseline": experiments.baseline,
        "reproduce": experiments.reproduce,
        "sweep": experiments.sweep,
        "sweep-keys": experiments.sweep_keys,
        "sweep-scheduler": experiments.sweep_scheduler,
        "sweep-worker": experiments.sweep_worker,
    },
    "Set up a node": {
        "doctor": node.doctor,
        "binaries": node.binaries,
        "data": node.data_files,
        "key": node.key,
        "fund": node.fund,
        "send-noop": node.send_noop,
    },
}
"""The commands by their group in the help."""
PLAN_COMMANDS: dict[str, Callable[..., None]] = {
    "new": plans.new,
    "check": plans.check,
    "shards": plans.shards,
    "module": plans.module,
    "schema": plans.schema,
}
ATTACK_COMMANDS: dict[str, Callable[..., None]] = {
    "membership": attacks.membership,
    "inversion": attacks.inversion,
}
NODE_CONFIG_COMMANDS: dict[str, Callable[..., None]] = {
    "geth": node_config.geth,
    "ipfs": node_config.ipfs,
    "genesis": node_config.genesis,
}


def _flowed(text: str) -> str:
    """Return a docstring with one line for each paragraph, for Typer breaks lines where the source does.

    Indented examples keep their lines.
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else " ".join(paragraph.split()) for paragraph in paragraphs
    )


def _help(command: Callable[..., Any]) -> str:
    return _flowed(str(command.__doc__))


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"fl-node {__version__}")
        raise typer.Exit


def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks and log more.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning on a private Ethereum chain and a private IPFS swarm.

    Learners train on data that stays on their hosts; a header aggregates their weights. Model files are stored in
    IPFS and their hashes in a contract, so anyone can trace, check and recompute every model.

    Start with [bold]fl-node demo[/bold]: a complete run on this machine in about a minute. Then write your own plan
    with [bold]fl-node plan new mine.toml[/bold] and run it with [bold]fl-node lab mine.toml[/bold].
    """
    process.verbose = verbose


def _build() -> typer.Typer:
    built = typer.Typer(
        name="fl-node",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=EXIT_CODES,
    )
    built.callback(help=_help(options))(options)
    for group, commands in COMMANDS.items():
        for name, command in commands.items():
            built.command(name, cls=Command, help=_help(command), rich_help_panel=group)(command)
    for group_name, text, panel, commands in (
        ("plan", "Write, check and inspect plans.", "Run", PLAN_COMMANDS),
        (
            "attack",
            "Show what the published files of a run reveal about its training images (lab only).",
            "Inspect a run",
            ATTACK_COMMANDS,
        ),
        ("node-config", "Print the configuration of Geth and IPFS on a host.", "Set up a node", NODE_CONFIG_COMMANDS),
    ):
        subcommands = typer.Typer(no_args_is_help=True, help=text)
        for name, command in commands.items():
            subcommands.command(name, cls=Command, help=_help(command))(command)
        built.add_typer(subcommands, name=group_name, rich_help_panel=panel)
    return built


app = _build()


@functools.cache
def command_line() -> Callable[..., Any]:
    """Return the command line, ready to be called. Typer would build all commands again, 0.1 s, for each call."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; report each error that a user can fix as one line and an exit code.

    Raises
    ------
    SystemExit
        Always, with the exit code.
    ModuleNotFoundError
        With ``--verbose``, if a Python package is missing.
    RuntimeError
        A library failed; a defect.
    """
    process.is_role = process.stopped = False
    pin_environment()
    streams.prepare()
    prepare()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # where it is ignored, as after nohup, it stays so
        signal.signal(signal.SIGINT, _interrupt)
    try:
        command_line()(standalone_mode=True)
    except FLNodeError as error:
        if process.verbose:
            errors.print(traceback.format_exc(), end="")
        if not _log_failure(error):
            errors.print(f"fl-node: {error}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        # As on a controller, which has what it needs to reach hosts and no more.
        missing = (error.name or "").partition(".")[0]
        if process.verbose or missing == "fl_node":
            raise
        errors.print(
            f"fl-node: the Python package {missing} is not installed in {sys.prefix}; "
            "install fl-node there with its dependencies (a checkout: requirements/node.txt)",
        )
        sys.exit(ConfigError.exit_code)
    except RuntimeError:
        if not process.stopped:
            raise
        # TensorFlow's C++ code makes this of the signal's exception while it raises an error of its own.
        errors.print("fl-node: stopped")
        sys.exit(INTERRUPTED)
    except OSError as error:
        # A folder that is not there, a full disk.
        if process.verbose:
            traceback.print_exc()
        errors.print(f"fl-node: {files.described(error)}")
        sys.exit(ConfigError.exit_code)
    except SystemExit as end:
        # typer and rich make this of a broken pipe, with the code of an audit that found something.
        if isinstance(end.__context__, BrokenPipeError):
            sys.exit(NO_READER)
        # typer makes this of KeyboardInterrupt, and says nothing.
        if end.code == INTERRUPTED:
            errors.print("fl-node: stopped")
        raise
    finally:
        streams.finish()


def _stop(_signal: int, _frame: object) -> None:
    _end_role(0)
    process.stopped = True
    raise Terminated


def _interrupt(_signal: int, _frame: object) -> None:
    _end_role(INTERRUPTED)
    process.stopped = True
    raise KeyboardInterrupt


def _end_role(code: int) -> None:
    """End a role at once, which may be killed at any time; an exception within TensorFlow can corrupt its memory."""
    if not process.is_role:
        return
    from fl_node import events
    from fl_node.runtime import logs

    # A handler that interrupts a write can't write or flush.
    with contextlib.suppress(RuntimeError, OSError):
        logs.emit(events.RoleStopped())
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _log_failure(error: FLNodeError) -> bool:
    """Log the error if a role ends with it; return whether standard error has it in its log."""
    if not process.is_role:
        return False
    from fl_node.events import RoleFailed
    from fl_node.runtime import logs

    logs.emit(RoleFailed(error=type(error).__name__, exit_code=error.exit_code, detail=str(error)))
    return logs.is_json()
