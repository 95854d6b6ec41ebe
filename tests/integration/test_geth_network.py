"""Three real Geth nodes as a lab runs them: what keeps a small Clique network from stalling."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests
from hexbytes import HexBytes

from fl_node.artifacts import cid
from fl_node.audit.journals import REPLACED, check_journals, read_journals
from fl_node.audit.result import Audit
from fl_node.chain.client import Chain
from fl_node.chain.clique import sealer_of, sealers
from fl_node.chain.contract import LogEntry
from fl_node.chain.keys import load_key
from fl_node.chain.transactions import Receipt
from fl_node.errors import ChainError
from fl_node.nodes import CHAIN_ID, binaries
from fl_node.nodes.backends import ProcessBackend, free_ports
from fl_node.nodes.configuration import genesis
from fl_node.nodes.geth import GethNode
from fl_node.nodes.process import Child
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.journal import read as read_journal
from fl_node.roles.journal import Recorder
from fl_node.runtime.waiting import wait_until
from tests.helpers.chain import OPEN
from tests.helpers.sealing import HANG, agree, block_hash, has_peers, initialise, initialised, send, started

REDIAL = 120.0
"""The same where Geth dials a lost peer again, which it does after half a minute at the earliest."""

NODES = ("header", "learner-1", "learner-2")
OTHER = {"header": "learner-1", "learner-1": "learner-2", "learner-2": "header"}

Chains = Callable[[str], Chain]
PLAN = Plan.model_validate(
    {"name": "test", "data": {"name": "digits"}, "mode": "async", "aggregation": {"rule": "fedasync"}}
)


def weights(number: int) -> str:
    return cid.of_bytes(f"weights {number}".encode())


def publish(chain: Chain, address: str, number: int) -> None:
    """Publish global weights as the header."""
    contract = chain.contract(address)
    assert wait_until(lambda: contract.set_global_weight(weights(number), chain.nonce()) is not None, HANG)


def is_there(chain: Chain, address: str) -> bool:
    with contextlib.suppress(ChainError):
        return bool(chain.contract(address))
    return False


def hand(chain: Chain) -> Receipt:
    """Hand a transaction to a node, and don't wait for its block."""
    assert chain.account is not None
    pending = chain.web3.eth.get_transaction_count(chain.account.address, "pending")
    fees = {"maxPriorityFeePerGas": 1, "maxFeePerGas": 10**11}
    transaction = {"chainId": CHAIN_ID, "nonce": pending, "gas": 21_000, "to": chain.address, "value": 0, **fees}
    sent = chain.web3.eth.send_raw_transaction(chain.account.sign_transaction(transaction).raw_transaction)
    return Receipt("0x" + bytes(sent).hex(), 0, 0)


def sees(chain: Chain, receipt: Receipt) -> bool:
    """Whether a node comes to have a transaction in a block."""

    def has() -> bool:
        with contextlib.suppress(ChainError):
            return chain._receipt(HexBytes(receipt.transaction), 0.0) is not None
        return False

    return wait_until(has, HANG, 0.02)


def knows(chain: Chain, transaction: str) -> bool:
    """Whether a node has a transaction, in a block or waiting for one."""
    (found,) = chain.ask(("eth_getTransactionByHash", [transaction]))
    return found is not None


def sealer(chain: Chain, number: int) -> str:
    """Who signed a block: Clique's blocks don't name their sealer."""
    return sealer_of(chain.blocks([number])[number]).lower()


def count_at(chain: Chain, block: str) -> int:
    """How many transactions the account of a role had sent at a block, on the head's chain or beside it."""
    (answer,) = chain.ask(("eth_getTransactionCount", [chain.address, {"blockHash": f"0x{block}"}]))
    return chain.quantity(answer)


def blocks(chain: Chain) -> list[str | None]:
    return [block_hash(chain, number) for number in range(chain.block_number() + 1)]


def end(child: Child, how: signal.Signals) -> None:
    child.process.send_signal(how)
    child.process.wait(HANG)


# Cold start


def test_what_is_sent_while_the_nodes_still_start_is_seen_by_all(
    tmp_path: Path, keys: Mapping[str, Path], accounts: Mapping[str, str]
) -> None:
    nodes = initialised(tmp_path, accounts)
    with started(nodes, lambda _, other: nodes[other].enode, tmp_path), ThreadPoolExecutor(len(nodes)) as pool:
        chains = [Chain(node.rpc, load_key(keys[name])) for name, node in nodes.items()]
        for receipt in pool.map(send, chains):
            assert all(sees(chain, receipt) for chain in chains)
        assert agree(chains)


# In operation


def test_a_transaction_sent_to_any_node_is_seen_on_another(chain: Chains) -> None:
    for _ in range(10):
        for node, other in OTHER.items():
            assert sees(chain(other), send(chain(node)))


def test_all_nodes_seal(backend: ProcessBackend, chain: Chains) -> None:
    for node in NODES * 5:
        send(chain(node))
    assert agree([chain(node) for node in NODES])
    seen = {sealer(chain("header"), number) for number in range(1, chain("header").block_number() + 1)}
    assert seen == {backend.geth[node].sealer for node in NODES}
    found = sealers(chain("learner-1"))
    assert found is not None
    assert {account.lower() for account in found.accounts} == seen
    assert (sum(found.sealed.values()), found.missing) == (found.blocks, ())


def test_an_unlocked_sealing_account_can_not_be_spent(backend: ProcessBackend, chain: Chains) -> None:
    account, node = backend.geth["header"].sealer, chain("header")
    fees = {"gas": hex(21_000), "maxFeePerGas": "0x8", "maxPriorityFeePerGas": "0x1"}
    request = {"from": account, "to": node.address, "value": "0x1", **fees}
    cost = 3 * (21_000 * 8 + 1)

    def earned() -> bool:
        send(node)
        return node.balance(account) >= cost

    assert wait_until(earned, HANG, 0.0)
    # Geth takes what the account sends, and what it only signs from another node, and hands both to all nodes. But
    # the account has code, so no sealer takes them into a block (EIP-3607).
    with node.errors():
        (sent,) = node.ask(("eth_sendTransaction", [request]))
        (signed,) = node.ask(("eth_signTransaction", [{**request, "nonce": "0x1"}]))
        (handed,) = chain("learner-1").ask(("eth_sendRawTransaction", [signed["raw"]]))
    stuck = [Receipt(name, 0, 0) for name in (sent, handed)]
    for other in NODES:
        for one in stuck:
            assert wait_until(lambda name=one.transaction, at=other: knows(chain(at), name), HANG, 0.02)
    # What follows is sealed as ever, by every node, also by one that reads its pool anew.
    for _ in range(6):
        for other in NODES:
            assert all(sees(chain(each), send(chain(other))) for each in NODES)
    backend.restart("header geth")
    assert sees(chain("learner-1"), send(node))
    assert agree([chain(other) for other in NODES])
    for other in NODES:
        (count,) = chain(other).ask(("eth_getTransactionCount", [account, "latest"]))
        assert int(count, 16) == 0
        assert not any(chain(other)._sealed_receipt(receipt.transaction) for receipt in stuck)
    # Nobody makes blocks of nothing while such a transaction waits.
    height = node.block_number()
    for number in range(1, height + 1):
        (block,) = node.ask(("eth_getBlockByNumber", [hex(number), False]))
        assert block["transactions"], f"block {number} is empty"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("node", NODES)
def test_a_node_that_is_restarted_takes_transactions_at_once(
    backend: ProcessBackend, chain: Chains, node: str, how: signal.Signals
) -> None:
    end(backend.children[f"{node} geth"], how)
    backend.restart(f"{node} geth")
    assert sees(chain(OTHER[node]), send(chain(node)))
    assert sees(chain(node), send(chain(OTHER[node])))


@pytest.mark.parametrize("away", NODES)
def test_the_chain_goes_on_without_one_sealer_which_catches_up_later(
    backend: ProcessBackend, chain: Chains, away: str
) -> None:
    assert agree([chain(node) for node in NODES])
    before = blocks(chain(away))
    end(backend.children[f"{away} geth"], signal.SIGKILL)
    try:
        others = [chain(node) for node in NODES if node != away]
        receipts = [send(other) for other in others * 3]
    finally:
        backend.restart(f"{away} geth")
    assert all(sees(chain(away), receipt) for receipt in receipts)
    assert agree([chain(node) for node in NODES])
    assert blocks(chain(away))[: len(before)] == before


def test_a_node_that_may_not_seal_alone_says_what_it_holds_back_and_is_not_flooded_with_noops(
    backend: ProcessBackend, chain: Chains
) -> None:
    assert agree([chain(node) for node in NODES])
    alone = chain("header")
    assert not alone.holds_back()
    for node in NODES[1:]:
        end(backend.children[f"{node} geth"], signal.SIGKILL)
    try:
        # It may have sealed the last block of the three; it may never seal the second one.
        hand(alone)
        hand(alone)
        assert wait_until(alone.holds_back, HANG)
        for _ in range(5):
            alone.send_noop()
        latest, pending = (alone.web3.eth.get_transaction_count(alone.address, at) for at in ("latest", "pending"))
        assert latest < pending <= latest + 2
    finally:
        for node in NODES[1:]:
            backend.restart(f"{node} geth")
    assert wait_until(lambda: not alone.holds_back(), REDIAL)
    assert agree([chain(node) for node in NODES])


def test_no_block_is_lost_when_all_nodes_are_killed_at_once(backend: ProcessBackend, chain: Chains) -> None:
    send(chain("header"))
    assert agree([chain(node) for node in NODES])
    before = blocks(chain("header"))
    for node in NODES:
        backend.children[f"{node} geth"].process.kill()
    for node in NODES:
        backend.restart(f"{node} geth")
    # Before any of them has sealed or has a peer, perhaps.
    receipt = send(chain("learner-1"))
    assert receipt.block == len(before)
    for node in NODES:
        assert sees(chain(node), receipt)
        assert blocks(chain(node))[: len(before)] == before


def test_a_node_that_stood_still_for_a_while_has_the_same_head_afterwards(
    backend: ProcessBackend, chain: Chains
) -> None:
    still = backend.children["learner-2 geth"].process
    still.send_signal(signal.SIGSTOP)
    try:
        receipts = [send(chain(node)) for node in ("header", "learner-1") * 3]
    finally:
        still.send_signal(signal.SIGCONT)
    assert all(sees(chain("learner-2"), receipt) for receipt in receipts)
    assert agree([chain(node) for node in NODES])
    assert sees(chain("header"), send(chain("learner-2")))


class Cable:
    """What comes in at a port goes to another; it can be cut and mended."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = True
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self._whole = False
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                self._connect(here)

    def _connect(self, here: socket.socket) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._whole:
                there = socket.create_connection(("127.0.0.1", self._target), HANG)
                there.settimeout(None)
                self._open += [here, there]
                for ends in [(here, there), (there, here)]:
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()
                return
        here.close()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                sink.sendall(content)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def test_after_a_node_was_cut_off_all_have_one_chain_with_what_was_sent_on_either_side(
    tmp_path: Path, keys: Mapping[str, Path], accounts: Mapping[str, str]
) -> None:
    nodes = initialised(tmp_path, accounts)
    away, others = "learner-2", ("header", "learner-1")
    with contextlib.ExitStack() as stack:
        cables = {node: Cable(nodes[node].p2p_port) for node in nodes}
        for cable in cables.values():
            stack.callback(cable.close)

        def dials(node: str, other: str) -> str:
            """Go through a cable from and to the node that will be cut off, and directly elsewhere."""
            port = cables[other].port if away in (node, other) else nodes[other].p2p_port
            return nodes[other].enode.replace(f":{nodes[other].p2p_port}?", f":{port}?")

        stack.enter_context(started(nodes, dials, tmp_path))
        chains = {name: Chain(node.rpc, load_key(keys[name])) for name, node in nodes.items()}
        assert all(has_peers(chain, 2, REDIAL) for chain in chains.values())
        assert sees(chains[away], send(chains["header"]))
        address = str(chains["header"].deploy(weights(0), OPEN).contract)
        publish(chains["header"], address, 0)
        assert wait_until(lambda: is_there(chains[away], address), HANG)
        watched = chains[away].contract(address)
        recorder = Recorder(tmp_path, watched, "learner", load_key(keys[away]))

        def look() -> str | None:
            view = watched.view(chains[away].address)
            recorder.see(view, PLAN)
            return view.state.global_cid

        assert wait_until(lambda: look() == weights(0), HANG)

        # A sealer may not sign two blocks of three in a row, so one that has signed the last could do nothing alone.
        for _ in range(20):
            send(chains["header"])
            assert agree(list(chains.values()))
            head = chains["header"].block_number()
            if sealer(chains["header"], head) != nodes[away].sealer:
                break
        for cable in cables.values():
            cable.cut()
        assert has_peers(chains[away], 0)
        # Of the header's account both sides have a transaction with the same number: only one can stay.
        publish(Chain(nodes[away].rpc, load_key(keys["header"])), address, 1)
        assert look() == weights(1)
        publish(chains["header"], address, 2)
        here = [send(chains[node]) for node in others * 3]
        there = [hand(chains[away]), hand(chains[away])]
        fork = head + 1
        assert wait_until(lambda: block_hash(chains[away], fork) is not None, HANG)
        lost = str(block_hash(chains[away], fork))
        assert lost != block_hash(chains["header"], fork)
        before = count_at(chains[away], lost)

        for cable in cables.values():
            cable.mend()
        assert all(has_peers(chain, 2, REDIAL) for chain in chains.values())
        assert agree(list(chains.values()))
        assert all(sees(chain, receipt) for chain in chains.values() for receipt in here + there)
        assert agree(list(chains.values()))
        # Who began to look at the block that was replaced sees one picture to the end.
        assert block_hash(chains[away], fork) != lost
        assert count_at(chains[away], lost) == before

        # What it wrote down on its side is not on the chain, and nobody has lied.
        assert look() == weights(2)
        assert [entry.cid for entry in read_journal(recorder.path).entries] == [
            weights(number) for number in range(3)
        ]
        learners = {1: LogEntry(0, 0, "LearnerRegistered", "", node_id=1, account=chains[away].address)}
        past, result = replace(history.read(watched), learners=learners), Audit()
        check_journals(watched, PLAN, past, read_journals(watched, [recorder.path]), result)
        assert not result.findings
        assert [note for note in result.notes if weights(1) in note and note.code == REPLACED]


def test_two_nodes_that_each_dialled_a_third_find_one_another_later(
    tmp_path: Path, keys: Mapping[str, Path], accounts: Mapping[str, str]
) -> None:
    nodes = initialised(tmp_path, accounts)
    with contextlib.ExitStack() as stack:
        cables = {node: Cable(nodes[node].p2p_port) for node in nodes}
        for cable in cables.values():
            stack.callback(cable.close)
            cable.cut()

        def dials(node: str, other: str) -> str:
            """Go directly to learner-1, so that it is always the one dialled, and through a cut cable elsewhere."""
            port = nodes[other].p2p_port if other == "learner-1" else cables[other].port
            return nodes[other].enode.replace(f":{nodes[other].p2p_port}?", f":{port}?")

        order = {name: nodes[name] for name in ("learner-1", "header", "learner-2")}
        stack.enter_context(started(order, dials, tmp_path))
        chains = {name: Chain(node.rpc, load_key(keys[name])) for name, node in nodes.items()}
        assert has_peers(chains["learner-1"], 2, REDIAL)
        # The one that dialled may count its peer later than the one that was dialled.
        assert all(has_peers(chains[node], 1, REDIAL) for node in ("header", "learner-2"))
        for cable in cables.values():
            cable.mend()
        assert all(has_peers(chain, 2, REDIAL) for chain in chains.values())


# Ports


def test_a_node_with_another_genesis_is_no_peer(backend: ProcessBackend, chain: Chains, tmp_path: Path) -> None:
    # It has the name, the port and the node key of one that all others trust, and another sealer.
    real = backend.geth["learner-2"]
    stranger = GethNode(tmp_path / "stranger")
    stranger.folder.mkdir()
    shutil.copy(real.folder / "node.key", stranger.folder)
    stranger.prepare()
    stranger.p2p_port, (stranger.http_port,) = real.p2p_port, free_ports(1)
    (tmp_path / "genesis.json").write_text(genesis(CHAIN_ID, [stranger.sealer], []))
    initialise(stranger, tmp_path / "genesis.json")
    others = ("header", "learner-1")
    end(backend.children["learner-2 geth"], signal.SIGTERM)
    try:
        assert stranger.enode == real.enode
        command = stranger.command(binaries.install(binaries.GETH), [backend.geth[node].enode for node in others])
        child = Child("stranger", [*command, "--verbosity", "4"], tmp_path / "stranger.log")
        try:
            refused = wait_until(lambda: "genesis mismatch" in child.log.read_text(), HANG)
            assert refused, child.tail()
            # Geth counts a peer until its genesis is compared, and tries again now and then.
            assert has_peers(Chain(stranger.rpc), 0)
            assert all(has_peers(chain(node), 1) for node in others)
        finally:
            child.stop()
    finally:
        backend.restart("learner-2 geth")
    assert all(has_peers(chain(node), 2, REDIAL) for node in NODES)


def test_geth_listens_on_loopback_alone(backend: ProcessBackend) -> None:
    for node in NODES:
        process = psutil.Process(backend.children[f"{node} geth"].process.pid)
        listening = [c.laddr for c in process.net_connections("inet") if c.status in (psutil.CONN_LISTEN, "NONE")]
        assert {backend.geth[node].http_port, backend.geth[node].p2p_port} <= {address.port for address in listening}
        assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "method",
    [
        "admin_addPeer",
        "admin_peers",
        "clique_propose",
        "debug_setHead",
        "miner_stop",
        "personal_listAccounts",
        "personal_sendTransaction",
        "personal_unlockAccount",
        "txpool_content",
    ],
)
def test_the_rpc_does_not_serve_what_changes_the_node(backend: ProcessBackend, method: str) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": []}
    answer = requests.post(backend.geth["header"].rpc, json=request, timeout=HANG).json()
    assert answer["error"]["code"] == -32601
    assert answer["error"]["message"] == f"the method {method} does not exist/is not available"


def test_the_chain_is_cliques_and_has_no_final_blocks_and_blocks_on_demand(chain: Callable[[str], Chain]) -> None:
    node = chain("header")
    assert node.is_clique
    assert node.is_ready()
    assert node.finalized() is None
    assert not node.pace().is_steady
    assert node._fees_if_ready(())[0] == 1
