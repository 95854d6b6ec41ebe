"""One contract on a chain, and the accounts that call it."""

import functools
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
from eth_abi import decode, encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils import event_abi_to_log_topic, function_abi_to_4byte_selector, keccak, to_checksum_address
from hexbytes import HexBytes
from web3 import Web3
from web3.contract.contract import Contract
from web3.exceptions import ContractLogicError
from web3.types import RPCEndpoint, TxReceipt

ARTIFACT = json.loads((Path(__file__).parents[2] / "contracts/FederatedLearning.json").read_text())
ERRORS = {function_abi_to_4byte_selector(entry): entry for entry in ARTIFACT["abi"] if entry["type"] == "error"}
GETTERS = {entry["name"]: entry for entry in ARTIFACT["abi"] if entry.get("stateMutability") == "view"}
FUNCTIONS = {
    (entry["name"], len(entry["inputs"])): (
        function_abi_to_4byte_selector(entry),
        [argument["type"] for argument in entry["inputs"]],
    )
    for entry in ARTIFACT["abi"]
    if entry["type"] == "function"
}
"""Selector and types of the arguments, by a function's name and how many arguments it takes."""
EVENTS = {event_abi_to_log_topic(entry): entry for entry in ARTIFACT["abi"] if entry["type"] == "event"}

CALL_GAS = 200_000
DEPLOY_GAS = 5_000_000
RECEIPT_TIMEOUT = 600

ZERO_ADDRESS = "0x" + "00" * 20
ZERO_HASH = b"\0" * 32


def account(name: str) -> LocalAccount:
    """The same account for the same name, on every chain."""
    return Account.from_key(keccak(text=f"fl-node test account {name}"))


def sha(text: str) -> bytes:
    """A hash as a file's would be, but without zero bytes: calldata costs less for those."""
    return keccak(text=text).replace(b"\0", b"\1")


HEADER = account("header")
ALICE = account("alice")
BOB = account("bob")
MALLORY = account("mallory")
ACCOUNTS = {"header": HEADER, "alice": ALICE, "bob": BOB, "mallory": MALLORY}
CLASS = {node: account(f"learner {node}") for node in range(1, 101)}
"""The learners of a large run, by nodeId."""
PLAN = sha("plan")
LONG = 10**6
"""Seconds of a timeout that no test reaches by waiting."""


@dataclass(frozen=True)
class Terms:
    """The contract's terms, in the order of its constructor."""

    learners: int = 2
    minimum: int = 1
    timeout: int = LONG
    asynchronous: bool = False
    threshold: int = 0


OPEN = Terms(learners=4, timeout=0, asynchronous=True)
"""Terms by which rounds never close."""


@dataclass(frozen=True)
class Refusal:
    """A custom error of the contract."""

    error: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Event:
    """An event of the contract, its arguments in the order of its signature."""

    name: str
    args: tuple[Any, ...]


def decode_revert(data: bytes) -> Refusal:
    """Find the custom error by its selector in the ABI; nothing else is a refusal by this contract."""
    assert data[:4] in ERRORS, f"no custom error of the contract: 0x{data.hex()}"
    entry = ERRORS[data[:4]]
    types = [argument["type"] for argument in entry["inputs"]]
    values = decode(types, data[4:])
    return Refusal(
        entry["name"],
        tuple(
            to_checksum_address(value) if kind == "address" else value
            for kind, value in zip(types, values, strict=True)
        ),
    )


@functools.cache
def _sender_of(w3: Web3) -> tuple[int, Counter[str]]:
    """Return the chain's ID, and how many transactions each account has sent, which are all sent here."""
    return w3.eth.chain_id, Counter()


def send(w3: Web3, sender: LocalAccount, data: str, to: str | None = None, gas: int = CALL_GAS) -> TxReceipt:
    """Sign a call locally, send it and wait for its block, whether it succeeds there or not.

    Without an address it deploys a contract. Tests send thousands, so this takes the short way past web3's contracts.
    """
    chain_id, count = _sender_of(w3)
    transaction = {
        "nonce": count[sender.address],
        "chainId": chain_id,
        "gas": gas if to else DEPLOY_GAS,
        "maxFeePerGas": 10**11,
        "maxPriorityFeePerGas": 10**9,
        "value": 0,
        "data": data,
    }
    signed = sender.sign_transaction(transaction | ({"to": to} if to else {}))
    sent = w3.eth.send_raw_transaction(signed.raw_transaction)
    count[sender.address] += 1
    receipt = w3.eth.wait_for_transaction_receipt(sent, timeout=RECEIPT_TIMEOUT, poll_latency=0.005)
    # Geth shows a receipt a moment before its block is the latest, which all else is read from.
    while w3.eth.block_number < receipt["blockNumber"]:
        time.sleep(0.001)
    return receipt


@functools.cache
def _class_of(w3: Web3) -> type[Contract]:
    """Return web3's class of the contract, which takes longer to make than a transaction."""
    return w3.eth.contract(abi=ARTIFACT["abi"], bytecode=ARTIFACT["bytecode"])


class Deployment:
    """A deployed contract whose first header is :data:`HEADER`."""

    def __init__(self, w3: Web3, terms: Terms = OPEN) -> None:
        self.w3 = w3
        self.terms = terms
        contract = _class_of(w3)
        self.receipt = send(w3, HEADER, contract.constructor(PLAN, astuple(terms)).data_in_transaction)
        assert self.receipt["status"] == 1
        self.contract = contract(self.receipt["contractAddress"])

    def data(self, name: str, *args: Any) -> str:
        """Encode a call; of functions of one name, of the one with so many arguments."""
        selector, types = FUNCTIONS[name, len(args)]
        return "0x" + (selector + encode(types, args)).hex()

    def read(self, name: str, *args: Any, sender: LocalAccount = MALLORY) -> Any:
        """What a getter answers, asked by a stranger unless told.

        Tests read thousands of values, so this takes the short way past web3's contracts.
        """
        entry = GETTERS[name]
        asked = {"from": sender.address, "to": self.contract.address, "data": self.data(name, *args)}
        answer = self.w3.provider.make_request(RPCEndpoint("eth_call"), [asked, "latest"])
        kinds = [one["type"] for one in entry["outputs"]]
        values = tuple(
            {"address": to_checksum_address, "uint256[]": list}.get(kind, lambda same: same)(value)
            for kind, value in zip(kinds, decode(kinds, HexBytes(answer["result"])), strict=True)
        )
        return values if len(values) > 1 else values[0]

    def write(self, sender: LocalAccount, name: str, *args: Any, gas: int = CALL_GAS) -> TxReceipt:
        """Send a call that must succeed."""
        receipt = send(self.w3, sender, self.data(name, *args), self.contract.address, gas)
        assert receipt["status"] == 1, f"{name}{args} by {sender.address} failed"
        return receipt

    def register(self, learners: Mapping[int, LocalAccount]) -> None:
        """Register learners by nodeId, fifty in each transaction."""
        nodes, addresses = list(learners), [one.address for one in learners.values()]
        for start in range(0, len(nodes), 50):
            members = slice(start, start + 50)
            self.write(HEADER, "registerLearners", nodes[members], addresses[members], gas=DEPLOY_GAS)

    def refused(self, sender: LocalAccount, name: str, *args: Any) -> Refusal:
        """Send a call that must fail, in its block too, and return the error it reverts with."""
        data = self.data(name, *args)
        with pytest.raises(ContractLogicError) as caught:
            self.w3.eth.call({"from": sender.address, "to": self.contract.address, "data": data})
        receipt = send(self.w3, sender, data, self.contract.address)
        assert receipt["status"] == 0
        assert receipt["logs"] == []
        return decode_revert(HexBytes(caught.value.data))

    def now(self) -> int:
        """The time of the latest block."""
        return self.w3.eth.get_block("latest")["timestamp"]

    def events(self, logs: Sequence[Mapping[str, Any]]) -> list[Event]:
        """Decode log entries of this contract; one that is not in its ABI fails."""
        return [self._event(log) for log in logs]

    def history(self) -> list[Event]:
        """Every event since the deployment, in order."""
        return self.events(
            self.w3.eth.get_logs({"address": self.contract.address, "fromBlock": self.receipt["blockNumber"]})
        )

    def attested(self) -> list[tuple[int, int]]:
        """Rounds whose global weights were attested, and by which node, in order."""
        return [event.args[:2] for event in self.history() if event.name == "GlobalWeightAttested"]

    def _event(self, log: Mapping[str, Any]) -> Event:
        assert log["address"] == self.contract.address
        entry = EVENTS[bytes(log["topics"][0])]
        decoded = self.contract.events[entry["name"]]().process_log(log)["args"]
        return Event(entry["name"], tuple(decoded[argument["name"]] for argument in entry["inputs"]))


def with_learners(run: Deployment, count: int = 2) -> Deployment:
    """Register alice as node 1, bob as node 2 and mallory as node 3, or the first of them."""
    for node, learner in list(enumerate((ALICE, BOB, MALLORY), 1))[:count]:
        run.write(HEADER, "registerLearner", node, learner.address)
    return run
