"""Chains of other kinds than Clique: readiness, the pace of blocks, fees and finality by what the node tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_node.artifacts import cid
from fl_node.chain.client import Chain
from fl_node.chain.node import Pace
from fl_node.chain.transactions import TRANSFER_GAS
from fl_node.errors import ChainError
from fl_node.lab import doctor
from fl_node.nodes.dev_chain import EmbeddedChain, RpcError
from tests.helpers.accounts import ALICE, BOB, FUNDED
from tests.helpers.chain import OPEN

PLAN = cid.of_bytes(b"plan")
CLIQUE = "0x" + "00" * 32 + ALICE.address[2:] + "00" * 65
QBFT = "0xf83aa0" + "00" * 32 + "d5" + "94" + ALICE.address[2:] + "c080c0"
SLOT = 12
GWEI = 10**9


class OtherChain(EmbeddedChain):
    """An embedded chain that answers as a node of another kind does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "blocks", [funded.address for funded in FUNDED])

    def without(self, *methods: str) -> OtherChain:
        for method in methods:
            del self._methods[method]
        return self

    def answers(self, **values: Any) -> OtherChain:
        self._methods |= {method: (lambda value=value: value) for method, value in values.items()}
        return self

    def blocks(self, **fields: Any) -> OtherChain:
        """Change fields of all blocks."""

        def block(at: str, full: bool = False) -> Any:
            content = self._block(at, full)
            return content and content | fields

        self._methods["eth_getBlockByNumber"] = block
        return self

    def steady(self, times: list[int], transactions: list[str] | None = None) -> OtherChain:
        """Have blocks at these times, which have these transactions."""

        def block(at: str, _full: bool = False) -> Any:
            number = len(times) - 1 if at == "latest" else int(at, 16)
            return {"number": hex(number), "timestamp": hex(times[number]), "transactions": transactions or []}

        self._methods["eth_getBlockByNumber"] = block
        return self.answers(eth_blockNumber=hex(len(times) - 1))

    def final(self, number: int) -> OtherChain:
        def block(at: str, full: bool = False) -> Any:
            return {"number": hex(number), "timestamp": "0x1"} if at == "finalized" else self._block(at, full)

        self._methods["eth_getBlockByNumber"] = block
        return self


@pytest.fixture
def other_chain(tmp_path: Path) -> OtherChain:
    return OtherChain(tmp_path / "other")


Serve = Callable[[EmbeddedChain], str]


def test_a_node_without_eth_mining_is_ready_when_it_is_in_sync(other_chain: OtherChain, serve: Serve) -> None:
    chain = Chain(serve(other_chain.without("eth_mining")), ALICE)
    assert chain.is_ready()
    assert chain.deploy(PLAN, OPEN).contract
    other_chain.answers(eth_syncing={"currentBlock": "0x1", "highestBlock": "0x9"})
    assert not chain.is_ready()


def test_a_transaction_is_not_sent_to_a_node_that_is_not_in_sync(
    other_chain: OtherChain, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_node.chain.transactions.READY_PATIENCE", 0.0)
    other_chain.without("eth_mining").answers(eth_syncing={"currentBlock": "0x1", "highestBlock": "0x9"})
    chain = Chain(serve(other_chain), ALICE)
    with pytest.raises(ChainError, match="not in sync"):
        chain.deploy(PLAN, OPEN)
    assert chain.nonce() == 0


@pytest.mark.parametrize("field", ["blockNumber", "status", "gasUsed"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_receipt_without_a_field_is_an_error_of_the_chain(
    other_chain: OtherChain, serve: Serve, field: str, is_there: bool
) -> None:
    whole = other_chain._methods["eth_getTransactionReceipt"]

    def receipt(name: str) -> Any:
        fields = dict(whole(name)) | {field: None}
        return fields if is_there else {key: value for key, value in fields.items() if key != field}

    other_chain._methods["eth_getTransactionReceipt"] = receipt
    with pytest.raises(ChainError, match="None is not a number"):
        Chain(serve(other_chain), ALICE).transfer(BOB.address, 1)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("transactions", [None, 5, [5], [{"from": ALICE.address}]])
def test_a_block_without_a_list_of_transactions_is_an_error_of_the_chain(
    other_chain: OtherChain, serve: Serve, transactions: Any, full: bool
) -> None:
    chain = Chain(serve(other_chain.blocks(transactions=transactions)), ALICE)
    with pytest.raises(ChainError, match="transaction"):
        chain.blocks([0], full=full)


@pytest.mark.parametrize(("extra", "is_ready"), [(CLIQUE, False), (QBFT, True), ("0x", True)])
def test_a_node_that_does_not_seal_is_ready_unless_the_chain_is_cliques(
    other_chain: OtherChain, serve: Serve, extra: str, is_ready: bool
) -> None:
    chain = Chain(serve(other_chain.answers(eth_mining=False).blocks(extraData=extra)))
    assert chain.is_ready() == is_ready
    assert chain.is_clique != is_ready


def test_the_pace_is_the_shortest_gap_of_recent_blocks(other_chain: OtherChain, serve: Serve) -> None:
    times = [0, 1, 2, *range(1000, 1000 + 16 * SLOT, SLOT)]
    times[-1] += SLOT  # an empty slot
    assert Chain(serve(other_chain.steady(times))).pace() == Pace(SLOT, is_steady=True)


def test_a_busy_chain_is_not_taken_for_one_that_seals_without_transactions(
    other_chain: OtherChain, serve: Serve
) -> None:
    assert Chain(serve(other_chain.steady([0, 2, 4, 6], ["0x12"]))).pace() == Pace(2, is_steady=False)


def test_a_chain_that_seals_on_demand_or_is_new_has_no_pace(other_chain: OtherChain, serve: Serve) -> None:
    chain = Chain(serve(other_chain), ALICE)
    assert chain.pace() == Pace()
    for _ in range(3):
        chain.send_noop()
    assert not chain.pace().is_steady


def test_patience_follows_the_pace(other_chain: OtherChain, serve: Serve) -> None:
    chain = Chain(serve(other_chain.steady([0, SLOT, 2 * SLOT, 3 * SLOT])))
    assert chain.patience(10, 3) == 3 * SLOT
    assert chain.patience(120, 3) == 120


def test_no_noop_is_sent_where_blocks_come_without_transactions(other_chain: OtherChain, serve: Serve) -> None:
    chain = Chain(serve(other_chain), ALICE)
    chain.send_noop()
    assert chain.nonce() == 1
    chain = Chain(serve(other_chain.steady([0, SLOT, 2 * SLOT])), ALICE)
    chain.send_noop()
    assert chain.nonce() == 1


@pytest.mark.parametrize(("asked", "offered"), [("0x0", 1), (hex(2 * GWEI), 2 * GWEI), (None, 1)])
def test_a_transaction_offers_the_tip_that_the_chain_asks_for(
    other_chain: OtherChain, serve: Serve, asked: str | None, offered: int
) -> None:
    if asked is None:
        other_chain.without("eth_maxPriorityFeePerGas")
    else:
        other_chain.answers(eth_maxPriorityFeePerGas=asked)
    chain = Chain(serve(other_chain), ALICE)
    before = chain.balance(ALICE.address)
    receipt = chain.deploy(PLAN, OPEN)
    base = int(other_chain.request("eth_getBlockByNumber", [hex(receipt.block)])["baseFeePerGas"], 16)
    assert before - chain.balance(ALICE.address) == receipt.gas * (base + offered)


def test_a_transaction_may_cost_twice_the_base_fee(other_chain: OtherChain, serve: Serve) -> None:
    chain = Chain(serve(other_chain.blocks(baseFeePerGas=hex(300 * GWEI))), ALICE)
    assert chain._fees_if_ready(()) == (1, 600 * GWEI + 1)


@pytest.mark.parametrize(("estimate", "limit"), [(1_000, TRANSFER_GAS), (60_000, 90_000), (None, TRANSFER_GAS)])
def test_the_gas_limit_follows_the_rules_of_the_chain(
    other_chain: OtherChain, serve: Serve, estimate: int | None, limit: int
) -> None:
    if estimate is not None:
        other_chain._methods["eth_estimateGas"] = lambda _call: hex(estimate)
    receipt = Chain(serve(other_chain), ALICE).transfer(BOB.address, 1)
    (sent,) = other_chain.request("eth_getBlockByNumber", [hex(receipt.block), True])["transactions"]
    assert int(sent["gas"], 16) == limit


def test_finality_is_what_the_node_tells(other_chain: OtherChain, serve: Serve) -> None:
    assert Chain(serve(other_chain.final(64))).finalized() == 64


@pytest.mark.parametrize(("difficulty", "expected"), [("0x0", 0), ("0x2", None)])
def test_a_chain_that_names_no_final_block_has_one_later_only_if_it_is_proof_of_stake(
    other_chain: OtherChain, serve: Serve, difficulty: str, expected: int | None
) -> None:
    def block(at: str, full: bool = False) -> Any:
        if at == "finalized":
            raise RpcError(-39001, "finalized block not found")
        return (other_chain._block(at, full) or {}) | {"difficulty": difficulty}

    other_chain._methods["eth_getBlockByNumber"] = block
    assert Chain(serve(other_chain)).finalized() == expected


def test_doctor_accepts_another_client_if_the_chain_is_the_sites_own(
    other_chain: OtherChain, serve: Serve, tmp_path: Path
) -> None:
    other_chain.without("eth_mining").final(0).answers(web3_clientVersion="Geth/v1.17.10-stable/linux-amd64/go1.26.8")
    key = tmp_path / "role.key"
    key.touch(0o600)
    key.write_text(bytes(ALICE.key).hex())
    rpc, store = serve(other_chain), f"file:{tmp_path / 'store'}"
    contract = Chain(rpc, ALICE).deploy(PLAN, OPEN).contract

    def ask(**more: Any) -> dict[str, doctor.Check]:
        checks = doctor.run(rpc=rpc, store=store, key=key, data_dir=tmp_path, **more)
        return {check.what: check for check in checks}

    answers = ask()
    assert answers["chain"].state == "wrong"
    assert "--own-chain" in answers["chain"].remedy
    answers = ask(own_chain=True, chain_id=Chain(rpc).chain_id(), contract=contract)
    assert {answers[what].state for what in ("chain", "sealing", "chain peers", "finality", "contract")} == {"ok"}
    assert answers["sealing"].found.startswith("the node is in sync")
    assert answers["finality"].found == "block 0 of 1 is final"
    assert ask(own_chain=True, chain_id=7)["chain"].found == f"chain {Chain(rpc).chain_id()}, should be 7"
    other_chain.answers(eth_syncing={"currentBlock": "0x1"})
    assert ask(own_chain=True)["sealing"].found == "the node is not in sync"


def test_doctor_notices_a_contract_of_another_kind(other_chain: OtherChain, serve: Serve, tmp_path: Path) -> None:
    other_chain._methods["eth_getCode"] = lambda _address, _at="latest": "0x6001"
    checks = doctor.run(rpc=serve(other_chain), store=f"file:{tmp_path}", key=tmp_path, contract="0x" + "1" * 40)
    check = {result.what: result for result in checks}
    assert check["contract"].state == "wrong"
    assert check["contract"].found.endswith("its code differs from FederatedLearning.sol")
