import re

import pytest

from tests.helpers.checkout import ROOT, load

plugin = load("ansible/filter_plugins/playbook_command.py")

GROUPS = {"headers": ["big"]}


def test_on_a_laptop_a_hint_calls_ansible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FL_TESTBED_CONTROLLER", raising=False)
    assert plugin.playbook_command("train", GROUPS) == "ansible-playbook ansible/train.yml"
    assert plugin.playbook_command("report -e fl_run=a", GROUPS) == "ansible-playbook ansible/report.yml -e fl_run=a"


def test_on_a_header_that_is_the_controller_a_hint_is_for_the_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_TESTBED_CONTROLLER", "guest")
    assert plugin.playbook_command("report -e fl_run=a", GROUPS) == 'vagrant ssh big -c "testbed report -e fl_run=a"'


def test_no_playbook_prints_a_command_that_works_on_a_laptop_only() -> None:
    paths = [*(ROOT / "ansible").rglob("*.yml"), *(ROOT / "ansible").rglob("*.j2"), *(ROOT / "roles").rglob("*.yml")]
    lines = [line for path in paths for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert [line for line in lines if re.search(r"(?<!bin/)ansible-playbook ansible/", line)] == []


def test_each_playbook_that_a_hint_names_is_a_command_on_the_header() -> None:
    script = (ROOT / "vagrant" / "controller" / "testbed").read_text()
    paths = [*(ROOT / "ansible").rglob("*.yml"), *(ROOT / "ansible").rglob("*.j2")]
    lines = [line for path in paths for line in path.read_text().splitlines() if "| playbook_command" in line]
    named = {name for line in lines for name in re.findall(r"(?:\{\{ \(?|^  \()'(\w+)", line)}
    assert named >= {"train", "status", "audit", "report", "follow"}
    for name in named:
        assert (ROOT / "ansible" / f"{name}.yml").exists()
        assert re.search(rf"^(.* \| )?{name}( \| .*)?\)$", script, re.MULTILINE)
