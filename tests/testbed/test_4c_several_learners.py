"""Several learners on a host, through each playbook that handles their keys, folders and units."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import NETWORK, NOTHING_LEFT, SMALL, Testbed, choice, report

pytestmark = pytest.mark.nightly

HOST, IDS = "learner-1", (1, 3)
"""The host, and its nodeIds: 2 is that of the other host."""
FOLDERS = [f"/var/lib/fl-node/learners/{node_id}" for node_id in IDS]
ONE = f"learner-1: {{ansible_host: {NETWORK}.11, node_id: 1}}"
TWO = f"learner-1: {{ansible_host: {NETWORK}.11, learners: 2}}"


def write_inventory(testbed: Testbed, old: str, new: str) -> None:
    path = testbed.root / "inventory" / "hosts.yml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.fixture(scope="module")
def several(provisioned: Testbed, trained: object) -> Iterator[Testbed]:
    """The hosts with two learners on one of them; afterwards with one again."""
    write_inventory(provisioned, ONE, TWO)
    provisioned.play("site").must()
    yield provisioned
    write_inventory(provisioned, TWO, ONE)
    provisioned.play("site").must()
    assert provisioned.host(HOST).run("ls /etc/systemd/system | grep -E '^fl-(learner|standby)@'").stdout == ""
    assert all(counts["changed"] == 0 for counts in provisioned.play("site").must().recap.values())


def accounts(testbed: Testbed) -> list[str]:
    return [str(testbed.host(HOST).check_output(f"cat {folder}/account")) for folder in FOLDERS]


def units(testbed: Testbed) -> list[str]:
    """Return the learners' units that start with the host."""
    listed = testbed.host(HOST).check_output("ls /etc/systemd/system/multi-user.target.wants").split()
    return sorted(unit for unit in listed if unit.startswith("fl-learner"))


def train(testbed: Testbed, name: str, data_set: str) -> None:
    settings = json.dumps({"fl_settings": SMALL if data_set == "mnist" else ["rounds=2"]})
    testbed.play("train", "-e", f"fl_run={name}", "-e", settings, *choice(data_set)).must()
    result = report(testbed, name)
    assert result["audit"]["passed"] is True  # type: ignore[index]
    assert sorted(result["rounds"][-1]["local"]) == ["1", "2", "3"]  # type: ignore[index]


def test_each_learner_has_a_unit_and_an_account_of_its_own(several: Testbed) -> None:
    assert units(several) == [f"fl-learner@{node_id}.service" for node_id in IDS]
    assert len(set(accounts(several))) == len(IDS)
    for folder in FOLDERS:
        key = several.host(HOST).file(f"{folder}/role.key")
        assert (key.user, key.mode) == ("fl-node", 0o600)
    assert all(counts["changed"] == 0 for counts in several.play("site").must().recap.values())


def test_they_train_and_are_audited(several: Testbed, data_set: str) -> None:
    train(several, "several", data_set)
    status = several.play("status").must().output
    assert "failed" not in status.replace("failed=0", "")


def test_new_role_keys_are_given_to_each(several: Testbed, data_set: str) -> None:
    before = accounts(several)
    several.play("rotate", "-e", "fl_rotate=role_keys").must()
    assert set(accounts(several)) & set(before) == set()
    for folder, account in zip(FOLDERS, before, strict=True):
        kept = several.host(HOST).file(f"{folder}/retired/{account}.key")
        assert (kept.user, kept.mode) == ("fl-node", 0o600)
    contract = str(report(several, "several")["contract"])
    assert "audit passed" in several.play("audit", "-e", f"fl_contract={contract}").must().output
    train(several, "several-rotated", data_set)


def test_a_backup_has_their_keys(several: Testbed, tmp_path: Path) -> None:
    several.play("backup", "-e", f"fl_backup={tmp_path}/all").must()
    with tarfile.open(tmp_path / "all" / f"{HOST}.tar") as archive:
        names = {name.removeprefix("./").removeprefix("/") for name in archive.getnames()}
    for folder in FOLDERS:
        assert any(name.endswith(f"learners/{Path(folder).name}/role.key") for name in names), sorted(names)


def test_a_reset_deletes_the_work_of_each_and_keeps_their_keys(several: Testbed, data_set: str) -> None:
    before = accounts(several)
    assert several.host(HOST).run(f"ls -A {FOLDERS[1]}/work").stdout != ""
    several.play("reset", "-e", "fl_confirm=yes").must()
    assert accounts(several) == before
    for folder in FOLDERS:
        assert several.host(HOST).run(f"ls -A {folder}/work").stdout == ""
    train(several, "several-reset", data_set)


def test_a_host_with_several_learners_is_removed_and_joins_again(several: Testbed, data_set: str) -> None:
    several.play("remove", "-e", f"fl_remove={HOST}", "-e", "fl_confirm=yes").must()
    assert several.host(HOST).run(NOTHING_LEFT).stdout == ""
    several.play("site").must()
    assert units(several) == [f"fl-learner@{node_id}.service" for node_id in IDS]
    train(several, "several-again", data_set)
