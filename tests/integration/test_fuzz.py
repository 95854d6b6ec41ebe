"""Hostile input, a lot of it, in processes that have imported what a role imports: none of them may die of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.fuzz import KINDS

COUNTS = {"model": 2000, "plan": 1000, "run": 500, "report": 500, "rpc": 1000, "page": 500}


def feed(kind: str, seed: int, count: int) -> None:
    """Feed a kind of input to a process of its own, which says what went wrong."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.helpers.fuzz", kind, str(seed), str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    # A negative code is the number of the signal that it died of.
    assert ended.returncode == 0, f"exit code {ended.returncode}: {ended.stderr[-3000:]}"
    assert ended.stdout.startswith(f"{kind}: "), ended.stdout


def test_each_kind_of_input_is_fuzzed() -> None:
    assert COUNTS.keys() == KINDS.keys()


def test_some_hostile_model_files_are_refused_in_a_process_that_has_imported_what_a_role_imports() -> None:
    feed("model", 1, 50)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", COUNTS)
def test_hostile_input_is_refused_and_kills_nothing(kind: str, seed: int) -> None:
    feed(kind, seed, COUNTS[kind])
