"""Programs run here: an installed binary is asked for its version, and Go builds one."""

from __future__ import annotations

import errno
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from fl_node.nodes.binaries.pins import Binary, SkippedError

#: Seconds that a binary has to say its version.
VERSION_TIMEOUT = 60.0


class OtherVersionError(SkippedError):
    """The program is of another version than the pinned one; ``version`` is the one that it prints."""

    def __init__(self, text: str, version: str) -> None:
        super().__init__(text)
        self.version = version


def this_machine() -> str:
    """Return system and architecture as in the releases' names: ``linux-amd64``."""
    machine = platform.machine().lower()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return f"{platform.system().lower()}-{architecture}"


def check_version(binary: Binary, path: Path) -> None:
    """Run `path` and see that it is the pinned version.

    Raises
    ------
    OtherVersionError
        It is another version.
    SkippedError
        It can't be run, or says nothing.
    """
    try:
        output = _run_new([str(path.absolute()), *binary.version_args], VERSION_TIMEOUT)
    except OSError as error:
        raise SkippedError(f"{path} can't be run here: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"{path} did not print its version within {VERSION_TIMEOUT:.0f} s") from error
    lines = [line.strip() for line in (output.stdout + output.stderr).splitlines() if line.strip()]
    if output.returncode != 0:
        raise SkippedError(f"{path} failed: {lines[-1] if lines else f'exit code {output.returncode}'}")
    if f"{binary.version_prefix}{binary.full_version}" not in lines:
        printed = next((line for line in lines if re.search(r"\d+\.\d+\.\d+", line)), "nothing")
        version = printed.removeprefix(binary.version_prefix)
        raise OtherVersionError(f"{path} is not version {binary.full_version} (it prints {printed!r})", version)
    commit = next((line for line in lines if line.startswith("Git Commit: ")), None)
    if commit and not commit.startswith(f"Git Commit: {binary.commit}"):
        raise SkippedError(f"{path} is not from commit {binary.commit} (it prints {commit!r})")


def _run_new(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a file that was just written.

    Between fork and exec, another thread's child process may briefly hold it open for writing; then try again.

    Raises
    ------
    OSError
        The file can't be executed.
    """
    for _ in range(50):
        try:
            return run(command, timeout)
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
            time.sleep(0.02)
    return run(command, timeout)


def run(
    command: list[str], timeout: float, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command without input; return its output and exit code.

    Parameters
    ----------
    command
        The program and its arguments.
    timeout
        Seconds that it may take.
    cwd
        The working directory; this process's if None.
    env
        The environment; this process's if None.

    Raises
    ------
    subprocess.TimeoutExpired
        The command takes longer than ``timeout``.
    OSError
        The command can't be executed.
    """
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def last_line(text: str, nothing: str) -> str:
    """Return the last line that has something in it, or `nothing`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else nothing
