"""Hosts that join, that leave, that are made again, and a testbed that starts anew."""

from __future__ import annotations

import json

from .conftest import NAMES, NETWORK, NOTHING_LEFT, SMALL, Testbed, choice, report


def signers(testbed: Testbed, name: str) -> set[str]:
    return set(json.loads(testbed.ask(name, "JSON.stringify(clique.getSigners())")))


def sealer(testbed: Testbed, name: str) -> str:
    return str(json.loads(testbed.host(name).file("/var/lib/geth/public.json").content_string)["sealer"])


def test_a_host_that_was_destroyed_is_healed_by_one_vagrant_up(provisioned: Testbed, trained: object) -> None:
    before = provisioned.ask("header", "eth.getBlock(0).hash"), provisioned.ask("header", "eth.blockNumber")
    lost = sealer(provisioned, "learner-2")
    provisioned.vagrant("destroy", "--force", "learner-2").must()
    provisioned.forget("learner-2")
    up = provisioned.vagrant("up", "--provider=docker").must()
    assert all(counts["failed"] == counts["unreachable"] == 0 for counts in up.recap.values())
    assert provisioned.ask("header", "eth.getBlock(0).hash") == before[0]
    assert provisioned.ask("learner-2", "eth.getBlock(0).hash") == before[0]
    assert provisioned.ask("learner-2", "eth.blockNumber") >= before[1]
    # Its keys are new, for the old ones never left it: the others voted the old account out and the new one in.
    assert sealer(provisioned, "learner-2") != lost
    assert signers(provisioned, "header") == {sealer(provisioned, name) for name in NAMES}
    # What was trained before is still there, on the host that is new too.
    assert (
        "audit passed: 3 rounds, 11 files"
        in provisioned.play("audit", "-e", f"fl_contract={report(provisioned, 'first')['contract']}").must().output
    )


def test_a_third_learner_is_one_line(provisioned: Testbed, trained: object, data_set: str) -> None:
    before = provisioned.ask("header", "eth.getBlock(0).hash"), provisioned.ask("header", "eth.blockNumber")
    path = provisioned.root / "inventory" / "hosts.yml"
    line = f"        learner-2: {{ansible_host: {NETWORK}.12, node_id: 2}}\n"
    content = path.read_text()
    assert line in content
    path.write_text(content.replace(line, line + f"        learner-3: {{ansible_host: {NETWORK}.13, node_id: 3}}\n"))
    provisioned.vagrant("up", "--provider=docker").must()
    four = [*NAMES, "learner-3"]
    provisioned.host("learner-3", f"{NETWORK}.13")
    for name in four:
        assert provisioned.ask(name, "eth.getBlock(0).hash") == before[0]
        assert provisioned.ask(name, "eth.blockNumber") >= before[1]
        assert provisioned.ask(name, "net.peerCount") == 3
        assert signers(provisioned, name) == {sealer(provisioned, signer) for signer in four}
    again = provisioned.play("site").must()
    assert all(counts["changed"] == 0 for counts in again.recap.values())
    settings = json.dumps({"fl_settings": SMALL if data_set == "mnist" else ["rounds=2"]})
    provisioned.play("train", "-e", "fl_run=three", "-e", settings, *choice(data_set)).must()
    result = report(provisioned, "three")
    assert result["plan"]["learners"] == 3  # type: ignore[index]
    assert sorted(result["rounds"][-1]["local"]) == ["1", "2", "3"]  # type: ignore[index]
    assert result["audit"]["passed"] is True  # type: ignore[index]


def test_a_learner_that_is_removed_leaves_nothing(provisioned: Testbed, trained: object) -> None:
    assert "to confirm" in provisioned.play("remove", "-e", "fl_remove=learner-3").must(2).output
    header = provisioned.play("remove", "-e", "fl_remove=header", "-e", "fl_confirm=yes").must(2)
    assert "is the header" in header.output
    remove = ["-e", "fl_remove=learner-3", "-e", "fl_confirm=yes"]
    # As if one of several learners had been there, which never started again.
    wanted = "/etc/systemd/system/multi-user.target.wants/fl-learner@7.service"
    provisioned.host("learner-3").check_output(f"ln -s /etc/systemd/system/fl-learner@.service {wanted}")
    provisioned.play("remove", *remove).must()
    assert provisioned.host("learner-3").run(NOTHING_LEFT).stdout == ""
    assert signers(provisioned, "header") == {sealer(provisioned, name) for name in NAMES}
    again = provisioned.play("remove", *remove).must()
    assert all(counts["changed"] == 0 for counts in again.recap.values())
    # As it says what to do next.
    provisioned.vagrant("destroy", "--force", "learner-3").must()
    path = provisioned.root / "inventory" / "hosts.yml"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "learner-3:" not in line))


def test_reset_wants_a_yes(provisioned: Testbed) -> None:
    ended = provisioned.play("reset")
    assert ended.code != 0
    assert "-e fl_confirm=yes" in ended.output
    assert set(ended.recap) == {"localhost"}


def test_reset_clears_chain_and_store_and_all_is_up_again(provisioned: Testbed, trained: object) -> None:
    final = report(provisioned, "first")["rounds"][-1]["result"]["cid"]  # type: ignore[index]
    # One host lacks a unit, another had the other role once.
    lost_unit = "systemctl disable --now ipfs && rm /etc/systemd/system/ipfs.service && systemctl daemon-reload"
    second_role = "cd /etc/systemd/system && cp fl-learner.service fl-header.service && systemctl enable fl-header"
    provisioned.host("learner-1").check_output(lost_unit)
    provisioned.host("learner-2").check_output(second_role)
    ended = provisioned.play("reset", "-e", "fl_confirm=yes").must()
    assert all(counts["failed"] == 0 for counts in ended.recap.values())
    assert provisioned.ask("header", "eth.blockNumber") == 0
    assert signers(provisioned, "header") >= {sealer(provisioned, name) for name in NAMES}
    assert provisioned.host("learner-2").check_output("find /etc/systemd/system -name 'fl-header*'") == ""
    ipfs = "runuser --user=ipfs -- env IPFS_PATH=/var/lib/ipfs timeout --foreground 5 ipfs"
    for name in NAMES:
        assert provisioned.host(name).run(f"{ipfs} cat {final}").rc != 0
