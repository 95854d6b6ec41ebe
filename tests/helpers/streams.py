"""Commands of ``fl-node`` whose standard output takes nothing: full, closed, or read by nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OUTPUTS = {
    "full": (2, "standard output: No space left on device"),
    "closed": (2, "standard output: it is closed"),
    "unread": (141, ""),
}
"""How a command ends with each: its exit code, and what it says after ``fl-node: ``."""

_DRIVER = """
import gc, importlib, json, os, sys
from tests.helpers import ending
ending.prepare()
from fl_node.cli import app as cli
cases, modules = json.loads(sys.argv[1])
for module in modules:
    importlib.import_module(module)  # once for all cases
cli.command_line()
gc.collect()
gc.freeze()  # or each fork that ends as Python does looks through all of it

def carry_out(kind, arguments, log):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    if kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif kind == "unread":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    else:
        os.close(1)
        sys.stdout = sys.__stdout__ = None  # as Python does at its start
    sys.argv = ["fl-node", *arguments]
    ending.call(cli.main)

for number, (kind, arguments) in enumerate(cases):
    log = f"{number}.log"
    code = carry_out(kind, arguments, log)
    print(json.dumps([code, open(log).read()]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote to standard error."""

    code: int
    errors: str


def carry_out(
    cases: Sequence[tuple[str, Sequence[str]]], folder: Path, environment: Mapping[str, str], modules: Sequence[str]
) -> list[Ended]:
    """Run commands in a folder, each with a standard output of one kind, and return how they ended.

    They are forks of one process, which imports ``modules`` before.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _DRIVER, json.dumps([cases, modules])],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("FL_NODE_")} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]
