"""Scripts of the roles that are killed in the middle, in a folder of the test."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

from fl_node.nodes import CHAIN_ID, binaries
from fl_node.nodes.configuration import genesis
from fl_node.nodes.geth import GethNode
from tests.helpers.checkout import ROOT

HANG = 600


def start_of_the_chain(folder: Path, geth: Path, genesis_file: Path) -> str:
    """Return the script of the role geth that starts the chain, for a node in a folder of this user."""
    tasks = yaml.safe_load((ROOT / "roles" / "geth" / "tasks" / "main.yml").read_text())
    (task,) = [task for task in tasks if task["name"] == "Start the chain from the genesis"]
    script: str = task["ansible.builtin.shell"]["cmd"]
    for text, here in {
        "{{ geth_init | join(' ') }}": "init --datadir /var/lib/geth/new --state.scheme hash",
        "runuser --user=geth --": "env",
        "/usr/local/bin/geth": str(geth),
        "/etc/geth/genesis.json": str(genesis_file),
        "/var/lib/geth": str(folder),
    }.items():
        assert text in script or text == "/var/lib/geth"
        script = script.replace(text, here)
    return script


def test_a_start_of_the_chain_that_is_killed_is_done_again(tmp_path: Path) -> None:
    node = GethNode(tmp_path / "node")
    node.prepare()
    genesis_file = tmp_path / "genesis.json"
    genesis_file.write_text(genesis(CHAIN_ID, [node.sealer], []))
    geth, folder = binaries.install(binaries.GETH), tmp_path / "host"
    folder.mkdir()
    killed = tmp_path / "killed"
    # Geth, killed as soon as it has begun its database.
    begun = " || ".join(f"[ -d {folder}/{path}geth/chaindata ]" for path in ("", "new/"))
    wait = f"for n in {{1..60000}}; do if {begun}; then break; fi; sleep 0.01; done"
    killed.write_text(f'#!/bin/bash\n{geth} "$@" &\n{wait}\nkill -9 $!\nexit 137\n')
    killed.chmod(0o755)
    for program, code in ((killed, 137), (geth, 0)):
        script = start_of_the_chain(folder, program, genesis_file)
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=HANG, check=False)
        assert done.returncode == code, done.stderr
        # The role calls it again if there is none.
        assert (folder / "geth" / "chaindata").exists() == (code == 0)
    told = subprocess.run(
        [geth, "dumpgenesis", "--datadir", folder], stdout=subprocess.PIPE, text=True, timeout=HANG, check=True
    )
    assert json.loads(told.stdout)["config"]["chainId"] == CHAIN_ID
    assert not (folder / "new").exists()
