"""Following a role: only the contract says that a run has ended, and only a unit that is not restarted has failed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from tests.helpers.checkout import load

plugin = load("ansible/action_plugins/follow_role.py")

LOST = AnsibleConnectionFailure("ssh: connect to host 10.0.0.1 port 22: No route to host")
LINE = json.dumps(
    {"time": "2026-11-27T10:00:00.000Z", "level": "info", "node": "learner", "event": "training_started", "round": 1}
    | {"message": "some \x1b[31m sentence"}
)


class Host:
    """A host that answers each look by the next of a list; whether the run has ended is asked for of another list."""

    def __init__(self, looks: list[str | Exception], ended: list[bool] | None = None, **options: Any) -> None:
        self.looks: Iterator[str | Exception] = iter(looks)
        self.ended = iter(ended or [])
        self.asked = 0
        self.action = plugin.ActionModule.__new__(plugin.ActionModule)
        arguments = {"units": ["fl-learner.service"], "cursor": "c", "flag": "demo.failed"} | options
        self.action._task = SimpleNamespace(args=arguments, async_val=False, check_mode=False, diff=False)
        self.action._connection = SimpleNamespace(reset=lambda: None, _shell=SimpleNamespace(tmpdir=None))
        self.action._look = self._look
        self.action._has_ended = self._has_ended

    def _look(self, units: list[str], cursor: str) -> tuple[dict[str, dict[str, str]], str, list[tuple[str, str]]]:
        answer = next(self.looks)
        if isinstance(answer, Exception):
            raise answer
        states = [{"ActiveState": one, "ExecMainStatus": "3", "NRestarts": "1"} for one in answer.split()]
        return dict(zip(units, states, strict=True)), cursor, [(unit, LINE) for unit in units]

    def _has_ended(self, ended: Path) -> bool:
        self.asked += 1
        return next(self.ended)

    def follow(self) -> dict[str, Any]:
        result: dict[str, Any] = self.action.run(task_vars={"inventory_hostname": "learner-1"})
        return result


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(plugin.ActionModule.__mro__[1], "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(plugin, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    for name in ("MOST", "NOTICE"):
        monkeypatch.setattr(plugin, name, 0.0)


def test_a_unit_that_ended_with_the_run_is_done() -> None:
    assert Host(["active", "inactive"], [True]).follow()["msg"] == "fl-learner.service has ended"


def test_a_host_that_was_lost_and_boots_is_waited_for() -> None:
    host = Host(["active", LOST, LOST, "inactive", "inactive", "active", "inactive"], [False, False, True])
    assert "problem" not in host.follow()
    assert host.asked == 3


def test_a_unit_that_failed_for_good_is_said_with_its_last_lines(tmp_path: Path) -> None:
    problem = Host(["active", "failed"]).follow()["problem"]
    assert problem.startswith("fl-learner.service failed on learner-1 with exit code 3:")
    assert "some \\x1b[31m sentence" in problem
    assert (tmp_path / "demo.failed").read_text() == "learner-1"


def test_a_unit_that_is_restarted_has_not_failed() -> None:
    assert "problem" not in Host(["activating", "active", "inactive"], [True]).follow()


def test_a_host_that_stays_lost_is_left_when_the_run_has_ended(tmp_path: Path) -> None:
    (tmp_path / "demo.failed.ended").touch()
    result = Host([LOST, LOST]).follow()
    assert (result["msg"], result["away"]) == ("the run has ended", True)


def test_others_stop_waiting_when_a_unit_has_failed(tmp_path: Path) -> None:
    (tmp_path / "demo.failed").write_text("learner-2")
    assert "a unit failed on learner-2" in Host([]).follow()["msg"]


def test_a_scenario_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(plugin.time, "monotonic", lambda: float(next(clock)))  # the plugin's alone
    problem = Host([LOST] * 50, limit=600).follow()["problem"]
    assert problem.startswith("learner-1 is out of reach, and the run has not ended after 600 s")


def test_an_event_that_is_waited_for_must_come_before_the_end() -> None:
    until = {"host": "learner-1", "event": "round_started", "where": {"round": 9}}
    assert "never logged round_started" in Host(["inactive"], [True], until=until).follow()["problem"]


def test_a_unit_is_followed_until_an_event_with_these_fields() -> None:
    until = {"host": "learner-1", "event": "training_started", "where": {"round": "1"}}
    assert "has logged training_started" in Host(["active"], until=until).follow()["msg"]


# Several learners on a host

TWO = ["fl-learner@1.service", "fl-learner@2.service"]


def test_a_host_with_several_learners_is_done_when_all_have_ended() -> None:
    result = Host(["active active", "inactive active", "inactive inactive"], [True], units=TWO).follow()
    assert result == {"msg": "each of 2 units has ended", "restarts": 2}


def test_of_several_units_one_is_followed_until_an_event() -> None:
    until = {"host": "learner-1", "event": "training_started", "units": TWO[1:]}
    assert "has logged training_started" in Host(["active active"], units=TWO, until=until).follow()["msg"]


def test_an_event_of_another_unit_of_the_host_is_not_the_one_that_is_waited_for() -> None:
    until = {"host": "learner-1", "event": "training_started", "units": ["fl-learner@3.service"]}
    host = Host(["active active", "inactive inactive"], [True], units=TWO, until=until)
    assert "never logged training_started" in host.follow()["problem"]


def test_the_learner_that_failed_is_named_with_its_own_lines() -> None:
    problem = Host(["active active", "active failed"], units=TWO).follow()["problem"]
    assert problem.splitlines()[0] == "fl-learner@2.service failed on learner-1 with exit code 3:"


def test_a_look_asks_once_for_all_units_and_tells_whose_each_line_is() -> None:
    states = "Id={}\nActiveState=active\nExecMainStatus=0\nNRestarts=0\n"
    journal = [
        json.dumps({"MESSAGE": "one", "_SYSTEMD_UNIT": TWO[0]}),
        json.dumps({"MESSAGE": [116, 119, 111, 255], "UNIT": TWO[1], "_SYSTEMD_UNIT": "init.scope"}),
        json.dumps({"MESSAGE": None, "_SYSTEMD_UNIT": TWO[0]}),
        "-- cursor: next",
    ]
    answer = "\n".join(map(states.format, TWO)) + "\n-- journal\n" + "\n".join(journal)
    asked = []
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    action._low_level_execute_command = lambda command, **_: asked.append(command) or {"stdout": answer, "stderr": ""}
    found, cursor, lines = action._look(TWO, "last")
    assert found.keys() == set(TWO)
    assert (cursor, lines) == ("next", [(TWO[0], "one"), (TWO[1], "two\ufffd")])
    assert len(asked) == 1
    assert all(f"--unit={unit}" in asked[0] for unit in TWO)
