"""``fl-node`` in processes that have TensorFlow from the start: for tests in which a start is not the point.

A server imports what takes seconds, once for all workers of pytest, and forks itself for each command, before
TensorFlow has any threads. What a lab starts in Python is forked from there as well. What a command does, what it
writes and how it ends is as from a shell; it is killed with the process that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from tests.helpers import ending

MAX_BYTES = 100_000
"""Of a request: arguments and environment."""


def fl_node(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Carry a command out, and capture what it writes, unless its standard output goes elsewhere."""
    return run("fl_node", *arguments, cwd=cwd, env=env, stdout=stdout)


def run(
    module: str,
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Do so with another module, which has a function ``main``."""
    command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
    if not sys.platform.startswith("linux"):
        out_to = stdout or subprocess.PIPE
        return subprocess.run(
            command, stdout=out_to, stderr=subprocess.PIPE, text=True, cwd=cwd, env=env, check=False
        )
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = Forked(_server(), command, stdout=stdout or out, stderr=err, env=env, cwd=cwd).wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


@functools.cache
def _server() -> Path:
    """Return the socket of the server, which the first worker starts; it ends with the process that all belong to."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    path = Path(tempfile.gettempdir(), f"warm-{session}")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            command = [sys.executable, "-P", __file__, str(path), str(owner)]
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
    return path


class Forked:
    """What stands for a ``subprocess.Popen`` of ``python -P -m MODULE …``."""

    def __init__(
        self,
        server: Path,
        command: Sequence[str],
        *,
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **_: object,
    ) -> None:
        _, module, *arguments = command[command.index("-P") + 1 :]
        asked = {
            "module": module,
            "arguments": arguments,
            "environment": dict(os.environ if env is None else env),
            "folder": str(cwd or Path.cwd()),
        }
        self.returncode: int | None = None
        self.stdout: IO[bytes] | None = None
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.connect(str(server))
        with contextlib.ExitStack() as stack:
            if stdout == subprocess.PIPE:
                reader, writer = os.pipe()
                self.stdout, stdout = os.fdopen(reader, "rb"), stack.enter_context(os.fdopen(writer, "wb"))
            outputs = [stdout, stdout if stderr == subprocess.STDOUT else stderr]
            numbers = [output if isinstance(output, int) else output.fileno() for output in outputs]
            socket.send_fds(self._end, [json.dumps(asked).encode()], numbers)
            self.pid = int(self._end.recv(MAX_BYTES))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._end.recv(MAX_BYTES))
            self._end.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(path: Path, owner: int) -> None:
    """Fork this process for each request, until its owner ends."""
    ended = os.pidfd_open(owner)
    from fl_node.cli.app import command_line
    from fl_node.nodes import process
    from fl_node.runtime import keras_start

    for module in (
        "monitor.server",
        "nodes.dev_chain",
        "lab.lab",
        "lab.simulate",
        "experiments.sweep",
        "experiments.reproduce",
    ):
        importlib.import_module(f"fl_node.{module}")
    keras_start.load()
    for drawing in ("figure", "backends.backend_svg"):
        importlib.import_module(f"matplotlib.{drawing}")
    importlib.import_module("coincurve")
    command_line()
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "what has threads must not be forked"

    def start(command: Sequence[str], **options: Any) -> Forked | subprocess.Popen[bytes]:
        kind = functools.partial(Forked, path) if "-P" in command else subprocess.Popen
        return kind(command, **options)

    process.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": start})  # type: ignore[assignment]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(64)
        print("ready", flush=True)
        while ended not in select.select([ended, listener], [], [])[0]:
            end, _ = listener.accept()
            if not os.fork():
                break
            end.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        else:
            path.unlink()
            path.with_suffix(".lock").unlink()
            return
    _answer(end)


def _answer(end: socket.socket) -> None:
    """Carry one request out in a child, and tell how it ended; end the child if nobody waits any more."""
    content, numbers, _, _ = socket.recv_fds(end, MAX_BYTES, 2)
    if child := os.fork():
        for number in numbers:
            os.close(number)
        end.send(str(child).encode())
        ended = os.pidfd_open(child)
        if ended not in select.select([ended, end], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            end.send(str(code).encode())
        os._exit(0)
    end.close()
    os.setsid()
    asked = json.loads(content)
    for target, number in enumerate([os.open(os.devnull, os.O_RDONLY), *numbers]):
        os.dup2(number, target)
        os.close(number)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # its folder may be another in this environment
    sys.argv = [asked["module"], *asked["arguments"]]
    # What `python -m fl_node` does before has been done here.
    name = "fl_node.cli.app" if asked["module"] == "fl_node" else asked["module"]
    ending.call(importlib.import_module(name).main)


if __name__ == "__main__":
    ending.prepare()
    from fl_node import safe_path

    safe_path.apply()
    from fl_node.runtime.arithmetic import pin_process

    pin_process()
    serve(Path(sys.argv[1]), int(sys.argv[2]))
