"""Nothing that a user has set for other work changes what is computed."""

from __future__ import annotations

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


def test_what_can_not_be_pinned_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libfast.so")
    notes = "\n".join(arithmetic.unpinned())
    assert "another processor" in notes
    assert "/usr/lib/libfast.so" in notes
