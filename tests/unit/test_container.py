"""Containers: the nodes of the compose file are those that they expect, and a role starts again if that may help."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fl_node.errors import ConfigError, DataError, RunStuck, WeightsError

FOLDER = Path(__file__).parents[2] / "container"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_each_service_is_a_node_at_the_address_that_the_others_expect() -> None:
    addresses = {name: service["networks"]["testbed"]["ipv4_address"] for name, service in SERVICES.items()}
    for name, service in SERVICES.items():
        assert service["environment"]["NODE"] == name
        assert service["environment"]["NODES"] == ",".join(f"{node}={address}" for node, address in addresses.items())
    assert next(iter(SERVICES)) == "header"


def test_each_node_has_its_own_volume_of_keys_and_all_share_one() -> None:
    for name, service in SERVICES.items():
        volumes = dict(volume.rsplit(":", 2)[:2] for volume in service["volumes"] if "/data" not in volume)
        assert volumes == {name: "/var/lib/fl-node", "shared": "/shared"}
    assert COMPOSE["volumes"].keys() == {*SERVICES, "shared"}


def test_no_port_is_published_and_no_capability_is_left() -> None:
    assert COMPOSE["networks"]["testbed"]["internal"] is True
    for service in SERVICES.values():
        assert "ports" not in service
        assert service["cap_drop"] == ["ALL"]


def test_the_image_runs_as_a_user_without_rights() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert lines.index("USER fl-node") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The program of a container, whose files are in the test's folder."""
    spec = importlib.util.spec_from_file_location("container_node", FOLDER / "node.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("SHARED", "RUNS"):
        monkeypatch.setattr(module, name, tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir()
    monkeypatch.setenv("NODE", "header")
    monkeypatch.setenv("NODES", "header=172.31.58.10,learner-1=172.31.58.11")
    return module


@pytest.fixture
def fl_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Callable[[], list[str]]]:
    """Put a shell script in the place of ``fl-node``; return a function that returns with what it was called."""

    def script(text: str) -> Callable[[], list[str]]:
        calls = tmp_path / "calls"
        (tmp_path / "bin").mkdir()
        program = tmp_path / "bin" / "fl-node"
        program.write_text(f'#!/bin/sh\necho "$*" >>"{calls}"\n{text}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return lambda: calls.read_text().splitlines()

    return script


@pytest.mark.parametrize(
    ("name", "nodes", "says"),
    [
        ("learner-2", "header=10.0.0.1,learner-1=10.0.0.2", "learner-2 is not in NODES"),
        ("header", "header", "should be NAME=ADDRESS"),
        ("header", "", "should be NAME=ADDRESS"),
        ("header", "header=10.0.0.1,", "should be NAME=ADDRESS"),
    ],
)
def test_a_node_that_nodes_does_not_name_is_said(
    node: Any, monkeypatch: pytest.MonkeyPatch, name: str, nodes: str, says: str
) -> None:
    monkeypatch.setenv("NODE", name)
    monkeypatch.setenv("NODES", nodes)
    monkeypatch.setattr("sys.argv", ["node.py", "run"])
    with pytest.raises(SystemExit, match=says):
        node.main()


def test_nodes_may_stand_apart(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODES", "header=10.0.0.1, learner-1=10.0.0.2")
    assert node.addresses() == {"header": "10.0.0.1", "learner-1": "10.0.0.2"}


@pytest.mark.parametrize(
    ("code", "starts"),
    [(0, 1), *((error.exit_code, 1) for error in (ConfigError, DataError, WeightsError, RunStuck)), (1, 3), (4, 3)],
)
def test_a_role_starts_again_if_that_may_help(
    node: Any, fl_node: Callable[[str], Callable[[], list[str]]], tmp_path: Path, code: int, starts: int
) -> None:
    calls = fl_node(f"exit {code}")
    (tmp_path / "contract").write_text("0x1\n")
    role = node.Role("learner")
    for _ in range(3):
        role.follow(tmp_path / "contract")
        role.wait()
    assert calls() == ["learner --contract 0x1"] * starts


@pytest.mark.parametrize(("ended", "stuck", "code"), [(True, "", 0), (False, "learner 1 is gone", 10)])
def test_training_ends_with_the_run_or_when_it_can_not_go_on(
    node: Any,
    fl_node: Callable[[str], Callable[[], list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ended: bool,
    stuck: str,
    code: int,
) -> None:
    def sleep(_seconds: float) -> None:
        raise AssertionError("it waits for a run that does not go on")

    monkeypatch.setattr(node.time, "sleep", sleep)
    (node.SHARED / "learner-1.json").write_text('{"account": "0x2"}')
    state = json.dumps({"ended": ended, "stuck": stuck, "round": 1})
    calls = fl_node(f"""case $1 in deploy) echo '{{"contract": "0x1"}}' ;; status) echo '{state}' ;; esac""")
    assert node.train(["plan.toml"]) == code
    assert [call.split()[0] for call in calls()] == ["deploy", "status", "report"]
    assert stuck in capsys.readouterr().out
