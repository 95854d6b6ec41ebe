"""Wrong inventories, variables and folders, as ansible-playbook itself says them; each start costs some seconds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import checkout
from tests.helpers.playbooks import play
from tests.helpers.wrong_inventories import GOOD, WRONG, Wrong

ROOT = checkout.ROOT
BIN = Path(sys.executable).parent
OFTEN = {"no ansible_host", "no group testbed", "a tab"}
"""Mistakes that are tried each time."""


def failed(said: str) -> str:
    """Return the message of the task that failed."""
    found = re.search(r"Task failed: Action failed: (.*?) Origin: ", said)
    assert found is not None, said
    return found[1]


@pytest.mark.parametrize(
    "wrong", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.nightly) for name in WRONG]
)
def test_a_wrong_inventory_is_one_clear_line(wrong: str, tmp_path: Path) -> None:
    case: Wrong = WRONG[wrong]
    path = tmp_path / case.name
    path.write_bytes(case.file())
    code, said = play("report", "-i", path)
    assert code != 0
    message = failed(said)
    for words in case.says:
        assert words in message
    assert message.startswith("lab.yml: ")


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "lab.yml"
    path.write_text(GOOD)
    return path


VARIABLES = {
    "fl_settings=rounds=2": ("fl_settings should be a list",),
    "settings=rounds=2": ("-e settings: ", "should it be fl_settings?"),
    '{"fl_settings": [2]}': ("fl_settings should be a list",),
    "fl_run=../away": ('fl_run is "../away"', "letters, digits"),
    "fl_contract=0x12": ('fl_contract is "0x12"', "40 hexadecimal digits"),
    "fl_attest=maybe": ('fl_attest is "maybe"', "true or false"),
    "fl_patience=long": ('fl_patience is "long"', "whole number"),
    "fl_plan=plans/none.toml": ("plans/none.toml",),
}


@pytest.mark.parametrize(
    "variable",
    [pytest.param(name, marks=[] if name == "fl_settings=rounds=2" else pytest.mark.nightly) for name in VARIABLES],
)
def test_a_wrong_variable_is_one_clear_line(variable: str, inventory: Path) -> None:
    code, said = play("train", "-i", inventory, "-e", variable)
    assert code != 0
    for words in VARIABLES[variable]:
        assert words in failed(said)


def test_elsewhere_it_is_said_which_configuration_is_meant(inventory: Path, tmp_path: Path) -> None:
    for playbook in ("site", "train"):
        code, said = play(playbook, "-i", inventory, cwd=tmp_path)
        assert code != 0
        assert f"cd '{ROOT}', or export ANSIBLE_CONFIG='{ROOT}/ansible.cfg'" in failed(said)


def test_with_the_configuration_named_it_works_from_anywhere_without_an_environment(tmp_path: Path) -> None:
    """A scheduler's: no PWD, no HOME; the plan's relative path is found in the project."""
    inventory = tmp_path / "lab.yml"
    inventory.write_text(GOOD)
    command = [
        BIN / "ansible-playbook",
        "-i",
        inventory,
        ROOT / "ansible" / "train.yml",
        "-e",
        "testbed_connect_timeout=1",
    ]
    ended = subprocess.run(
        [*command, "-e", "fl_run=..", "-e", "fl_plan=plans/demo.toml"],
        cwd=tmp_path,
        env={"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'run is ".."' in " ".join(ended.stdout.replace("\\", "").split()), ended.stdout + ended.stderr


@pytest.mark.nightly
def test_a_checkout_that_every_user_may_write_to_is_named(tmp_path: Path) -> None:
    root = tmp_path / "a checkout"
    root.mkdir()
    checkout.copy(root)
    root.chmod(0o777)
    code, said = play("site", cwd=root, root=root)
    assert code != 0
    assert f"every user may write to {root}: chmod o-w '{root}'" in failed(said)


def test_what_a_site_sets_overrides_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "lab.yml").write_text(
        "all: {vars: {testbed_rpc_port: 1}}\n"
        + GOOD.replace("vars: {", "vars: {testbed_geth_port: 2, testbed_chain_id: 3, testbed_ipfs_port: 4, ")
    )
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "learners.yml").write_text("testbed_ipfs_port: 5\n")
    command = [BIN / "ansible-inventory", "-i", tmp_path / "lab.yml", "--host", "learner-1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert [
        found[f"testbed_{name}"] for name in ("rpc_port", "geth_port", "chain_id", "ipfs_port", "ipfs_api_port")
    ] == [
        *(1, 2, 3, 5),
        5001,
    ]


def test_a_right_inventory_and_plan_are_followed_by_a_look_at_the_hosts(inventory: Path) -> None:
    """Nobody listens there; all that comes before, as the plan's checks, has passed."""
    text = GOOD.replace(
        "ansible_host: 192.168.56", "ansible_host: 127.0.0.1, ansible_port: 1, testbed_address: 192.168.56"
    )
    inventory.write_text(text)
    code, said = play("train", "-i", inventory, "-e", "testbed_connect_timeout=1", "-e", "fl_data=digits")
    assert code != 0
    # Any of the hosts may be the first to fail.
    assert "header (127.0.0.1) answers, but nothing listens on port 1" in said


LIMITED = {
    "reset": (),
    "rotate": ("-e", "fl_rotate=swarm_key"),
    "remove": ("-e", "fl_remove=learner-2", "-e", "fl_confirm=yes"),
}
"""Playbooks that change hosts, after checks that are made on the controller."""


@pytest.mark.parametrize("playbook", LIMITED)
def test_a_limit_leaves_out_no_check(playbook: str, inventory: Path) -> None:
    code, said = play(playbook, "-i", inventory, "--limit", "learner-2", *LIMITED[playbook])
    assert code != 0
    assert "call it without --limit; nothing was changed" in failed(said)


def test_with_a_limit_too_everything_is_removed_only_if_confirmed(inventory: Path) -> None:
    code, said = play("remove", "-i", inventory, "--limit", "learner-2", "-e", "fl_remove=all")
    assert code != 0
    assert "programs of the testbed on learner-2; to confirm: -e fl_confirm=yes" in failed(said)


def test_a_playbook_without_check_mode_says_so(inventory: Path) -> None:
    code, said = play("reset", "-i", inventory, "--check", "-e", "fl_confirm=yes")
    assert code != 0
    assert "call this playbook without --check; nothing was changed" in failed(said)
