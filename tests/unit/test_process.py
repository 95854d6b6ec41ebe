"""Child processes: their log, how they end, and that they end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_node.errors import ProcessError
from fl_node.nodes.process import TAIL_LINES, Child, stop_all
from fl_node.runtime.waiting import wait_until

STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)"
)
SLEEP = ["sleep", "60"]
HANG = 600.0
"""Seconds after which something has hung."""


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Children that are killed after the test."""
    children: list[Child] = []
    yield children
    for child in children:
        child.process.kill()
        child.process.wait()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has waited for is still there.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_a_child_says_is_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    child = Child("child", ["sh", "-c", "echo out; echo error >&2; exit 3"], log)
    assert child.process.wait(HANG) == 3
    assert not child.running
    assert log.read_text() == "out\nerror\n"
    assert child.tail() == "\n  out\n  error"


def test_a_log_is_continued_by_the_next_child(tmp_path: Path) -> None:
    for word in ("one", "two"):
        Child("child", ["echo", word], tmp_path / "log").process.wait(HANG)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_captured_child_gives_its_output_and_logs_its_errors(tmp_path: Path) -> None:
    child = Child("child", ["sh", "-c", "echo out; echo error >&2"], tmp_path / "log", capture=True)
    assert child.output.read() == b"out\n"
    child.stop()
    assert (tmp_path / "log").read_text() == "error\n"
    assert child.output.closed


def test_the_output_of_a_child_that_is_not_captured_is_in_its_log(tmp_path: Path) -> None:
    child = Child("child", ["true"], tmp_path / "log")
    with pytest.raises(ProcessError, match="child's output goes to"):
        _ = child.output
    child.stop()


def test_a_child_has_its_parents_environment_and_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FROM_PARENT", "parent")
    child = Child("child", ["sh", "-c", "echo $FROM_PARENT $OWN"], tmp_path / "log", {"OWN": "own"})
    child.process.wait(HANG)
    assert (tmp_path / "log").read_text() == "parent own\n"


def test_a_tail_is_the_end_of_a_log_of_any_bytes(tmp_path: Path) -> None:
    child = Child("child", ["true"], tmp_path / "log")
    child.process.wait(HANG)
    (tmp_path / "log").write_bytes(b"".join(b"line %d \xff\n" % number for number in range(100)))
    lines = child.tail().split("\n  ")[1:]
    assert len(lines) == TAIL_LINES
    assert lines[-1].startswith("line 99")
    (tmp_path / "log").unlink()
    assert child.tail() == ""


@pytest.mark.parametrize("what", ["missing", "not executable", "a folder"])
def test_a_program_that_cannot_be_started_is_named(tmp_path: Path, what: str) -> None:
    program = tmp_path / "program"
    if what == "not executable":
        program.write_text("")
    elif what == "a folder":
        program.mkdir()
    with pytest.raises(ProcessError, match=rf"the child can't be started: {program}: "):
        Child("the child", [str(program)], tmp_path / "log")


def test_a_child_that_listens_is_stopped_by_a_signal(tmp_path: Path, children: list[Child]) -> None:
    children.append(Child("child", SLEEP, tmp_path / "log"))
    assert children[0].running
    children[0].stop()
    assert children[0].process.returncode == -signal.SIGTERM
    children[0].stop()


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path, children: list[Child]) -> None:
    child = Child("child", [sys.executable, "-c", STUBBORN], tmp_path / "log", capture=True)
    children.append(child)
    assert child.output.readline() == b"up\n"
    child.stop(patience=0.2)
    assert child.process.returncode == -signal.SIGKILL


def test_children_are_stopped_side_by_side(tmp_path: Path, children: list[Child]) -> None:
    # Each ends well only if all others are asked to end before it has ended.
    everyone = " -a ".join(f"-e {n}.asked" for n in range(4))
    for n in range(4):
        on_signal = f"touch {n}.asked; until [ {everyone} ]; do sleep 0.05; done; exit 0"
        script = f"cd {tmp_path}; trap '{on_signal}' TERM; echo up; while :; do sleep 0.05; done"
        children.append(Child(f"{n}", ["sh", "-c", script], tmp_path / f"{n}.log", capture=True))
    for child in children:
        assert child.output.readline() == b"up\n"
    stop_all(children, patience=HANG)
    assert [child.process.returncode for child in children] == [0] * 4


def test_ctrl_c_of_the_parent_does_not_reach_a_child(tmp_path: Path, children: list[Child]) -> None:
    children.append(Child("child", SLEEP, tmp_path / "log"))
    assert os.getsid(children[0].process.pid) != os.getsid(0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("capture", [True, False], ids=["captured", "logged"])
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path, capture: bool) -> None:
    script = f"""
import time
from pathlib import Path
from fl_node.nodes.process import Child
child = Child("child", ["sleep", "60"], Path({str(tmp_path / "log")!r}), capture={capture})
print(child.process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert wait_until(lambda: not alive(pid), HANG)
