"""Carries out what a page of the lab guide tells its reader to type, and looks for what it says one will see.

A page's blocks, in Markdown:

- ```` ```sh ````: typed in one shell that stays open for the whole page; each command must end well.
- ```` ```sh title="first terminal" ````: stays in the foreground of another shell, until Ctrl-C at the page's end.
- ```` ```sh title="on the hosts" ````: for hosts that are up, from the machine that brought them up.
- ```` ```text ````: what one sees after the block before. Its lines must come in that order; … stands for any text,
  in a line of its own for any lines. Lines that are not shown may come between.
- ```` ```text title="first terminal" ````: what one sees there by now, or after a while.

A ``sh`` block with another title is an error, so none is left out by mistake.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.helpers import checkout

LAB = checkout.ROOT / "docs" / "lab"
FOREGROUND = "first terminal"
HOSTS = "on the hosts"
TITLES = ("", FOREGROUND, HOSTS)
HANG = 600.0
"""Seconds after which a step has hung."""
STOP = 120.0
END = "-- the step has ended --"

_FENCE = re.compile(r'^( *)```(\w*)(?: title="([^"]*)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Step:
    """One block to type, and the lines that one sees then."""

    where: str
    """File and line, for whoever looks for it."""
    title: str
    commands: str
    expected: list[str] = field(default_factory=list)


class GuideError(AssertionError):
    """A page does not say what is so."""


def steps(page: Path) -> list[Step]:
    """Return what a page tells to type, in its order."""
    text = page.read_text()
    typed: list[Step] = []
    for fence in _FENCE.finditer(text):
        indent, language, title, content = fence[1], fence[2], fence[3] or "", fence[4]
        where = f"{page.name}:{text.count(chr(10), 0, fence.start()) + 1}"
        lines = [line.removeprefix(indent) for line in content.splitlines()]
        if language == "sh":
            if title not in TITLES:
                raise GuideError(f"{where}: nothing carries out a block called {title!r}")
            typed.append(Step(where, title, "\n".join(lines)))
        elif language == "text" and title == FOREGROUND:
            typed.append(Step(where, title, "", lines))
        elif language == "text":
            if title or not typed:
                raise GuideError(f"{where}: there is nothing that this would come from")
            typed[-1].expected += lines
    return typed


def missing(expected: Sequence[str], output: str) -> str | None:
    """Return the first line that should be in an output and isn't, after those before it; None if all are."""
    lines = iter([_COLOUR.sub("", line).rstrip() for line in output.splitlines()])
    for wanted in expected:
        if not wanted.strip() or wanted.strip() == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.rstrip().split("…")))
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None


def check(step: Step, output: str) -> None:
    """Raise if an output is not what a page shows."""
    if (line := missing(step.expected, output)) is not None:
        raise GuideError(f"{step.where}: after\n{step.commands}\nthere is no line\n{line}\nin\n{output[-8000:]}")


class Shell:
    """A shell that steps are typed into, in a checkout; what it still runs at the end is ended."""

    def __init__(self, root: Path) -> None:
        self._script = root / "runs" / f"step-{id(self)}.sh"
        self._script.parent.mkdir(exist_ok=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            # A shell that is started in the background would hear nothing of Ctrl-C, nor would its commands.
            ["env", "--default-signal=INT", "bash", "--noprofile", "--norc", "-e", "-o", "pipefail"],
            cwd=root,
            # The copy's own package, and nothing of a data set: the guide does without MNIST.
            env={k: v for k, v in os.environ.items() if k != "FL_NODE_DATA_DIR"}
            | {"PYTHONPATH": str(root), "NO_COLOR": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(STOP)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._script.unlink(missing_ok=True)

    def do(self, step: Step) -> None:
        """Type a step, wait for its end and check what is seen."""
        self._type(step)
        check(step, "".join(self._output(step)))

    def start(self, step: Step) -> None:
        """Type a step that stays in the foreground, and wait until what is to be seen is seen."""
        self._type(step)
        self.look(step)

    def look(self, step: Step) -> None:
        """Wait until what is to be seen in the foreground is seen; nothing is looked at twice."""
        seen = ""
        for line in self._output(step):
            seen += line
            if missing(step.expected, seen) is None:
                return
        check(step, seen)

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait until what stayed in the foreground has ended well."""
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGINT)
        self._process.stdin.close()
        if (code := self._process.wait(STOP)) != 0:
            raise GuideError(f"exit code {code} after Ctrl-C")

    def _type(self, step: Step) -> None:
        """Let the shell carry a step out."""
        assert self._process.stdin is not None
        self._script.write_text(step.commands + "\n")
        # From a file, for the commands must not read the shell's input: what is typed next. The trap lets the shell
        # go on when it gets Ctrl-C together with its command.
        self._process.stdin.write(f"trap : INT; source {self._script} </dev/null\necho '{END}'\n")
        self._process.stdin.flush()

    def _output(self, step: Step) -> Iterator[str]:
        """Yield the lines that come, up to the end of what was typed."""
        deadline = time.monotonic() + HANG
        seen: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                raise GuideError(f"{step.where}: hangs for {HANG:g} s\n{''.join(seen[-50:])}") from None
            if line is None:
                raise GuideError(f"{step.where}: a command failed in\n{step.commands}\n{''.join(seen[-50:])}")
            if line.rstrip() == END:
                return
            seen.append(line)
            yield line

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


def follow(root: Path, before: Sequence[Step], page: Sequence[Step]) -> int:
    """Carry out a page's steps for one machine, each shell beginning with ``before``; return how many there were."""
    done = 0
    with contextlib.ExitStack() as stack:

        def terminal() -> Shell:
            shell = stack.enter_context(Shell(root))
            for step in before:
                shell.do(step)
            return shell

        second = terminal()
        first: Shell | None = None
        for step in page:
            if step.title == FOREGROUND and step.commands:
                first = terminal()
                first.start(step)
            elif step.title == FOREGROUND and first is not None:
                first.look(step)
            elif step.title == "":
                second.do(step)
            else:
                continue
            done += 1
        if first is not None:
            first.interrupt()
    return done
