"""Is everything there that a role needs? Each question with a right and a wrong answer."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from fl_node.artifacts import cid
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.chain.client import Chain
from fl_node.chain.clique import Sealers
from fl_node.errors import StoreUnreachable
from fl_node.lab import doctor
from fl_node.lab.doctor import Check
from fl_node.nodes.binaries import GETH, GETH_UNPATCHED, KUBO
from fl_node.nodes.dev_chain import EmbeddedChain
from tests.helpers.accounts import ALICE, FUNDED, HEADER, MALLORY, POOR
from tests.helpers.chain import OPEN

Ask = Callable[..., dict[str, Check]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, rpc: str, tmp_path: Path) -> Ask:
    """Ask all questions of a node where all is well but for what is given, and return the answers by question."""
    monkeypatch.delenv("FL_NODE_DATA_DIR", raising=False)
    monkeypatch.setenv("FL_NODE_CACHE", str(tmp_path / "cache"))

    def questions(**changes: Any) -> dict[str, Check]:
        given = {"rpc": rpc, "store": f"file:{tmp_path / 'store'}", "key": key_file(tmp_path, ALICE)} | changes
        return {check.what: check for check in doctor.run(**given)}

    return questions


def key_file(folder: Path, account: Any) -> Path:
    path = folder / f"{account.address}.key"
    path.touch(0o600)
    path.write_text(bytes(account.key).hex())
    return path


@pytest.fixture
def node(tmp_path: Path, serve: Callable[[EmbeddedChain], str]) -> Iterator[Callable[..., str]]:
    """Make a node that answers some methods otherwise."""

    def make(**answers: Any) -> str:
        chain = EmbeddedChain(tmp_path / "odd" / "blocks", [funded.address for funded in FUNDED])
        chain._methods |= {method: (lambda *_, value=value: value) for method, value in answers.items()}
        return serve(chain)

    yield make


def test_where_all_is_well_nothing_is_wrong(ask: Ask, rpc: str) -> None:
    answers = ask(peers=0, genesis=Chain(rpc).genesis())
    assert {check.state for check in answers.values()} == {"ok", "skipped"}
    assert not any(check.remedy for check in answers.values())
    assert answers["chain"].found.startswith("fl-node/embedded, chain 20240191, block ")
    assert answers["account"].found.startswith(ALICE.address)
    assert answers["store"].found.startswith("folder ")
    assert answers["data"].state == "skipped"


def test_a_chain_that_is_down_is_said_once_and_nothing_else_asked_of_it(
    ask: Ask, free_port: Callable[[], int]
) -> None:
    answers = ask(rpc=f"http://127.0.0.1:{free_port()}", contract=HEADER.address)
    assert answers["chain"].state == "wrong"
    assert "start Geth" in answers["chain"].remedy
    for what in ("genesis", "sealing", "chain peers", "account", "contract"):
        assert answers[what] == Check(what, "skipped", "the chain can't be reached")
    assert answers["store"].state == "ok"


def test_another_version_of_geth_is_wrong(ask: Ask, node: Callable[..., str]) -> None:
    answer = ask(rpc=node(web3_clientVersion="Geth/v1.14.0-stable/linux"))["chain"]
    assert answer.state == "wrong"
    assert f"install Geth {GETH.full_version}" in answer.remedy


def test_a_geth_without_the_fixes_is_wrong_unless_asked_for(
    ask: Ask, node: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rpc = node(web3_clientVersion=f"Geth/v{GETH_UNPATCHED.full_version}/linux-amd64/go1.21.6")
    answer = ask(rpc=rpc)["chain"]
    assert answer.state == "wrong"
    assert "CVE-2026-22862" in answer.remedy
    monkeypatch.setenv("FL_NODE_GETH_UNPATCHED", "1")
    assert ask(rpc=rpc)["chain"].state == "ok"


def test_the_pinned_version_of_geth_is_right(ask: Ask, node: Callable[..., str]) -> None:
    assert ask(rpc=node(web3_clientVersion=f"Geth/v{GETH.full_version}/linux-amd64/go1.26.8"))["chain"].state == "ok"


def test_another_genesis_is_wrong(ask: Ask, rpc: str) -> None:
    genesis = Chain(rpc).genesis()
    assert ask(genesis=genesis.upper().replace("0X", "0x"))["genesis"].state == "ok"
    answer = ask(genesis="0x" + "12" * 32)["genesis"]
    assert answer.state == "wrong"
    assert genesis in answer.found
    assert "another chain" in answer.remedy


def test_a_node_that_does_not_seal_is_wrong(ask: Ask, node: Callable[..., str]) -> None:
    syncing = {"currentBlock": "0x1", "highestBlock": "0x9"}
    assert ask(rpc=node(eth_mining=False, eth_syncing=syncing))["sealing"].state == "wrong"
    genesis = {
        "hash": "0x" + "12" * 32,
        "extraData": "0x" + "00" * 32 + ALICE.address[2:] + "00" * 65,
        "timestamp": "0x0",
        "transactions": [],
    }
    answer = ask(rpc=node(eth_mining=False, eth_getBlockByNumber=genesis))["sealing"]
    assert (answer.state, answer.found) == ("wrong", "the node is not sealing")


@pytest.mark.parametrize(("wanted", "state"), [(None, "ok"), (2, "ok"), (1, "wrong"), (0, "wrong"), (3, "wrong")])
def test_another_number_of_peers_is_wrong(ask: Ask, node: Callable[..., str], wanted: int | None, state: str) -> None:
    assert ask(rpc=node(net_peerCount="0x2"), peers=wanted)["chain peers"].state == state


def test_an_account_without_key_or_ether_is_wrong(ask: Ask, tmp_path: Path) -> None:
    answer = ask(key=tmp_path / "none.key")["account"]
    assert (answer.state, answer.remedy) == ("wrong", f"create one: fl-node key {tmp_path / 'none.key'}")
    answer = ask(key=key_file(tmp_path, POOR))["account"]
    assert answer.state == "wrong"
    assert "owns 0 wei" in answer.found
    key_file(tmp_path, MALLORY).chmod(0o644)
    answer = ask(key=tmp_path / f"{MALLORY.address}.key")["account"]
    assert answer.state == "wrong"
    assert "chmod 600" in answer.found


@pytest.mark.parametrize(("wei", "state"), [(15 * 10**15, "wrong"), (2 * 10**16 - 1, "wrong"), (2 * 10**16, "ok")])
def test_an_account_can_pay_for_a_call_of_the_contract_or_is_wrong(
    ask: Ask, rpc: str, tmp_path: Path, wei: int, state: str
) -> None:
    owner = Account.from_key(hashlib.sha256(str(wei).encode()).digest())
    Chain(rpc, ALICE).transfer(owner.address, wei)
    assert ask(key=key_file(tmp_path, owner))["account"].state == state


@pytest.mark.parametrize("value", [None, 5, True, [], {"a": 1}, "x"])
@pytest.mark.parametrize(
    ("method", "question"),
    [("eth_chainId", "chain"), ("net_peerCount", "chain peers"), ("eth_getBalance", "account")],
)
def test_an_answer_that_is_no_number_is_wrong(
    ask: Ask, node: Callable[..., str], method: str, question: str, value: Any
) -> None:
    answer = ask(rpc=node(**{method: value}), own_chain=True)[question]
    assert answer.state == "wrong"
    assert "is not a number such as 0x1b4; is this an Ethereum node?" in answer.found


@pytest.mark.parametrize("value", [None, 5, [], {"a": 1}])
def test_a_client_without_a_name_is_wrong(ask: Ask, node: Callable[..., str], value: Any) -> None:
    answer = ask(rpc=node(web3_clientVersion=value), own_chain=True)["chain"]
    assert answer.state == "wrong"
    assert "is not the name of a client" in answer.found


def test_a_contract_says_who_the_account_is_to_it(ask: Ask, rpc: str, tmp_path: Path) -> None:
    chain = Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(cid.of_bytes(b"plan"), OPEN).contract))
    contract.register_learner(5, ALICE.address, chain.nonce())
    keys = {owner: key_file(tmp_path, owner) for owner in (HEADER, ALICE, MALLORY)}
    answers = {owner: ask(contract=contract.address, key=key)["contract"] for owner, key in keys.items()}
    assert answers[HEADER].found.endswith("this account is its header")
    assert answers[ALICE].found.endswith("this account is its learner 5")
    assert answers[MALLORY].state == "wrong"
    assert answers[MALLORY].remedy == "let the header register it"
    assert ask()["contract"].state == "skipped"


@pytest.mark.parametrize("contract", [ALICE.address, "0x12", "contract"])
def test_a_contract_that_is_none_is_wrong(ask: Ask, contract: str) -> None:
    assert ask(contract=contract)["contract"].state == "wrong"


def test_a_contract_without_a_key_is_wrong(ask: Ask, rpc: str, tmp_path: Path) -> None:
    contract = str(Chain(rpc, HEADER).deploy(cid.of_bytes(b"plan"), OPEN).contract)
    assert ask(contract=contract, key=tmp_path / "none.key")["contract"].state == "wrong"


# IPFS


@pytest.fixture
def ipfs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A daemon of the pinned version with two private peers; change what it answers."""
    answers: dict[str, Any] = {
        "version": KUBO.version,
        "identity": "12D3KooW",
        "peers": ["/ip4/192.168.56.12/tcp/4001/p2p/12D3KooX", "/ip6/fd00::2/tcp/4001/p2p/12D3KooY"],
        "bootstrap": [],
    }

    def answer(name: str) -> Callable[[IpfsStore], Any]:
        def method(_: IpfsStore) -> Any:
            if isinstance(answers[name], Exception):
                raise answers[name]
            return answers[name]

        return method

    for name in answers:
        monkeypatch.setattr(IpfsStore, name, answer(name))
    return answers


API = "/ip4/127.0.0.1/tcp/5001"


def test_a_daemon_where_all_is_well_is_right(ask: Ask, ipfs: dict[str, Any]) -> None:
    answers = ask(store=API, peers=None)
    assert [answers[what].state for what in ("store", "swarm peers", "no public peers")] == ["ok"] * 3


@pytest.mark.parametrize(
    ("change", "what", "expected"),
    [
        ({"version": "0.29.0"}, "store", "IPFS 0.29.0"),
        ({"bootstrap": ["/dnsaddr/bootstrap.libp2p.io/p2p/Qm"]}, "no public peers", "1 bootstrap peers"),
        ({"peers": ["/ip4/147.75.83.83/tcp/4001/p2p/Qm"]}, "no public peers", "147.75.83.83"),
        ({"peers": ["/ip6/2604:1380::1/tcp/4001/p2p/Qm"]}, "no public peers", "2604:1380::1"),
        ({"peers": ["/dns4/ipfs.io/tcp/4001/p2p/Qm"]}, "no public peers", "ipfs.io"),
        ({"peers": ["/ip4/999.1.1.1/tcp/4001/p2p/Qm"]}, "no public peers", "999.1.1.1"),
        ({"peers": ["/ip4"]}, "no public peers", "/ip4"),
    ],
)
def test_another_version_or_a_public_peer_is_wrong(
    ask: Ask, ipfs: dict[str, Any], change: dict[str, Any], what: str, expected: str
) -> None:
    ipfs.update(change)
    answer = ask(store=API)[what]
    assert answer.state == "wrong"
    assert expected in answer.found
    assert answer.remedy


def test_another_number_of_peers_in_the_swarm_is_wrong(ask: Ask, ipfs: dict[str, Any]) -> None:
    assert ask(store=API, peers=2)["swarm peers"].state == "ok"
    assert ask(store=API, peers=1)["swarm peers"].state == "wrong"


def test_a_daemon_that_is_down_is_said_once(ask: Ask, free_port: Callable[[], int]) -> None:
    answers = ask(store=f"/ip4/127.0.0.1/tcp/{free_port()}")
    assert answers["store"].state == "wrong"
    assert "start IPFS" in answers["store"].remedy
    assert [answers[what].state for what in ("swarm peers", "no public peers")] == ["skipped"] * 2


def test_a_daemon_that_goes_down_in_between_is_wrong(ask: Ask, ipfs: dict[str, Any]) -> None:
    ipfs["peers"] = StoreUnreachable("gone")
    assert ask(store=API)["swarm peers"].state == "wrong"


GOOD_KEY = "/key/swarm/psk/1.0.0/\n/base16/\n" + "ab" * 32 + "\n"


@pytest.mark.parametrize(
    ("content", "mode", "state"),
    [
        (GOOD_KEY, 0o600, "ok"),
        (GOOD_KEY.replace("\n", "\r\n"), 0o600, "ok"),
        (GOOD_KEY, 0o644, "wrong"),
        ("", 0o600, "wrong"),
        (GOOD_KEY[:-3], 0o600, "wrong"),
        (GOOD_KEY.replace("base16", "base64"), 0o600, "wrong"),
        (GOOD_KEY.replace("ab", "zz"), 0o600, "wrong"),
        (GOOD_KEY + "more", 0o600, "wrong"),
        ("\ud800", 0o600, "wrong"),
    ],
)
def test_a_swarm_key_is_three_lines_for_its_owner_alone(
    ask: Ask, tmp_path: Path, content: str, mode: int, state: str
) -> None:
    path = tmp_path / "swarm.key"
    path.write_bytes(content.encode(errors="surrogatepass"))
    path.chmod(mode)
    assert ask(swarm_key=path)["swarm key"].state == state


def test_a_swarm_key_that_is_missing_is_wrong(ask: Ask, tmp_path: Path) -> None:
    answer = ask(swarm_key=tmp_path / "none.key")["swarm key"]
    assert answer.state == "wrong"
    assert "public network" in answer.remedy
    assert ask()["swarm key"].state == "skipped"


# Data


def test_data_that_is_missing_or_damaged_is_wrong(monkeypatch: pytest.MonkeyPatch, ask: Ask, tmp_path: Path) -> None:
    assert ask(data_dir=tmp_path / "nowhere")["data"].state == "wrong"
    folder = tmp_path / "mnist"
    folder.mkdir()
    contents = {
        f"{part}-{kind}": bytes(size)
        for part, count in (("train", 5), ("t10k", 2))
        for kind, size in (("images-idx3-ubyte", 16 + count * 784), ("labels-idx1-ubyte", 8 + count))
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr("fl_node.data.datasets.MNIST_SHA256", digests)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert ask(data_dir=folder)["data"].found == f"MNIST in {folder}, 5 training images"
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")
    assert ask(data_dir=folder)["data"].state == "wrong"


# Firewall


@pytest.fixture
def host_says(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """Answer one connection to a socket, as a host does that is asked for its firewall."""
    path = tmp_path / "firewall.sock"
    threads = []

    def answer(line: bytes) -> Path:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            with listening, listening.accept()[0] as connection:
                connection.sendall(line)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return path

    yield answer
    for thread in threads:
        thread.join(10)


def test_a_complete_firewall_is_ok(ask: Ask, host_says: Callable[[bytes], Path]) -> None:
    assert ask(firewall=host_says(b"complete\n"))["firewall"].state == "ok"


@pytest.mark.parametrize(
    "line", [b"not complete: the table inet fl_testbed is missing\n", b"", b"\xff\n", b"completely\n"]
)
def test_any_other_answer_about_the_firewall_is_wrong(
    ask: Ask, host_says: Callable[[bytes], Path], line: bytes
) -> None:
    answer = ask(firewall=host_says(line))["firewall"]
    assert answer.state == "wrong"
    assert "fl-firewall" in answer.remedy


def test_a_host_that_does_not_tell_of_its_firewall_is_wrong(ask: Ask, tmp_path: Path) -> None:
    assert ask(firewall=tmp_path / "none.sock")["firewall"].state == "wrong"


def test_without_a_host_there_is_no_firewall_to_ask_for(ask: Ask) -> None:
    assert ask()["firewall"].state == "skipped"


def test_who_seals_is_said_of_clique_alone(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ask()["sealers"].state, ask()["sealers"].found) == ("skipped", "not Clique")
    found = Sealers((ALICE.address, MALLORY.address), {ALICE.address: 5}, 5, MALLORY.address)
    monkeypatch.setattr(doctor.clique, "sealers", lambda _chain: found)
    said = ask()["sealers"]
    assert said.state == "ok"
    assert f"{ALICE.address} 5" in said.found
    assert f"next: {MALLORY.address}" in said.found and f"missing: {MALLORY.address}" in said.found


# Host secret


def test_a_host_secret_is_for_its_owner_alone_and_need_not_be_there_yet(ask: Ask, tmp_path: Path) -> None:
    assert ask()["host secret"].state == "skipped"
    path = tmp_path / "host.secret"
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o600)
    assert ask()["host secret"].state == "ok"
    path.chmod(0o644)
    answer = ask()["host secret"]
    assert answer.state == "wrong"
    assert f"chmod 600 {path}" in answer.remedy


@pytest.mark.parametrize("text", ["", "ab" * 31, "zz" * 32, "é" * 64])
def test_a_host_secret_that_holds_something_else_is_to_be_made_again(ask: Ask, tmp_path: Path, text: str) -> None:
    path = tmp_path / "host.secret"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    answer = ask()["host secret"]
    assert answer.state == "wrong"
    assert answer.found == f"host secret {path} should hold 64 hexadecimal digits"
    assert answer.remedy == f"delete {path} between two runs; the next private run makes it"


def test_a_host_secret_belongs_to_the_owner_of_the_key(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "host.secret"
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o600)
    real, owner = Path.stat, path.stat().st_uid

    def another(self: Path, **options: Any) -> os.stat_result:
        status = real(self, **options)
        return os.stat_result([*status[:4], owner + 1, *status[5:]]) if self == path else status

    monkeypatch.setattr(Path, "stat", another)
    answer = ask()["host secret"]
    assert (answer.state, answer.remedy) == ("wrong", f"chown {owner} {path}")
