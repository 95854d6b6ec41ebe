"""The configuration of a host's Geth and IPFS, and that a lab's nodes have the same."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl_node.artifacts import cid
from fl_node.cli.app import app
from fl_node.errors import ConfigError
from fl_node.nodes import CHAIN_ID, configuration
from fl_node.nodes.geth import GethNode
from fl_node.nodes.ipfs import FEW_PEERS, SMALL_BLOCK, IpfsNode, new_swarm_key
from tests.helpers.accounts import ALICE, BOB, HEADER

NODE = "/ip4/10.0.0.1/tcp/4001/p2p/12D3A"
PEER = "/ip4/10.0.0.2/tcp/4001/p2p/12D3B"


def node_config(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["node-config", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def options(arguments: list[str]) -> dict[str, str]:
    """Return the options by name, each with what follows it."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return {option: "" if value.startswith("--") else value for option, value in pairs if option.startswith("--")}


def test_hosts_and_lab_run_geth_alike_but_for_folders_ports_and_console(tmp_path: Path) -> None:
    node = GethNode(tmp_path)
    node.prepare()
    enode = node.enode
    lab = options(node.command(Path("geth"), [enode])[1:])
    told = json.loads(node_config("geth", "--sealer", node.sealer, "--peer", enode, "--json"))
    host = options(told["arguments"])
    apart = {"--config", "--datadir", "--nodekey", "--password", "--http.port", "--ws.port", "--authrpc.port"}
    assert (lab["--ws.port"], host["--ws.port"]) == (lab["--http.port"], host["--http.port"])
    assert lab.keys() - host.keys() == {"--ipcdisable"}
    assert host.keys() - lab.keys() == {"--ipcpath"}
    assert {name for name in lab.keys() & host.keys() if lab[name] != host[name]} == apart
    written = (tmp_path / "config.toml").read_text()
    assert written.replace('127.0.0.1:0"\n', '0.0.0.0:30303"\n', 1) == told["config"]
    assert node.init_command(Path("geth"), Path("x"))[1] == told["init"][0]


def test_hosts_and_lab_run_ipfs_alike_but_for_folders_and_addresses(tmp_path: Path) -> None:
    node = IpfsNode(tmp_path)
    (tmp_path / "config").write_text(json.dumps({"Identity": {"PeerID": "12D3A"}, "Swarm": {"ConnMgr": {"x": 1}}}))
    command = node.command(Path("ipfs"), new_swarm_key(), [])
    told = json.loads(node_config("ipfs", "--address", NODE, "--small-block", str(SMALL_BLOCK), "--json"))
    assert command[1:] == told["arguments"]
    assert node.environment | {"IPFS_PATH": ""} == told["environment"] | {"IPFS_PATH": ""}
    config = json.loads((tmp_path / "config").read_text())
    assert config["Identity"] == {"PeerID": "12D3A"}
    assert config["Swarm"] == {"ConnMgr": {"x": 1}, **told["settings"]["Swarm"]}
    assert {name for name, value in told["settings"].items() if config[name] != value} == {"Addresses", "Swarm"}


def test_nodes_send_small_blocks_at_once_only_if_few_peers_can_have_them(tmp_path: Path) -> None:
    def replaced(peers: int) -> object:
        (tmp_path / "config").write_text(json.dumps({"Identity": {"PeerID": "12D3A"}}))
        node = IpfsNode(tmp_path)
        node.command(Path("ipfs"), new_swarm_key(), [node] * peers)
        return json.loads((tmp_path / "config").read_text())["Internal"]["Bitswap"]["WantHaveReplaceSize"]

    assert (replaced(FEW_PEERS), replaced(FEW_PEERS + 1)) == (SMALL_BLOCK, None)
    # A full block of a file with several has a frame around its content, so it is larger.
    assert SMALL_BLOCK <= cid.CHUNK_BYTES


def test_without_json_it_is_an_environment_file_of_systemd() -> None:
    lines = node_config("ipfs", "--address", NODE, "--peer", PEER).splitlines()
    variables = dict(shlex.split(line)[0].split("=", 1) for line in lines)
    assert variables["IPFS_PATH"] == "/var/lib/ipfs"
    assert variables["LIBP2P_FORCE_PNET"] == "1"
    (line,) = node_config("geth", "--sealer", ALICE.address, "--metrics-port", "6060").splitlines()
    name, value = shlex.split(line)[0].split("=", 1)
    assert name == "GETH_ARGUMENTS"
    assert options(value.split())["--metrics.port"] == "6060"


def test_the_genesis_is_the_lab_s() -> None:
    told = node_config("genesis", "--sealer", ALICE.address, "--sealer", BOB.address, "--account", HEADER.address)
    chain_id = CHAIN_ID
    assert told == configuration.genesis(chain_id, [ALICE.address, BOB.address], [HEADER.address])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["geth", "--sealer", "0x12"], "--sealer 0x12"),
        (["genesis", "--sealer", ALICE.address, "--account", "me"], "--account me"),
        (["genesis", "--sealer", ALICE.address, "--account", ALICE.address], "given twice"),
        (["ipfs", "--address", "/ip4/10.0.0.1/tcp/4001"], "--address /ip4/10.0.0.1/tcp/4001"),
        (["ipfs", "--address", NODE, "--peer", "12D3B"], "--peer 12D3B"),
    ],
)
def test_a_wrong_address_is_named(arguments: list[str], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        node_config(*arguments)
