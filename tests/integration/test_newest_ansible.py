"""Playbooks and plugins with the newest ansible-core; tests/testbed/test_7_releases.py provisions hosts with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers import newest_ansible
from tests.helpers.checkout import ROOT
from tests.helpers.playbooks import play
from tests.helpers.wrong_inventories import GOOD, WRONG

pytestmark = pytest.mark.nightly

NAMED = ("no group testbed", "no ansible_host", "a tab")
"""Mistakes in an inventory that the plugins name."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of the newest ansible-core, from the package index."""
    try:
        return newest_ansible.create(tmp_path_factory.mktemp("newest") / "venv")
    except newest_ansible.NoPython as error:
        pytest.skip(str(error))


def test_it_is_the_newest_series_of_the_range(programs: Path) -> None:
    said = subprocess.run([programs / "ansible", "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"ansible [core {newest_ansible.series()[1]}.")


@pytest.mark.parametrize("playbook", sorted(path.stem for path in (ROOT / "ansible").glob("*.yml")))
def test_it_reads_a_playbook_without_a_complaint(programs: Path, playbook: str) -> None:
    code, said = play(playbook, "--syntax-check", programs=programs)
    assert code == 0, said
    assert "DEPRECATION" not in said
    assert "cannot load" not in said


@pytest.mark.parametrize("wrong", NAMED)
def test_a_wrong_inventory_is_one_clear_line(programs: Path, wrong: str, tmp_path: Path) -> None:
    case = WRONG[wrong]
    path = tmp_path / case.name
    path.write_bytes(case.file())
    code, said = play("report", "-i", path, programs=programs)
    assert code != 0
    assert all(words in said for words in case.says), said


def test_a_host_whose_port_is_wrong_is_named(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "lab.yml"
    path.write_text(GOOD.replace("ansible_host: ", "ansible_port: 1, ansible_host: 127.0.0.1, testbed_address: "))
    code, said = play("site", "-i", path, "-e", "testbed_connect_timeout=1", programs=programs)
    assert code != 0
    assert "learner-1 (127.0.0.1) answers, but nothing listens on port 1" in said, said
