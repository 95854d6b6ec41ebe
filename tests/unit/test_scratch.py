"""Temporary folders, and what is left of those whose owners were killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fl_node.runtime import scratch

OWNER = """
import sys, tempfile
from fl_node.runtime import scratch
tempfile.tempdir = sys.argv[1]
with scratch.folder("fl-sweep-") as path:
    (path / "run").mkdir()
    (path / "run" / "log").write_text("x")
    print(path, flush=True)
    sys.stdin.read()
"""
Owner = Callable[[], tuple[subprocess.Popen[str], Path]]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def owner(temporary: Path) -> Iterator[Owner]:
    """Start a process that has a temporary folder until its standard input ends."""
    with ExitStack() as stack:

        def start() -> tuple[subprocess.Popen[str], Path]:
            command = [sys.executable, "-c", OWNER, str(temporary)]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, Path(process.stdout.readline().rstrip("\n"))

        yield start


def test_a_folder_is_gone_when_its_owner_is_done(temporary: Path) -> None:
    with scratch.folder() as path:
        (path / "file").write_text("x")
        assert path.parent == temporary
    assert not list(temporary.iterdir())


def test_the_next_process_removes_the_folder_of_one_that_was_killed(owner: Owner) -> None:
    (killed, left), (_, living) = owner(), owner()
    killed.kill()
    killed.wait()
    assert (left / "run" / "log").exists()
    with scratch.folder():
        assert not left.exists()
        assert (living / "run" / "log").exists()


def test_what_may_be_a_result_or_anybody_elses_stays(temporary: Path) -> None:
    result = temporary / "fl-node-abc"
    result.mkdir()
    (result / "audit.json").write_text("{}")
    other = temporary / "other"
    other.mkdir()
    (other / scratch.LOCK).touch()
    linked = temporary / "fl-node-link"
    linked.symlink_to(other)
    (temporary / "fl-node-file").touch()
    before = sorted(temporary.rglob("*"))
    with scratch.folder():
        pass
    assert sorted(temporary.rglob("*")) == before


def test_a_lock_that_is_no_file_is_left_alone(temporary: Path) -> None:
    folder = temporary / "fl-node-fifo"
    folder.mkdir()
    os.mkfifo(folder / f"{scratch.LOCK}.other")
    (folder / scratch.LOCK).symlink_to(folder / f"{scratch.LOCK}.other")
    with scratch.folder():
        assert folder.exists()
