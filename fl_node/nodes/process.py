"""Child processes that end with their parent, however it ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from fl_node.errors import ProcessError
from fl_node.runtime import logs

STOP_PATIENCE = 15.0
TAIL_LINES = 12

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):  # it died before it could be heard
    os._exit(1)
for one in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and its successor would too
    signal.signal(one, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Run in the child before its program. Not in a fork of the parent (``preexec_fn``): a signal that comes while
Python forks is lost, and with it the lock of the parent's logs."""


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module; Python does not look for modules in the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


class Child:
    """One process with a log file.

    It has a session of its own, so that Ctrl-C reaches the parent alone, which then stops its children in order;
    should the parent be killed, the kernel kills the child (Linux).
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        capture: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **(environment or {})}
        if shutil.which(command[0], path=environment.get("PATH")) is None:
            reason = os.strerror(errno.EACCES if os.path.lexists(command[0]) else errno.ENOENT)
            raise ProcessError(f"{name} can't be started: {command[0]}: {reason}")
        with log.open("ab") as file:
            try:
                self.process = subprocess.Popen(
                    [*_guard(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=file if not capture else subprocess.PIPE,
                    stderr=subprocess.STDOUT if not capture else file,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessError(f"{name} can't be started: {command[0]}: {error.strerror}") from error

    @property
    def output(self) -> IO[bytes]:
        """The standard output of the process, if it is captured.

        Raises
        ------
        ProcessError
            The output is not captured; it goes to the log.
        """
        if self.process.stdout is None:
            raise ProcessError(f"{self.name}'s output goes to {self.log}")
        return self.process.stdout

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def tail(self) -> str:
        """Return the last lines of the log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            return ""
        return "".join(f"\n  {logs.readable(line)}" for line in lines)

    def terminate(self) -> None:
        """Ask the process to end, and go on."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)

    def stop(self, patience: float = STOP_PATIENCE) -> None:
        """End the process: ask, wait, and kill it if it does not listen."""
        self.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def stop_all(children: Sequence[Child], patience: float = STOP_PATIENCE) -> None:
    """End processes side by side."""
    for child in children:
        child.terminate()
    for child in children:
        child.stop(patience)


def _guard() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
