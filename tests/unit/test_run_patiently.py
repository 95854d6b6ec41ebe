"""Running a command until it works: a host that was never reached is given up sooner than a command that fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_PATH = Path(__file__).parents[2] / "ansible" / "action_plugins" / "run_patiently.py"
_spec = importlib.util.spec_from_file_location("run_patiently", _PATH)
assert _spec is not None and _spec.loader is not None
plugin: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plugin)

LOST: tuple[dict[str, Any], str, bool] = ({}, "no route to host", False)
FAILS = ({"rc": 5}, "the chain is away", False)
WORKS = ({"rc": 0}, "", False)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of all attempts, by a clock that goes on with each pause."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(plugin.ActionModule.__mro__[1], "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(plugin, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return now


def attempt(answers: list[tuple[dict[str, Any], str, bool]], **options: Any) -> dict[str, Any]:
    """Run with these answers, of which the last one stays."""
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    action._task = SimpleNamespace(args=options, delegate_to="header")
    action._attempt = lambda: answers.pop(0) if len(answers) > 1 else answers[0]
    result: dict[str, Any] = action.run()
    return result


@pytest.mark.parametrize(
    ("answers", "seconds"), [([LOST], 20), ([FAILS], 300), ([LOST, FAILS, LOST], 300)], ids=["lost", "fails", "both"]
)
def test_a_host_that_was_never_reached_is_given_up_sooner(
    tried: list[float], answers: list[tuple[dict[str, Any], str, bool]], seconds: float
) -> None:
    problem = answers[-1][1]
    result = attempt(answers, patience=300, reach=20)
    assert (result["done"], result["problem"]) == (False, problem)
    assert seconds < tried[0] <= seconds + plugin.PAUSE


def test_a_host_that_is_back_in_time_is_fine(tried: list[float]) -> None:
    assert attempt([LOST, LOST, WORKS], patience=300, reach=20)["done"]
