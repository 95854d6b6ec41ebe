"""Child processes that end with their parent, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from fl_node.errors import ProcessError

STOP_PATIENCE = 15.0
TAIL_LINES = 12
_PR_SET_PDEATHSIG = 1


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
        with log.open("ab") as file:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file if not capture else subprocess.PIPE,
                    stderr=subprocess.STDOUT if not capture else file,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()),
                )
            except OSError as error:
                raise ProcessError(f"{name} can't be started: {command[0]}: {error.strerror}") from error

    @property
    def output(self) -> IO[bytes]:
        """What the process prints, if it is captured."""
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
        return "".join(f"\n  {line}" for line in lines)

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


def stop_all(children: Sequence[Child]) -> None:
    """End processes side by side."""
    for child in children:
        child.terminate()
    for child in children:
        child.stop()


def _die_with(parent: int):  # type: ignore[no-untyped-def]
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be heard
            os._exit(1)

    return ask
