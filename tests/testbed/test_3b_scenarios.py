"""Scenarios on the hosts: their expectations pass, and fail where the defence is taken away."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.helpers import checkout

from .conftest import NAMES, Ended, Testbed, choice


def scenario(testbed: Testbed, name: str, data: str) -> Ended:
    """Run it with rounds that take some seconds, so that the fault can come within one."""
    longer = ["rounds=2", f"training.epochs={40 if data == 'digits' else 2}"]
    return testbed.play(
        "scenario", "-e", f"fl_scenario={name}", *choice(data), "-e", json.dumps({"fl_settings": longer})
    )


def checks(testbed: Testbed, name: str) -> dict[str, bool]:
    written = json.loads((testbed.root / "runs" / name / "scenario.json").read_text())
    return {check["what"]: check["passed"] for check in written["checks"]}


@pytest.fixture(autouse=True)
def restored(provisioned: Testbed) -> Iterator[None]:
    """After each scenario the hosts are as they were, however it ended."""
    yield
    for name in NAMES:
        host = provisioned.host(name)
        assert "fl_scenario" not in host.check_output("nft list tables")
        assert "fl-scenario" not in host.check_output("cat /proc/mounts")
        assert "fl-scenario" not in host.check_output("systemctl list-units --all --plain --no-legend 'fl-scenario*'")
        for unit in ("geth", "ipfs"):
            assert host.service(unit).is_running
        role = "fl-header" if name == "header" else "fl-learner"
        assert not host.service(role).is_running


@pytest.fixture
def wordless(provisioned: Testbed) -> Iterator[None]:
    """Every sentence that a role logs is "x", on each host."""
    content = (checkout.ROOT / "tests" / "helpers" / "wordless" / "sitecustomize.py").read_text()
    # Systems have a sitecustomize.py of their own, which would be found first.
    packages = "$(echo /opt/fl-node/venv/lib/python3.*/site-packages)"
    files = f"{packages}/wordless.py {packages}/wordless.pth"
    for name in NAMES:
        host = provisioned.host(name)
        host.check_output(f"printf '%%s' %s > {packages}/wordless.py", content)
        host.check_output(f"echo import wordless > {packages}/wordless.pth && chmod a+r {files}")
    yield
    for name in NAMES:
        provisioned.host(name).check_output(f"rm {files}")


def test_a_learner_that_was_cut_off_is_waited_for_whatever_the_roles_sentences_are(
    provisioned: Testbed, data_set: str, wordless: None
) -> None:
    ended = scenario(provisioned, "learner-cut-off", data_set).must()
    assert re.search(r"^  \d\d:\d\d:\d\d header: x$", ended.output, re.MULTILINE)
    assert "round 1: " not in ended.output
    assert "TASK [Cut the learner's host off]" in ended.output
    passed = checks(provisioned, "learner-cut-off")
    assert passed["the header reports whom it waits for"]
    assert passed["the final weights are the undisturbed run's, bit for bit"]
    assert all(passed.values())
    # The run to compare with is taken once.
    assert len(list((provisioned.root / "runs").glob("undisturbed*"))) == 1


def test_an_undo_that_failed_is_left_to_the_host_which_runs_the_same(provisioned: Testbed) -> None:
    undo = 'if mkdir /run/fl-scenario-test; then exit 1; fi; word=AB; echo "${word,,}" >/run/fl-scenario-test/said'
    step = {"what": "Do nothing", "hosts": ["learner-1"], "do": "true", "undo": undo}
    path = provisioned.root / "ansible" / "step.yml"
    path.write_text(
        "- hosts: testbed\n  gather_facts: false\n  tasks: [ansible.builtin.include_tasks: tasks/fault_step.yml]\n"
    )
    ended = provisioned.play("step", "-e", json.dumps({"step": step, "scenario_limit": 600}))
    path.unlink()
    host = provisioned.host("learner-1")
    try:
        assert {name: counts["failed"] for name, counts in ended.recap.items()} == {
            name: int(name == "learner-1") for name in NAMES
        }
        host.check_output("systemctl is-active fl-scenario-undo.timer")
        host.check_output("systemctl start fl-scenario-undo.service")
        assert host.check_output("cat /run/fl-scenario-test/said") == "ab"
    finally:
        host.check_output("systemctl stop fl-scenario-undo.timer; rm -r /run/fl-scenario-test")


@pytest.mark.nightly
def test_a_host_without_a_clock_of_its_own_is_left_alone(provisioned: Testbed, data_set: str) -> None:
    before = time.time() - time.monotonic()
    ended = scenario(provisioned, "wrong-clock", data_set)
    assert ended.code != 0
    assert "is a container and has no clock of its own" in re.sub(r"\s+", " ", ended.output)
    assert abs(time.time() - time.monotonic() - before) < 60


@pytest.mark.nightly
def test_a_header_that_is_not_started_again_breaks_its_promise(provisioned: Testbed, data_set: str) -> None:
    host = provisioned.host("header")
    folder = "/run/systemd/system/fl-header.service.d"
    host.check_output(f"mkdir -p {folder} && printf '[Service]\\nRestart=no\\n' > {folder}/test.conf")
    host.check_output("systemctl daemon-reload")
    try:
        ended = scenario(provisioned, "header-killed", data_set)
    finally:
        host.check_output(f"rm -r {folder} && systemctl daemon-reload && systemctl reset-failed fl-header")
    assert ended.code != 0
    assert "fl-header.service failed on header" in re.sub(r"\s+", " ", ended.output)
    assert not (provisioned.root / "runs" / "header-killed").exists()
