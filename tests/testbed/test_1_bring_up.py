"""One `vagrant up` for three hosts; a second `site.yml` changes nothing; a wrong inventory stops at once."""

import re
from pathlib import Path

import pytest

from .conftest import NAMES, NETWORK, Testbed, copy_checkout, left


def test_the_first_time_no_task_fails(testbed: Testbed) -> None:
    up = testbed.up
    assert up is not None
    up.must()
    assert set(up.recap) == {*NAMES, "localhost"}
    assert all(counts["failed"] == counts["unreachable"] == 0 for counts in up.recap.values())


def test_it_says_what_runs_where_and_what_to_type_next(provisioned: Testbed) -> None:
    assert provisioned.up is not None
    output = re.sub(r"\s+", " ", provisioned.up.output)
    assert f"learner-2 {NETWORK}.12 learner 2" in output
    assert "One chain of 3 sealers" in output
    assert "ansible-playbook ansible/train.yml" in output


def test_hosts_of_another_folder_with_the_same_addresses_are_named(provisioned: Testbed, tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    second = Testbed(tmp_path)
    ended = second.vagrant("up", "--provider=docker", "--no-provision")
    assert ended.code != 0
    output = re.sub(r"\s+", " ", ended.output)
    assert f"learner-2: {NETWORK}.12 is in use by the container {provisioned.root.name}_learner-2" in output
    assert f"(cd {provisioned.root} && vagrant destroy -f)" in output
    assert left(tmp_path)["containers"] == []


NOISE = "while sleep 0.1; do for terminal in /dev/pts/[0-9]*; do echo Broadcast message >$terminal; done; done"
"""What a host may say to all terminals at any time, as its kernel does when it is short of processor time."""


def test_a_second_time_changes_nothing_and_shows_no_secret(provisioned: Testbed) -> None:
    noisy = provisioned.host("learner-1")
    noisy.check_output("systemd-run --quiet --unit=noise --property=RuntimeMaxSec=3600 sh -c %s", NOISE)
    try:
        again = provisioned.play("site", "-vv").must()
    finally:
        noisy.check_output("systemctl stop noise")
    assert {host: counts["changed"] for host, counts in again.recap.items()} == dict.fromkeys(
        [*NAMES, "localhost"], 0
    )
    assert provisioned.up is not None
    for name in NAMES:
        host = provisioned.host(name)
        for file in ("/var/lib/fl-node/role.key", "/var/lib/geth/nodekey", "/var/lib/geth/password"):
            secret = host.check_output("cat %s", file).strip()
            assert len(secret) >= 32
            assert secret not in again.output + provisioned.up.output
        swarm = host.check_output("tail -1 /var/lib/ipfs/swarm.key").strip()
        assert len(swarm) == 64
        assert swarm not in again.output + provisioned.up.output


def test_check_mode_works_and_finds_nothing_to_change(provisioned: Testbed) -> None:
    check = provisioned.play("site", "--check", "--diff").must()
    assert all(counts["changed"] == counts["failed"] == 0 for counts in check.recap.values())


def test_configure_alone_applies_a_changed_variable_on_hosts_that_are_installed(provisioned: Testbed) -> None:
    host = provisioned.host("learner-1")
    rules = "nft list table inet fl_testbed"
    before = host.check_output(rules)
    changed = provisioned.play("site", "--tags", "configure", "-e", '{"base_extra_open_ports": [8099]}').must()
    assert "8099" in host.check_output(rules)
    again = provisioned.play("site", "--tags", "configure").must()
    assert host.check_output(rules) == before
    for ended in (changed, again):
        # One file and one reload; nothing is fetched, installed or started.
        assert {counts["changed"] for name, counts in ended.recap.items() if name in NAMES} == {2}
        assert "TASK [controller : Get the locked wheels]" not in ended.output


def test_a_variable_that_no_playbook_knows_is_named_before_a_host_is_touched(provisioned: Testbed) -> None:
    ended = provisioned.play("train", "-e", "plan=plans/demo.toml")
    assert ended.code != 0
    assert "-e plan: there is no such variable; should it be fl_plan?" in re.sub(r"\s+", " ", ended.output)
    assert set(ended.recap) == {"localhost"}


WRONG = {
    "two hosts with one address": (".12,", ".11,", f"learner-1 and learner-2 have one address, {NETWORK}.11"),
    "no header": (
        f"header: {{ansible_host: {NETWORK}.10}}",
        "{}",
        "no header: the group headers should hold one host",
    ),
    "two headers": (
        f"header: {{ansible_host: {NETWORK}.10}}",
        f"header: {{ansible_host: {NETWORK}.10}}\n        other: {{ansible_host: {NETWORK}.19}}",
        "2 headers (header, other)",
    ),
    "one nodeId twice": ("node_id: 2", "node_id: 1", "learner-1 and learner-2 have one node_id, 1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_inventory_is_named_before_anything_is_changed(provisioned: Testbed, wrong: str) -> None:
    old, new, text = WRONG[wrong]
    content = (provisioned.root / "inventory" / "hosts.yml").read_text()
    assert old in content
    path = provisioned.root / "inventory" / "wrong.yml"
    path.write_text(content.replace(old, new))
    try:
        ended = provisioned.play("site", "-i", str(path))
    finally:
        path.unlink()
    assert ended.code != 0
    assert set(ended.recap) == {"localhost"}
    assert text in re.sub(r"\s+", " ", ended.output)


def test_a_host_that_does_not_answer_is_named_before_anything_is_changed(provisioned: Testbed) -> None:
    content = (provisioned.root / "inventory" / "hosts.yml").read_text()
    path = provisioned.root / "inventory" / "away.yml"
    path.write_text(content.replace(f"{NETWORK}.12", f"{NETWORK}.99"))
    try:
        ended = provisioned.play("site", "-i", str(path), "-e", "testbed_connect_timeout=4")
    finally:
        path.unlink()
    assert ended.code != 0
    assert f"learner-2 ({NETWORK}.99) does not answer by SSH as vagrant" in re.sub(r"\s+", " ", ended.output)
    assert all(counts["changed"] == 0 for counts in ended.recap.values())


def test_private_keys_are_not_on_the_controller(provisioned: Testbed) -> None:
    secrets = [
        provisioned.host(name).check_output("cat %s", file).strip()
        for name in NAMES
        for file in ("/var/lib/fl-node/role.key", "/var/lib/geth/nodekey", "/var/lib/geth/password")
    ]
    for path in provisioned.root.rglob("*"):
        if path.is_file() and ".venv" not in path.parts and path.stat().st_size < 10**7:
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets), path
