"""Years of operation: backup, new keys, a learner that leaves, a header that moves, and a restore on fresh hosts.

The tests build on each other: the host that a learner leaves becomes the header's, and at the end all are fresh.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import ADDRESSES, NAMES, NETWORK, NOTHING_LEFT, ROOT, SMALL, Testbed, choice, report

pytestmark = pytest.mark.nightly

LONG = 120.0
EARLIER = "d2e27932ca06beee82b1203e06f587d68c16c565"
"""The commit that hosts are upgraded from, of 28 November 2026; a shallow clone lacks it."""


def audit(testbed: Testbed, name: str = "first") -> str:
    """Return what an audit of a run from a learner's host says."""
    contract = str(report(testbed, name)["contract"])
    return testbed.play("audit", "-e", f"fl_contract={contract}").must().output


def public(testbed: Testbed, name: str) -> dict[str, str]:
    content: dict[str, str] = json.loads(testbed.host(name).check_output("cat /var/lib/geth/public.json"))
    return content


def account(testbed: Testbed, name: str) -> str:
    return str(testbed.host(name).check_output("cat /var/lib/fl-node/account"))


def swarm_key(testbed: Testbed, name: str) -> str:
    return str(testbed.host(name).check_output("cat /var/lib/ipfs/swarm.key"))


def signers(testbed: Testbed) -> set[str]:
    return set(json.loads(testbed.ask("header", "JSON.stringify(clique.getSigners())")))


@pytest.fixture(scope="module")
def genesis(provisioned: Testbed, trained: object) -> str:
    """The hash of the block that all these tests leave alone."""
    return str(provisioned.ask("header", "eth.getBlock(0).hash"))


@pytest.fixture(scope="module")
def inventory(provisioned: Testbed) -> str:
    """The inventory of three hosts."""
    path = provisioned.root / "inventory" / "hosts.yml"
    lines = [line for line in path.read_text().splitlines(keepends=True) if "learner-3:" not in line]
    path.write_text("".join(lines))
    return path.read_text()


def test_a_backup_that_is_killed_leaves_running_nodes_and_no_backup(
    provisioned: Testbed, genesis: str, eventually: Callable[[Callable[[], Any], float], Any]
) -> None:
    host, folder = provisioned.host("learner-1"), provisioned.root / "backups" / "all"
    host.check_output("printf '#!/bin/sh\\nexec sleep 600\\n' >/usr/local/sbin/tar && chmod 755 /usr/local/sbin/tar")
    command = [f"{provisioned.root}/.venv/bin/ansible-playbook", "ansible/backup.yml", "-e", f"fl_backup={folder}"]
    with subprocess.Popen(
        command, cwd=provisioned.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as playbook:
        assert eventually(lambda: not host.service("geth").is_running, LONG)
        os.killpg(playbook.pid, signal.SIGKILL)
    # It goes on without the controller, until it ends here in the middle.
    assert host.service("fl-testbed-backup").is_running
    host.check_output("rm /usr/local/sbin/tar && systemctl stop fl-testbed-backup")
    for name in NAMES:
        for unit in ("geth", "ipfs"):
            service = provisioned.host(name).service(unit)
            assert eventually(lambda service=service: service.is_running, LONG)  # type: ignore[misc]
    assert not folder.exists()


def test_a_backup_has_an_archive_of_each_host_that_only_its_owner_reads(provisioned: Testbed, genesis: str) -> None:
    folder = provisioned.root / "backups" / "all"
    # A role that goes on changes its files while they are read.
    work = "/var/lib/fl-node/work"
    growing = f"mkdir -p {work}; while :; do for n in $(seq 200); do echo $n >>{work}/growing-$n; done; done"
    host = provisioned.host("learner-1")
    host.check_output("systemd-run --quiet --unit=growing bash -c %s", growing)
    host.check_output("runuser -u fl-node -- sh -c 'umask 077; echo secret >/var/lib/fl-node/host.secret'")
    try:
        provisioned.play("backup", "-e", f"fl_backup={folder}").must()
    finally:
        host.check_output(f"systemctl stop growing; rm {work}/growing-* /var/lib/fl-node/host.secret")
    with tarfile.open(folder / "learner-1.tar") as archive:
        names = archive.getnames()
    assert "var/lib/fl-node/role.key" in names
    assert "var/lib/fl-node/host.secret" not in names
    assert sorted(path.name for path in folder.iterdir()) == ["backup.json", *sorted(f"{name}.tar" for name in NAMES)]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert json.loads((folder / "backup.json").read_text())["genesis"] == genesis
    assert not Path(f"{folder}.partial").exists()
    for name in NAMES:
        assert provisioned.host(name).service("geth").is_running
        assert not provisioned.host(name).file("/var/cache/fl-testbed/backup").exists
    assert "exists already" in provisioned.play("backup", "-e", f"fl_backup={folder}").must(2).output


def test_a_restore_does_not_touch_hosts_with_a_chain(provisioned: Testbed, genesis: str) -> None:
    before = provisioned.ask("header", "eth.blockNumber")
    ended = provisioned.play("restore", "-e", f"fl_backup={provisioned.root}/backups/all").must(2)
    assert "has a chain or keys already" in " ".join(ended.output.split())
    assert all(counts["changed"] == 0 for counts in ended.recap.values())
    assert provisioned.ask("header", "eth.blockNumber") >= before


def test_new_keys_take_the_place_of_the_old_ones(provisioned: Testbed, genesis: str) -> None:
    key, sealers = swarm_key(provisioned, "header"), signers(provisioned)
    accounts = {name: account(provisioned, name) for name in NAMES}
    provisioned.play("rotate", "-e", "fl_rotate=all").must()
    assert {swarm_key(provisioned, name) for name in NAMES} == {swarm_key(provisioned, "header")}
    assert swarm_key(provisioned, "header") != key
    assert signers(provisioned) == {public(provisioned, name)["sealer"] for name in NAMES}
    assert signers(provisioned) & sealers == set()
    for name in NAMES:
        assert account(provisioned, name) != accounts[name]
        # The new account got the old one's ether, and the old key is kept.
        assert provisioned.ask(name, f"eth.getBalance('{account(provisioned, name)}') > 1e18") is True
        kept = provisioned.host(name).file(f"/var/lib/fl-node/retired/{accounts[name]}.key")
        assert (kept.user, kept.mode) == ("fl-node", 0o600)
    assert "audit passed" in audit(provisioned)
    again = provisioned.play("site").must()
    assert all(counts["changed"] == 0 for counts in again.recap.values())


def test_a_rotation_of_sealers_that_was_interrupted_is_completed(provisioned: Testbed, genesis: str) -> None:
    host, folder = provisioned.host("learner-1"), "/var/lib/geth"
    new = public(provisioned, "learner-1")["sealer"]
    # As if it was killed as soon as the host's public keys had the new account.
    make = f"geth account new --datadir {folder}/old --lightkdf --password {folder}/password"
    host.check_output(f"runuser -u geth -- {make} && mkdir -p {folder}/next/keystore")
    old = "0x" + host.check_output(f"ls {folder}/old/keystore").rpartition("--")[2]
    host.check_output(f"cp -p {folder}/keystore/UTC--* {folder}/next/keystore/")
    host.check_output(f"mv {folder}/old/keystore/* {folder}/keystore/")
    host.check_output(f"rm -r {folder}/old && chown -R geth:geth {folder}/next")
    host.check_output(f"sed -i s/{new}/{old}/ /etc/systemd/system/geth.service")
    provisioned.play("rotate", "-e", "fl_rotate=sealers").must()
    sealers = {name: public(provisioned, name)["sealer"] for name in NAMES}
    assert signers(provisioned) == set(sealers.values())
    assert not {old, new} & set(sealers.values())
    for name in NAMES:
        keys = provisioned.host(name).check_output("ls /var/lib/geth/keystore").split()
        assert [f"0x{key.rpartition('--')[2]}" for key in keys] == [sealers[name]]
        assert not provisioned.host(name).file("/var/lib/geth/next").exists


def test_a_restart_that_an_interruption_left_out_is_done_by_the_next_call(provisioned: Testbed, genesis: str) -> None:
    host, units = provisioned.host("header"), ("geth", "ipfs", "fl-dashboard", "fl-firewall-watch")

    def started() -> list[str]:
        return [host.check_output(f"systemctl show --value --property=InvocationID {unit}") for unit in units]

    before = started()
    # As if their files had changed since they were started.
    for unit in units:
        host.check_output(f"sed -i 's/^..../0000/' /run/fl-testbed/{unit}.sha256")
    provisioned.play("site").must()
    assert not set(before) & set(started())
    assert all(counts["changed"] == 0 for counts in provisioned.play("site").must().recap.values())


def test_a_role_key_is_not_replaced_while_geth_does_not_answer(provisioned: Testbed, genesis: str) -> None:
    host, before = provisioned.host("learner-1"), account(provisioned, "learner-1")
    script = (ROOT / "ansible" / "files" / "rotate_role_key.sh").read_text()
    host.check_output("systemctl stop geth")
    ended = host.run("bash -c %s rotate /var/lib/fl-node", script)
    host.check_output("systemctl start geth")
    assert ended.rc != 0
    assert account(provisioned, "learner-1") == before
    assert host.check_output("runuser -u fl-node -- fl-node key /var/lib/fl-node/role.key") == before


def test_a_run_with_all_keys_new(provisioned: Testbed, genesis: str, data_set: str) -> None:
    settings = json.dumps({"fl_settings": SMALL if data_set == "mnist" else ["rounds=2"]})
    provisioned.play("train", "-e", "fl_run=rotated", "-e", settings, *choice(data_set)).must()
    assert report(provisioned, "rotated")["audit"]["passed"] is True  # type: ignore[index]
    assert provisioned.ask("header", "eth.getBlock(0).hash") == genesis


def test_a_learner_leaves(provisioned: Testbed, genesis: str, inventory: str) -> None:
    provisioned.play("remove", "-e", "fl_remove=learner-2", "-e", "fl_confirm=yes").must()
    assert provisioned.host("learner-2").run(NOTHING_LEFT).stdout == ""
    path = provisioned.root / "inventory" / "hosts.yml"
    path.write_text("".join(line for line in inventory.splitlines(keepends=True) if "learner-2:" not in line))


def test_the_header_moves_to_the_host_that_is_free(provisioned: Testbed, genesis: str, inventory: str) -> None:
    before = public(provisioned, "header"), account(provisioned, "header")
    move = ["-e", "fl_move=header", "-e", "fl_confirm=yes"]
    ended = provisioned.play("move", *move, "-e", f"fl_to={ADDRESSES['learner-1']}").must(2)
    assert "is a host of the inventory already" in " ".join(ended.output.split())
    provisioned.play("move", *move, "-e", f"fl_to={NETWORK}.12").must()
    assert provisioned.host("header").run(NOTHING_LEFT).stdout == ""
    path = provisioned.root / "inventory" / "hosts.yml"
    path.write_text(path.read_text().replace(f"{NETWORK}.10", f"{NETWORK}.12"))
    provisioned.forget("header")
    provisioned.host("header", f"{NETWORK}.12")
    provisioned.play("site").must()
    assert (public(provisioned, "header"), account(provisioned, "header")) == before
    assert provisioned.ask("header", "eth.getBlock(0).hash") == genesis
    assert provisioned.ask("header", "net.peerCount") == 1
    assert not list((provisioned.root / "backups").glob("move-*"))
    assert "audit passed" in provisioned.play("report", "-e", "fl_run=first").must().output
    again = provisioned.play("site").must()
    assert all(counts["changed"] == 0 for counts in again.recap.values())


def test_a_restore_on_fresh_hosts_is_the_same_chain_with_the_same_audits(
    provisioned: Testbed, genesis: str, inventory: str
) -> None:
    provisioned.play("remove", "-e", "fl_remove=all", "-e", "fl_confirm=yes").must()
    (provisioned.root / "inventory" / "hosts.yml").write_text(inventory)
    folder = provisioned.root / "backups" / "all"
    for name in NAMES:
        provisioned.forget(name)
        assert provisioned.host(name).run(NOTHING_LEFT).stdout == ""
    restore = ["-e", f"fl_backup={folder}"]
    archive = folder / "header.tar"
    content = archive.read_bytes()
    archive.write_bytes(content[:-1])
    assert "header.tar" in provisioned.play("restore", *restore).must(2).output
    archive.write_bytes(content)
    provisioned.play("restore", *restore).must()
    known = json.loads((folder / "backup.json").read_text())
    for name in NAMES:
        assert provisioned.ask(name, "eth.getBlock(0).hash") == genesis
        assert provisioned.ask(name, "eth.blockNumber") >= known["height"]
    assert "audit passed" in audit(provisioned)
    again = provisioned.play("restore", *restore).must()
    assert all(counts["changed"] == 0 for counts in again.recap.values())


@pytest.fixture(scope="module")
def earlier(provisioned: Testbed, genesis: str, tmp_path_factory: pytest.TempPathFactory) -> Testbed:
    """The same hosts, as an earlier version of the checkout sees them."""
    root = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "archive", EARLIER], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "--extract", "--directory", root], input=archive, check=True)
    (root / "inventory" / "hosts.yml").write_text((provisioned.root / "inventory" / "hosts.yml").read_text())
    for name in (".venv", ".vagrant"):
        (root / name).symlink_to(provisioned.root / name)
    return Testbed(root)


def test_hosts_of_an_earlier_version_are_upgraded_and_their_runs_still_pass(
    provisioned: Testbed, earlier: Testbed, genesis: str, data_set: str
) -> None:
    def package() -> set[str]:
        return {provisioned.host(name).check_output("cat /opt/fl-node/venv/package") for name in NAMES}

    earlier.play("site").must()
    settings = json.dumps({"fl_settings": SMALL if data_set == "mnist" else ["rounds=2"]})
    earlier.play("train", "-e", "fl_run=earlier", "-e", settings, *choice(data_set)).must()
    before, height = package(), provisioned.ask("header", "eth.blockNumber")
    provisioned.play("site").must()
    assert len(package()) == 1
    assert package() & before == set()
    assert provisioned.ask("header", "eth.getBlock(0).hash") == genesis
    assert provisioned.ask("header", "eth.blockNumber") >= height
    contract = str(report(earlier, "earlier")["contract"])
    assert "audit passed" in provisioned.play("audit", "-e", f"fl_contract={contract}").must().output
