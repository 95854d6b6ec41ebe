"""Following a unit that works for a while: its lines are shown, and a host that is lost is waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from tests.helpers.checkout import load

plugin = load("ansible/action_plugins/follow_unit.py")

LOST = AnsibleConnectionFailure("ssh: connect to host 10.0.0.1 port 22: No route to host")


class Host:
    """A host that answers each look by the next of a list: the state, and what the unit wrote."""

    def __init__(self, looks: list[tuple[str, str] | Exception], **options: Any) -> None:
        self.looks: Iterator[tuple[str, str] | Exception] = iter(looks)
        self.commands: list[str] = []
        self.shown: list[str] = []
        self.action = plugin.ActionModule.__new__(plugin.ActionModule)
        arguments = {"unit": "fl-sweep.service", "cursor": "c0"} | options
        self.action._task = SimpleNamespace(args=arguments, async_val=False, check_mode=False, diff=False)
        self.action._connection = SimpleNamespace(reset=lambda: None, _shell=SimpleNamespace(tmpdir=None))
        self.action._low_level_execute_command = self._answer

    def _answer(self, command: str, *, sudoable: bool) -> dict[str, Any]:
        self.commands.append(command)
        look = next(self.looks)
        if isinstance(look, Exception):
            raise look
        state, text = look
        head = f"ActiveState={state}\nExecMainStatus=9\n" if state else ""
        return {"stdout": f"{head}-- journal\n{text}-- cursor: c{len(self.commands)}\n", "stderr": "", "rc": 0}

    def follow(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setattr(plugin, "display", SimpleNamespace(display=self.shown.append))
        result: dict[str, Any] = self.action.run(task_vars={"inventory_hostname": "header"})
        return result


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin.ActionModule.__mro__[1], "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(plugin, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    monkeypatch.setattr(plugin, "NOTICE", 0.0)


def test_lines_are_shown_once_and_none_reaches_the_terminal_as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host([("active", "1 of 2\n"), ("active", ""), ("inactive", "2 of 2 \x1b[31m\n")])
    assert "problem" not in host.follow(monkeypatch)
    assert host.shown == ["  1 of 2", "  2 of 2 \\x1b[31m"]
    assert [
        next(word for word in command.split() if word.startswith("--after-cursor")) for command in host.commands
    ] == ["--after-cursor=c0", "--after-cursor=c1", "--after-cursor=c2"]


def test_a_unit_that_failed_is_reported_with_its_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Host([("active", "1 of 2\n"), ("failed", "fl-node: lost\n")]).follow(monkeypatch)["problem"]
    assert problem.splitlines() == [
        "fl-sweep.service failed on header with exit code 9:",
        "    1 of 2",
        "    fl-node: lost",
    ]


def test_a_host_out_of_reach_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host([("active", ""), LOST, ("", ""), LOST, ("inactive", "")])
    assert "problem" not in host.follow(monkeypatch)
    assert len([line for line in host.shown if "out of reach" in line]) == 1


def test_a_host_that_stays_out_of_reach_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host([("active", ""), *[LOST] * 5], patience=0)
    assert "No route to host" in host.follow(monkeypatch)["problem"]
