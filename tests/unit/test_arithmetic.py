"""Nothing that a user has set for other work changes what is computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl_node.runtime import arithmetic
from tests.helpers.hostile_environment import HOSTILE


def test_variables_that_change_arithmetic_are_dropped_or_set() -> None:
    environment = {**HOSTILE, "KERAS_HOME": "/home/me/keras", "TF_CPP_MIN_LOG_LEVEL": "0", "PATH": "/bin"}
    arithmetic.pin_environment(environment)
    assert environment == arithmetic.pinned_variables() | {
        "KERAS_HOME": "/home/me/keras",
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "PATH": "/bin",
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
    }
    again = dict(environment)
    arithmetic.pin_environment(again)
    assert again == environment


def test_a_process_that_is_pinned_already_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("started again"))
    arithmetic.pin_process()


def test_the_command_line_is_started_anew_with_the_same_arguments(tmp_path: Path) -> None:
    plan = tmp_path / "a plan.toml"
    plan.write_text('name = "x"\n')
    for start in ([sys.executable, "-m", "fl_node"], [sys.executable, "-E", "-m", "fl_node"]):
        command = [*start, "plan", "check", "--json", "-", "--set", "seed=3"]
        with plan.open() as file:
            done = subprocess.run(
                command,
                stdin=file,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"PYTHONHASHSEED": "5"},
            )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["seed"] == 3


def test_what_can_not_be_pinned_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libfast.so")
    notes = "\n".join(arithmetic.unpinned())
    assert "another processor" in notes
    assert "/usr/lib/libfast.so" in notes
