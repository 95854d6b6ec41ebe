"""Standard streams that are closed, full or read by nobody: one line at most, and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY

DEMO = str(Path(__file__).parents[2] / "plans" / "demo.toml")
COMMANDS = {
    "help": ["--help"],
    "nothing": [],
    "version": ["--version"],
    "plan check": ["plan", "check", DEMO],
    "plan shards": ["plan", "shards", "tiny.toml"],
    "key": ["key", "role.key"],
    "scenarios": ["lab", DEMO, "--scenario", "list"],
    "lab": ["lab", "tiny.toml"],
    "doctor": ["doctor", "--rpc", "http://127.0.0.1:1", "--store", "/ip4/127.0.0.1/tcp/1"],
}
OUTPUTS = {
    "full": (2, "fl-node: standard output: No space left on device\n"),
    "closed": (2, "fl-node: standard output: it is closed\n"),
    "unread": (141, ""),
}
DRIVER = """
import json, os, sys
from fl_node import cli
import fl_node.doctor, fl_node.lab, fl_node.partition, fl_node.sources  # once for all cases

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
    cli.main()

for kind, name, arguments in json.loads(sys.argv[1]):
    log = f"{kind} {name}.log"
    code = carry_out(kind, arguments, log)
    print(json.dumps([kind, name, code, open(log).read()]), flush=True)
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str, list[str]]]:
    """How each command ended with each standard output: exit code and standard error; and what folders it left."""
    here = tmp_path_factory.mktemp("here")
    (here / "tiny.toml").write_text(TINY)
    cases = [[kind, name, arguments] for kind in OUTPUTS for name, arguments in COMMANDS.items()]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FL_NODE_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, json.dumps(cases)],
        cwd=here,
        env={**clean, "FL_NODE_CACHE": str(here / "cache")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    left = [str(path.relative_to(here)) for path in here.rglob("*") if path.is_dir()]
    return {(kind, name): (code, said, left) for kind, name, code, said in found}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_standard_output_that_takes_nothing_is_one_line_and_an_exit_code(
    ends: dict[tuple[str, str], tuple[int, str, list[str]]], kind: str, name: str
) -> None:
    code, said, left = ends[kind, name]
    assert (code, said) == OUTPUTS[kind]
    assert left == []


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("plan check - <&-", 2, "fl-node: plan -: standard input is closed\n"),
        ("plan check nowhere 2>&-", 2, ""),
        ("plan check nowhere 2>/dev/full", 2, ""),
        ("--version <&- >&- 2>&-", 2, ""),
        ("--version </dev/null >/dev/null 2>&-", 0, ""),
        ("--help | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_a_shell_may_close_any_stream(tmp_path: Path, line: str, code: int, said: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -P -m fl_node {line}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)
