"""The contract on the chain, seen from one node's RPC.

Every transaction is signed here with the account of the role, so that Geth needs no unlocked account for it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import urllib3
from eth_abi.exceptions import DecodingError
from eth_account import Account
from eth_account.datastructures import SignedTransaction
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3 import exceptions as web3_errors
from web3.contract.contract import ContractFunction
from web3.middleware import ExtraDataToPOAMiddleware

from fl_node.artifacts import cid
from fl_node.chain.rpc import NodeProvider, Request
from fl_node.errors import ChainError, ChainUnreachable, ConfigError, ContractError, LogError
from fl_node.runtime import recursion

recursion.restore()

ARTIFACT = "FederatedLearning.json"
REQUEST_TIMEOUT = 10.0
CALL_GAS = 150_000
TRANSFER_GAS = 21_000
DEPLOY_GAS = 3_000_000
PRIORITY_FEE = 1
MAX_FEE = 100 * 10**9
"""Fees in wei a gas: the least that a sealer takes, and a bound far above any base fee of an idle chain."""
RECEIPT_PATIENCE = 10.0
"""Seconds after which a transaction that is in no block is given back to the caller, who looks again."""
SEALED_PATIENCE = 120.0
"""Seconds in which a block must take a contract or a transfer: sealers may have to find each other first."""
SEAL_PATIENCE = 2.0
"""Seconds that a node has to seal before a transaction is given back to the caller unsent."""
_REVERTED = 3
"""The code of the RPC's error when a contract refuses."""


LEARNER_REGISTERED, LOCAL_WEIGHT_SET, GLOBAL_WEIGHT_SET = "LearnerRegistered", "LocalWeightSet", "GlobalWeightSet"
"""The names of the contract's events."""


@dataclass(frozen=True)
class Receipt:
    """A transaction in a block."""

    transaction: str
    block: int
    gas: int
    contract: str | None = None


@dataclass(frozen=True)
class Sealed:
    """What the chain keeps of a transaction: who sent it, to whom, what it cost, and when its block was sealed.

    ``receiver`` is None where a contract was deployed; ``time`` is in seconds since 1970, by the clock of the block's
    sealer.
    """

    sender: str
    receiver: str | None
    gas: int
    time: int


@dataclass(frozen=True, order=True)
class LogEntry:
    """One event of the contract, in the order of block and log index.

    ``name`` is ``LearnerRegistered``, ``LocalWeightSet`` or ``GlobalWeightSet``; ``round`` is None for the
    first, ``cid`` likewise, and ``node_id`` is None for the last.
    """

    block: int
    index: int
    name: str
    transaction: str
    round: int | None = None
    node_id: int | None = None
    cid: str | None = None
    account: str | None = None


@dataclass(frozen=True)
class State:
    """What the contract says now."""

    started: bool
    round: int
    global_cid: str | None


@dataclass(frozen=True)
class View:
    """What the contract shows an account at one block.

    ``nonce`` is the number of the account's next transaction, ``learners`` are the registered nodeIds in ascending
    order, ``node_id`` is the account's own, if it has one. What else a decision hangs on is to be read at the same
    ``block`` (its hash): sealers replace a block by another now and then, and who reads the number of the next
    transaction in one and misses what it sent before in the other would send that twice.
    """

    block: str
    nonce: int
    state: State
    learners: tuple[int, ...]
    node_id: int | None


Call = tuple[str, Sequence[Any]]
_STATE: tuple[Call, ...] = (("round", []), ("getGlobalWeight", []))


@functools.cache
def _signatures() -> dict[str, tuple[bytes, list[str], list[str]]]:
    """Return the selector, argument types and result types of each function that only reads."""
    return {
        entry["name"]: (
            bytes(Web3.keccak(text=f"{entry['name']}({','.join(a['type'] for a in entry['inputs'])})")[:4]),
            [a["type"] for a in entry["inputs"]],
            [a["type"] for a in entry["outputs"]],
        )
        for entry in artifact()["abi"]
        if entry["type"] == "function" and entry["stateMutability"] == "view"
    }


@functools.cache
def artifact() -> dict[str, Any]:
    """Return the compiled contract (``abi`` and ``bytecode``) that came with this package."""
    packaged = resources.files("fl_node") / ARTIFACT
    checkout = Path(__file__).parents[2] / "contracts" / ARTIFACT
    text = packaged.read_text() if packaged.is_file() else checkout.read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def create_key(path: Path) -> str:
    """Make a key file for a new account, readable by its owner alone, and return the account's address.

    An existing key file is kept.
    """
    if not path.exists():
        account = Account.create()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(account.key.hex() + "\n")
        except OSError as error:
            raise ConfigError(f"key file {path}: {error.strerror}") from error
    return str(load_key(path).address)


def load_key(path: Path) -> LocalAccount:
    """Read the account of a role from its key file: 64 hexadecimal digits, mode 0600.

    Raises
    ------
    ConfigError
        The file is missing, holds no key, or others may read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"key file {path} should hold 64 hexadecimal digits") from error
    if mode & 0o077:
        raise ConfigError(f"key file {path} has mode {mode:04o}; others may read it: chmod 600 {path}")
    try:
        account: LocalAccount = Account.from_key(bytes.fromhex(text.removeprefix("0x")))
    except ValueError as error:
        raise ConfigError(f"key file {path} should hold 64 hexadecimal digits") from error
    return account


class Chain:
    """A node's RPC, and the account that signs."""

    def __init__(self, rpc: str, account: LocalAccount | None = None, timeout: float = REQUEST_TIMEOUT) -> None:
        self.rpc = rpc
        self.account = account
        self._chain_id: int | None = None
        self._provider = NodeProvider(rpc, timeout)
        self.web3 = Web3(self._provider)
        # Clique keeps its signatures in a field that web3 takes for too long.
        self.web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)

    @property
    def address(self) -> str:
        """The address of the account that signs."""
        if self.account is None:
            raise ConfigError("this needs the key of an account (--key)")
        return str(self.account.address)

    def chain_id(self) -> int:
        """Return the number of the chain; it is asked for once."""
        if self._chain_id is None:
            with self.errors():
                self._chain_id = self.web3.eth.chain_id
        return self._chain_id

    def block_number(self) -> int:
        """Return the height of the chain."""
        return self.quantity(self.ask(("eth_blockNumber", []))[0])

    def head(self) -> str:
        """Return the hash of the newest block."""
        (block,) = self.ask(("eth_getBlockByNumber", ["latest", False]))
        try:
            return str(block["hash"])
        except (TypeError, KeyError) as error:
            raise ChainError(f"chain at {self.rpc} shows no newest block; is this an Ethereum node?") from error

    def timestamp(self, block: int) -> int:
        """Return when a block was sealed, in seconds since 1970."""
        with self.errors():
            return int(self.web3.eth.get_block(block)["timestamp"])

    def sealed(self, transactions: Iterable[str]) -> dict[str, Sealed]:
        """Return what the chain keeps of transactions, by their hashes; of one in no block it keeps nothing."""
        names = list(dict.fromkeys(transactions))
        answers: list[Any] = []

        def look() -> bool:
            with contextlib.suppress(_NotYet):
                answers[:] = self.ask(*(("eth_getTransactionReceipt", [name]) for name in names))
                return True
            return False

        if not wait_until(look, RECEIPT_PATIENCE):
            return {}  # a node that has not indexed its blocks yet can't tell
        found = {name: answer for name, answer in zip(names, answers, strict=True) if answer}
        blocks = list(dict.fromkeys(str(one["blockNumber"]) for one in found.values()))
        headers = self.ask(*(("eth_getBlockByNumber", [number, False]) for number in blocks))
        times = {number: self.quantity(one["timestamp"]) for number, one in zip(blocks, headers, strict=True) if one}
        return {
            name: Sealed(
                Web3.to_checksum_address(one["from"]),
                Web3.to_checksum_address(one["to"]) if one["to"] else None,
                self.quantity(one["gasUsed"]),
                times[one["blockNumber"]],
            )
            for name, one in found.items()
            if one["blockNumber"] in times
        }

    def genesis(self) -> str:
        """Return the hash of block 0."""
        with self.errors():
            return "0x" + bytes(self.web3.eth.get_block(0)["hash"]).hex()

    def balance(self, address: str) -> int:
        """Return the balance of an account in wei."""
        with self.errors():
            return int(self.web3.eth.get_balance(Web3.to_checksum_address(address)))

    def client(self) -> str:
        """Return what the node says that it is, such as ``Geth/v1.13.15-…``."""
        with self.errors():
            return str(self.web3.client_version)

    def peers(self) -> int:
        """Return how many peers the node has."""
        with self.errors():
            return int(self.web3.net.peer_count)

    def sealing(self) -> bool:
        """Return whether the node seals blocks; a transaction that comes before that may wait for the next."""
        return self.ask(("eth_mining", []))[0] is True

    def nonce(self) -> int:
        """Return the number of the account's next transaction, not counting those that wait for a block."""
        return self.quantity(self.ask(("eth_getTransactionCount", [self.address, "latest"]))[0])

    def holds_back(self) -> bool:
        """Return whether the node has transactions that it may not seal now, and that nobody else has sealed."""
        return self.quantity(self.ask(("eth_getBlockTransactionCountByNumber", ["pending"]))[0]) > 0

    def nudge(self) -> None:
        """Send a transaction of no effect, so that some sealer makes a block.

        Two blocks of equal weight can follow one another: then each node keeps its own, and what only one of them
        holds is sealed by nobody when those who may seal have sealed it already. The next block decides. Nothing is
        sent while two transactions of the account wait as it is.
        """
        latest, pending = self.ask(*(("eth_getTransactionCount", [self.address, at]) for at in ("latest", "pending")))
        number = self.quantity(pending)
        if self.account and number - self.quantity(latest) < 2:
            with contextlib.suppress(_AlreadySent, _Underpriced, _NonceUsed):
                self._hand_in(self._sign(self.account, self.address, "0x", TRANSFER_GAS, number))

    def quantity(self, answer: object) -> int:
        """Return a number as the RPC writes it, such as ``0x1b4``."""
        try:
            return int(str(answer), 16)
        except ValueError as error:
            raise ChainError(f"chain at {self.rpc}: {answer!r} is not a number; is this an Ethereum node?") from error

    def ask(self, *requests: Request) -> list[Any]:
        """Make requests of the node's RPC and return their results.

        The shortest way there, since roles ask all the time; web3 does what is rare.
        """
        with self.errors():
            answers = self._provider.batch(requests)
        for answer in answers:
            if "error" in answer:
                _refused(self.rpc, answer["error"])
        return [answer.get("result") for answer in answers]

    def deploy(self, plan_cid: str, nonce: int | None = None) -> Receipt:
        """Deploy the contract for a plan; the account that signs becomes its header.

        Raises
        ------
        ChainError
            The transaction was not sealed in time.
        """
        compiled = artifact()
        contract = self.web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
        with self.errors():
            data = contract.constructor(cid.to_digest(plan_cid)).data_in_transaction
        return self._send_until_sealed("the contract", None, data, DEPLOY_GAS, nonce=nonce)

    def give(self, address: str, wei: int) -> Receipt:
        """Send ether of this account to another.

        Raises
        ------
        ChainError
            The transaction was not sealed in time, or the account owns less.
        """
        if (owned := self.balance(self.address)) <= wei:
            raise ChainError(f"chain at {self.rpc}: {self.address} owns {owned} wei and can't give {wei}")
        receiver = Web3.to_checksum_address(address)
        return self._send_until_sealed(f"the transfer to {address}", receiver, "0x", TRANSFER_GAS, value=wei)

    def contract(self, address: str) -> Contract:
        """Return the contract at an address.

        Raises
        ------
        ChainError
            There is no contract of this kind at the address.
        """
        if not address.startswith("0x") or not Web3.is_address(address):
            raise ConfigError(f"contract {address!r} is not an address: 0x and 40 hexadecimal digits")
        with self.errors():
            code = self.web3.eth.get_code(Web3.to_checksum_address(address))
        if not code:
            raise ChainError(f"there is no contract at {address} on the chain at {self.rpc}")
        return Contract(self, Web3.to_checksum_address(address))

    def _send_until_sealed(
        self, what: str, to: str | None, data: Any, gas: int, *, nonce: int | None = None, value: int = 0
    ) -> Receipt:
        """Send a transaction again and again, with the same nonce so that it counts once, until a block has it."""
        nonce, deadline = self.nonce() if nonce is None else nonce, time.monotonic() + SEALED_PATIENCE
        while time.monotonic() < deadline:
            is_used = self.nonce() > nonce
            if receipt := self._send(to, data, gas, nonce, value):
                return receipt
            if is_used:  # by another transaction of this account
                nonce = self.nonce()
        raise ChainError(
            f"chain at {self.rpc}: no block took {what} in {SEALED_PATIENCE:g} s; are enough sealers running?"
        )

    def _send(self, to: str | None, data: Any, gas: int, nonce: int, value: int = 0) -> Receipt | None:
        account = self.account
        if account is None:
            raise ConfigError("this needs the key of an account (--key)")
        # A transaction that reaches Clique (period 0) before it seals may wait for the next one to be sealed.
        # A node that catches up with the others pauses for a moment.
        if not wait_until(self.sealing, SEAL_PATIENCE, 0.01):
            raise ChainError(f"chain at {self.rpc}: the node does not seal yet")
        tip, fee = PRIORITY_FEE, MAX_FEE
        for _ in range(20):
            signed = self._sign(account, to, data, gas, nonce, value, tip, fee)
            try:
                self._hand_in(signed)
            except _Underpriced:
                # Another transaction with this number waits: ours replaces it when it pays more.
                tip, fee = tip * 5 // 4 + 1, fee * 5 // 4
                continue
            except _NonceUsed:
                # This very transaction is in a block, or another that the caller does not know of yet.
                return self._receipt(signed.hash, patience=0.0)
            except _AlreadySent:
                pass
            receipt = self._receipt(signed.hash)
            if receipt is None:
                self.nudge()
            return receipt
        raise ChainError(f"chain at {self.rpc}: a waiting transaction of {account.address} can't be replaced")

    def _sign(
        self,
        account: LocalAccount,
        to: str | None,
        data: Any,
        gas: int,
        nonce: int,
        value: int = 0,
        tip: int = PRIORITY_FEE,
        fee: int = MAX_FEE,
    ) -> SignedTransaction:
        transaction: dict[str, Any] = {
            "type": 2,
            "chainId": self.chain_id(),
            "nonce": nonce,
            "gas": gas,
            "maxPriorityFeePerGas": tip,
            "maxFeePerGas": fee,
            "value": value,
            "data": data,
        }
        if to is not None:
            transaction["to"] = to
        return account.sign_transaction(transaction)

    def _hand_in(self, signed: SignedTransaction) -> None:
        self.ask(("eth_sendRawTransaction", ["0x" + bytes(signed.raw_transaction).hex()]))

    def _receipt(self, transaction: Any, patience: float = RECEIPT_PATIENCE) -> Receipt | None:
        name = "0x" + bytes(transaction).hex()
        deadline = time.monotonic() + patience
        pause = 0.004
        while not (found := self._receipt_now(name)):
            if time.monotonic() >= deadline:
                return None
            time.sleep(pause)
            pause = min(pause * 1.3, 0.1)
        if int(found["status"], 16) == 0:
            raise ContractError(f"transaction {name} failed in its block")
        contract = found["contractAddress"]
        return Receipt(
            name,
            int(found["blockNumber"], 16),
            int(found["gasUsed"], 16),
            Web3.to_checksum_address(contract) if contract else None,
        )

    def _receipt_now(self, transaction: str) -> dict[str, Any] | None:
        try:
            found, height = self.ask(("eth_getTransactionReceipt", [transaction]), ("eth_blockNumber", []))
        except _NotYet:
            return None
        # Geth shows a receipt a moment before its block is the latest, which all else is read from.
        return found if found and int(found["blockNumber"], 16) <= int(height, 16) else None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what goes wrong between here and the node into a :class:`ChainError` of one line."""
        try:
            yield
        except web3_errors.Web3RPCError as error:
            _refused(self.rpc, (error.rpc_response or {}).get("error") or str(error))
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.TimeoutError,
            urllib3.exceptions.ProtocolError,
        ) as error:
            raise ChainUnreachable(f"chain at {self.rpc} can't be reached; is the node running?") from error
        except (urllib3.exceptions.HTTPError, web3_errors.Web3Exception, ValueError) as error:
            raise ChainError(f"chain at {self.rpc}: {error}") from error


class _NotYet(ChainError):
    """A transaction is in no block yet, or its node has not indexed it."""


class _Underpriced(ChainError):
    """Another transaction with the same number and as high a fee waits."""


class _AlreadySent(ChainError):
    """The node has this transaction already."""


class _NonceUsed(ChainError):
    """A transaction with this number is in a block."""


class Contract:
    """One run's contract; CIDs go in and come out, where the chain has digests."""

    def __init__(self, chain: Chain, address: str) -> None:
        self.chain = chain
        self.address = address
        self._contract = chain.web3.eth.contract(Web3.to_checksum_address(address), abi=artifact()["abi"])
        self._functions = self._contract.functions

    def has_known_code(self) -> bool:
        """Return whether what stands on chain is this version's contract, so that its rules are those promised."""
        with self.chain.errors():
            code = bytearray(self.chain.web3.eth.get_code(Web3.to_checksum_address(self.address)))
        for place in artifact()["immutableReferences"]:
            code[place["start"] : place["start"] + place["length"]] = bytes(place["length"])
        return bytes(code) == bytes.fromhex(artifact()["deployedBytecode"].removeprefix("0x"))

    def header(self) -> str:
        """Return the header's address."""
        return Web3.to_checksum_address(str(self._read("header")))

    def plan(self) -> str:
        """Return the CID of the plan."""
        return cid.from_digest(self._read("plan"))

    def round(self) -> int:
        """Return the current round."""
        return int(self._read("round"))

    def state(self) -> State:
        """Return the current round and its global weights."""
        return self._state(*self._read_all(*_STATE, at=self.chain.head()))

    def look(self, account: str) -> View:
        """Return what a role decides by, as it concerns an account.

        What a process sends and its successor, when it was killed, sends again by this is one transaction, or the
        second is refused.
        """
        head = self.chain.head()
        calls: list[Call] = [("learners", []), ("nodeIdOf", [account]), *_STATE]
        nonce, *answers = self.chain.ask(
            ("eth_getTransactionCount", [account, _at(head)]), *(self._call(*call, at=head) for call in calls)
        )
        learners, node_id, *state = self._results(calls, answers)
        return View(
            head, self.chain.quantity(nonce), self._state(*state), tuple(sorted(learners)), int(node_id) or None
        )

    def _state(self, round_: int, digest: bytes) -> State:
        global_cid = _cid(digest)
        return State(global_cid is not None, round_, global_cid)

    def global_weight_at(self, round_: int) -> str | None:
        """Return the CID of the global weights that a round started from, or None."""
        return _cid(self._read("globalWeightAt", round_))

    def local_weight_at(self, round_: int, node_id: int, block: str | None = None) -> str | None:
        """Return the CID of the local weights that a learner published in a round, or None."""
        return _cid(self._read("localWeightAt", round_, node_id, at=block))

    def local_weights(self, round_: int, node_ids: Sequence[int]) -> dict[int, str]:
        """Return the CIDs that these learners published in a round, by nodeId, from one request."""
        digests = self._read_all(*(("localWeightAt", [round_, node_id]) for node_id in node_ids))
        found = {node_id: _cid(digest) for node_id, digest in zip(node_ids, digests, strict=True)}
        return {node_id: name for node_id, name in found.items() if name}

    def learners(self) -> list[int]:
        """Return the nodeIds that are registered, in ascending order."""
        return sorted(self._read("learners"))

    def account_of(self, node_id: int, block: str | None = None) -> str | None:
        """Return the account of a node, or None."""
        account = str(self._read("accountOf", node_id, at=block))
        return None if int(account, 16) == 0 else Web3.to_checksum_address(account)

    def node_id_of(self, account: str) -> int | None:
        """Return the nodeId that an account is registered for, or None."""
        return int(self._read("nodeIdOf", account)) or None

    def register_learner(self, node_id: int, account: str, nonce: int) -> Receipt | None:
        """Register a learner's account; header only."""
        return self._transact(self._functions.registerLearner(node_id, Web3.to_checksum_address(account)), nonce)

    def set_local_weight(self, node_id: int, file_cid: str, nonce: int) -> Receipt | None:
        """Publish local weights; that learner only.

        Returns
        -------
        Receipt or None
            None if no block took the transaction in the time allowed, or another with its number was there
            first; the caller reads the state again.
        """
        return self._transact(self._functions.setLocalWeight(node_id, cid.to_digest(file_cid)), nonce)

    def set_global_weight(self, file_cid: str, nonce: int) -> Receipt | None:
        """Publish global weights; header only. Returns as :meth:`set_local_weight` does."""
        return self._transact(self._functions.setGlobalWeight(cid.to_digest(file_cid)), nonce)

    def log(self, first: int = 0) -> list[LogEntry]:
        """Return all events of the contract from a block on, in the order in which they came about."""
        with self.chain.errors():
            entries = self.chain.web3.eth.get_logs(
                {"address": Web3.to_checksum_address(self.address), "fromBlock": first, "toBlock": "latest"}
            )
            return sorted(self._entry(entry) for entry in entries)

    def _entry(self, entry: Any) -> LogEntry:
        strange = f"contract {self.address} has an event of another kind in block {entry['blockNumber']}"
        for name in (LOCAL_WEIGHT_SET, GLOBAL_WEIGHT_SET, LEARNER_REGISTERED):
            event = self._contract.events[name]()
            if entry["topics"] and bytes(entry["topics"][0]) == bytes.fromhex(event.topic.removeprefix("0x")):
                try:
                    args = event.process_log(entry)["args"]
                except (web3_errors.Web3Exception, DecodingError, ValueError) as error:
                    raise LogError(f"{strange}: {error}") from error
                return LogEntry(
                    block=entry["blockNumber"],
                    index=entry["logIndex"],
                    name=name,
                    transaction="0x" + bytes(entry["transactionHash"]).hex(),
                    round=args.get("round"),
                    node_id=args.get("nodeId"),
                    cid=cid.from_digest(args["hash"]) if "hash" in args else None,
                    account=args.get("account"),
                )
        raise LogError(strange)

    def _read(self, name: str, *arguments: Any, at: str | None = None) -> Any:
        return self._read_all((name, arguments), at=at)[0]

    def _read_all(self, *calls: Call, at: str | None = None) -> list[Any]:
        return self._results(calls, self.chain.ask(*(self._call(*call, at=at) for call in calls)))

    def _call(self, name: str, arguments: Sequence[Any], at: str | None = None) -> Request:
        selector, inputs, _ = _signatures()[name]
        data = selector + self.chain.web3.codec.encode(inputs, arguments)
        return "eth_call", [{"to": self.address, "data": "0x" + data.hex()}, _at(at)]

    def _results(self, calls: Sequence[Call], answers: Sequence[str | None]) -> list[Any]:
        results = []
        for (name, _), answer in zip(calls, answers, strict=True):
            if not answer or answer == "0x":
                raise ChainError(f"contract {self.address} did not answer {name}: no result")
            outputs = _signatures()[name][2]
            try:
                results.append(self.chain.web3.codec.decode(outputs, bytes.fromhex(answer.removeprefix("0x")))[0])
            except (DecodingError, ValueError, AttributeError, OverflowError) as error:
                raise ChainError(f"contract {self.address} did not answer {name}: {error}") from error
        return results

    def _transact(self, function: ContractFunction, nonce: int) -> Receipt | None:
        with self.chain.errors():
            data = function._encode_transaction_data()
        # A call first: what the contract refuses is not sent, and its custom error is known.
        self.chain.ask(("eth_call", [{"from": self.chain.address, "to": self.address, "data": data}, "latest"]))
        return self.chain._send(self.address, data, CALL_GAS, nonce)


def wait_until(ready: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Ask until the answer is yes, for up to ``timeout`` seconds; return the last answer."""
    deadline = time.monotonic() + timeout
    while not (answer := ready()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer


def _at(block: str | None) -> str | dict[str, str]:
    """Return what the RPC calls a block of this hash (EIP-1898), or the newest."""
    return {"blockHash": block} if block else "latest"


def _cid(digest: bytes) -> str | None:
    return None if digest == cid.EMPTY_DIGEST else cid.from_digest(digest)


def _refused(rpc: str, error: Any) -> NoReturn:
    """Raise what an error of the node's RPC means."""
    error = error if isinstance(error, dict) else {"message": error}
    message = str(error.get("message", error))
    lowered = message.lower()
    if error.get("code") == _REVERTED or lowered.startswith("execution reverted"):
        raise ContractError(_custom_error(message, error.get("data")))
    if "indexing is in progress" in lowered:
        raise _NotYet(message)
    if "underpriced" in lowered:
        raise _Underpriced(message)
    if "already known" in lowered:
        raise _AlreadySent(message)
    if "nonce too low" in lowered:
        raise _NonceUsed(message)
    raise ChainError(f"chain at {rpc}: {message}")


def _custom_error(message: str, revert: object) -> str:
    data = revert.removeprefix("0x") if isinstance(revert, str) else ""
    for entry in artifact()["abi"]:
        if entry["type"] == "error":
            types = [argument["type"] for argument in entry["inputs"]]
            selector = Web3.keccak(text=f"{entry['name']}({','.join(types)})")[:4].hex()
            if data.startswith(selector.removeprefix("0x")):
                values = Web3().codec.decode(types, bytes.fromhex(data)[4:])
                return f"the contract refused: {entry['name']}({', '.join(str(v) for v in values)})"
    return f"the contract refused: {message}"
