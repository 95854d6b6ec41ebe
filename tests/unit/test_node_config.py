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

IDENTITY = "12D3KooW" + "A" * 44
NODE = f"/ip4/10.0.0.1/tcp/4001/p2p/{IDENTITY}"
PEER = f"/ip4/10.0.0.2/tcp/4001/p2p/{IDENTITY[:-1]}B"
KEY = "0123456789abcdef" * 8
ENODE = f"enode://{KEY}@10.0.0.2:30303?discport=0"


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
    lab = options(node.command(Path("geth"), [ENODE])[1:])
    told = json.loads(node_config("geth", "--sealer", node.sealer, "--peer", ENODE, "--json"))
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
        (["geth", "--sealer", f"{ALICE.address}\n"], "--sealer 0x"),
    ],
)
def test_a_wrong_address_is_named(arguments: list[str], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        node_config(*arguments)


@pytest.mark.parametrize(
    "peer",
    [
        "gar bage",
        ENODE.replace(KEY, KEY[:-1]),
        ENODE.replace("10.0.0.2", "10.0.0.256"),
        ENODE.replace("10.0.0.2", ""),
        ENODE.replace("10.0.0.2", "[10.0.0.2]"),
        ENODE.replace("30303", "99999"),
        ENODE.replace("30303", "0"),
        ENODE.replace("discport=0", "discport=99999"),
        f"{ENODE}\n",
        f"{ENODE} --http.api=admin",
        f"{ENODE}\u2028",
        PEER,
    ],
)
def test_a_peer_of_geth_that_is_no_enode_is_refused(peer: str) -> None:
    with pytest.raises(ConfigError, match="should be an enode such as enode://") as caught:
        node_config("geth", "--sealer", ALICE.address, "--peer", ENODE, "--peer", peer)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("host", ["10.0.0.2", "node-2.lab", "[fd00::2]"])
def test_a_peer_of_geth_has_an_address_or_a_name(host: str) -> None:
    peer = ENODE.replace("10.0.0.2", host)
    assert peer in json.loads(node_config("geth", "--sealer", ALICE.address, "--peer", peer, "--json"))["config"]


@pytest.mark.parametrize("option", ["--address", "--peer"])
@pytest.mark.parametrize(
    "address",
    [
        "junk/p2p/",
        "/ip4/10.0.0.1/tcp/4001",
        "12D3B",
        f"/p2p/{IDENTITY}",
        "/ip4/10.0.0.1/tcp/4001/p2p/",
        "/ip4/10.0.0.1/tcp/4001/p2p/12D3",
        f"/ip4/10.0.0.256/tcp/4001/p2p/{IDENTITY}",
        f"/ip4/fd00::1/tcp/4001/p2p/{IDENTITY}",
        f"/ip6/10.0.0.1/tcp/4001/p2p/{IDENTITY}",
        f"/ip4/10.0.0.1/tcp/0/p2p/{IDENTITY}",
        f"/ip4/10.0.0.1/tcp/65536/p2p/{IDENTITY}",
        f"/ip4/10.0.0.1 /tcp/4001/p2p/{IDENTITY}",
        f"{NODE}\n",
        ENODE,
    ],
)
def test_an_address_of_ipfs_that_is_no_multiaddress_with_an_identity_is_refused(option: str, address: str) -> None:
    given = ["--address", address] if option == "--address" else ["--address", NODE, "--peer", address]
    with pytest.raises(ConfigError, match=f"^{option} .*: should be a multiaddress such as") as caught:
        node_config("ipfs", *given)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("host", ["ip4/10.0.0.2", "ip6/fd00::2", "dns4/node-2.lab", "dns/localhost"])
def test_an_address_of_ipfs_has_an_address_or_a_name(host: str) -> None:
    address = NODE.replace("ip4/10.0.0.1", host)
    told = json.loads(node_config("ipfs", "--address", address, "--json"))
    assert told["settings"]["Addresses"]["Announce"] == [f"/{host}/tcp/4001"]


@pytest.mark.parametrize(("program", "option"), [("geth", "--folder"), ("geth", "--config"), ("ipfs", "--folder")])
@pytest.mark.parametrize(
    "path", ["/var/lib/a b", "/a\nGETH_ARGUMENTS=x", "/a\t", "/a\x1b[0m", "/a\u00a0b", '/a"b', "/a\\"]
)
def test_a_path_that_is_no_single_word_is_refused(program: str, option: str, path: str) -> None:
    needed = ["--sealer", ALICE.address] if program == "geth" else ["--address", NODE]
    with pytest.raises(ConfigError, match=f"^{option} .*: should be a path without spaces") as caught:
        node_config(program, *needed, option, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["geth", "--sealer", ALICE.address, "--port", "8545"], "--rpc-port 8545: --port is the same port"),
        (
            ["geth", "--sealer", ALICE.address, "--authrpc-port", "8545"],
            "--authrpc-port 8545: --rpc-port is the same",
        ),
        (["geth", "--sealer", ALICE.address, "--metrics-port", "8551"], "--metrics-port 8551: --authrpc-port is the"),
        (["ipfs", "--address", NODE, "--port", "5001"], "--api-port 5001: --port is the same port"),
    ],
)
def test_a_port_for_two_purposes_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        node_config(*arguments)
