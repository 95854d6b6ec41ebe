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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import requests
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import HTTPProvider, Web3
from web3 import exceptions as web3_errors
from web3.contract.contract import ContractFunction
from web3.middleware import ExtraDataToPOAMiddleware
from web3.types import TxParams

from fl_node import cid
from fl_node.errors import ChainError, ChainUnreachable, ConfigError, ContractError

ARTIFACT = "FederatedLearning.json"
REQUEST_TIMEOUT = 10.0
CALL_GAS = 150_000
DEPLOY_GAS = 3_000_000
PRIORITY_FEE = 1
MAX_FEE = 100 * 10**9
"""Fees in wei a gas: the least that a sealer takes, and a bound far above any base fee of an idle chain."""
RECEIPT_PATIENCE = 10.0
"""Seconds after which a transaction that is in no block is given back to the caller, who looks again."""


@dataclass(frozen=True)
class Receipt:
    """A transaction in a block."""

    transaction: str
    block: int
    gas: int
    contract: str | None = None


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
    checkout = Path(__file__).parent.parent / "contracts" / ARTIFACT
    text = packaged.read_text() if packaged.is_file() else checkout.read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def create_key(path: Path) -> str:
    """Make a key file for a new account, readable by its owner alone, and return the account's address.

    An existing key file is kept.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        account = Account.create()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(account.key.hex() + "\n")
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

    def __init__(self, rpc: str, account: LocalAccount | None = None) -> None:
        self.rpc = rpc
        self.account = account
        self._chain_id: int | None = None
        # A request that failed is the caller's to repeat: it waits for a node that restarts, and says so.
        provider = HTTPProvider(rpc, request_kwargs={"timeout": REQUEST_TIMEOUT}, exception_retry_configuration=None)
        self.web3 = Web3(provider)
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
        # The shortest way there, since roles that wait ask for nothing else.
        with self.errors():
            answer = self.web3.provider.make_request("eth_blockNumber", [])  # type: ignore[arg-type]
            if "result" not in answer:
                raise ChainError(f"chain at {self.rpc}: {answer.get('error')}")
            return int(answer["result"], 16)

    def timestamp(self, block: int) -> int:
        """Return when a block was sealed, in seconds since 1970."""
        with self.errors():
            return int(self.web3.eth.get_block(block)["timestamp"])

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
        with self.errors():
            answer = self.web3.provider.make_request("eth_mining", [])  # type: ignore[arg-type]
            return answer.get("result") is True

    def nonce(self) -> int:
        """Return the number of the account's next transaction, not counting those that wait for a block.

        Read it before the state that decides what to send: then what is sent twice, by a process that was
        killed and its successor, is one transaction or the second is refused.
        """
        with self.errors():
            return int(self.web3.eth.get_transaction_count(self.web3.to_checksum_address(self.address)))

    def deploy(self, plan_cid: str, nonce: int | None = None) -> Receipt:
        """Deploy the contract for a plan; the account that signs becomes its header."""
        compiled = artifact()
        contract = self.web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
        with self.errors():
            data = contract.constructor(cid.to_digest(plan_cid)).data_in_transaction
        receipt = self._send(None, data, DEPLOY_GAS, self.nonce() if nonce is None else nonce)
        if receipt is None:
            raise ChainError(f"chain at {self.rpc}: no block took the contract; are enough sealers running?")
        return receipt

    def contract(self, address: str) -> Contract:
        """Return the contract at an address.

        Raises
        ------
        ChainError
            There is no contract of this kind at the address.
        """
        if not Web3.is_address(address):
            raise ConfigError(f"contract {address!r} is not an address: 0x and 40 hexadecimal digits")
        with self.errors():
            code = self.web3.eth.get_code(Web3.to_checksum_address(address))
        if not code:
            raise ChainError(f"there is no contract at {address} on the chain at {self.rpc}")
        return Contract(self, Web3.to_checksum_address(address))

    def _send(self, to: str | None, data: Any, gas: int, nonce: int) -> Receipt | None:
        account = self.account
        if account is None:
            raise ConfigError("this needs the key of an account (--key)")
        if not self.sealing():
            # A transaction that reaches Clique (period 0) before it seals may wait for the next one to be sealed.
            raise ChainError(f"chain at {self.rpc}: the node does not seal yet")
        tip, fee = PRIORITY_FEE, MAX_FEE
        for _ in range(20):
            transaction: dict[str, Any] = {
                "type": 2,
                "chainId": self.chain_id(),
                "nonce": nonce,
                "gas": gas,
                "maxPriorityFeePerGas": tip,
                "maxFeePerGas": fee,
                "value": 0,
                "data": data,
            }
            if to is not None:
                transaction["to"] = to
            signed = account.sign_transaction(transaction)
            try:
                with self.errors():
                    self.web3.eth.send_raw_transaction(signed.raw_transaction)
            except _Underpriced:
                # Another transaction with this number waits: ours replaces it when it pays more.
                tip, fee = tip * 5 // 4 + 1, fee * 5 // 4
                continue
            except _NonceUsed:
                # This very transaction is in a block, or another that the caller does not know of yet.
                return self._receipt(signed.hash, patience=0.0)
            except _AlreadySent:
                pass
            return self._receipt(signed.hash)
        raise ChainError(f"chain at {self.rpc}: a waiting transaction of {account.address} can't be replaced")

    def _receipt(self, transaction: Any, patience: float = RECEIPT_PATIENCE) -> Receipt | None:
        deadline = time.monotonic() + patience
        pause = 0.004
        while True:
            try:
                with self.errors():
                    found = self.web3.eth.get_transaction_receipt(transaction)
                # Geth shows a receipt a moment before its block is the latest, which all else is read from.
                if self.block_number() < found["blockNumber"]:
                    raise _NotYet(f"block {found['blockNumber']} is not the latest")
            except _NotYet:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(pause)
                pause = min(pause * 1.3, 0.1)
                continue
            if not found["status"]:
                raise ContractError(f"transaction 0x{bytes(transaction).hex()} failed in its block")
            return Receipt(
                "0x" + bytes(transaction).hex(),
                found["blockNumber"],
                found["gasUsed"],
                found["contractAddress"],
            )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what goes wrong between here and the node into a :class:`ChainError` of one line."""
        try:
            yield
        except (web3_errors.TransactionNotFound, web3_errors.TransactionIndexingInProgress) as error:
            raise _NotYet(str(error)) from error
        except web3_errors.ContractLogicError as error:
            raise ContractError(_custom_error(error)) from error
        except web3_errors.Web3RPCError as error:
            _raise_for(self.rpc, _rpc_message(error), error)
        except (requests.ConnectionError, requests.Timeout, web3_errors.RequestTimedOut) as error:
            raise ChainUnreachable(f"chain at {self.rpc} can't be reached; is the node running?") from error
        except (requests.RequestException, web3_errors.Web3Exception, ValueError) as error:
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

    def state(self) -> State:
        """Return the current round and its global weights."""
        current = int(self._read("round"))
        global_cid = self.global_weight_at(current)
        return State(global_cid is not None, current, global_cid)

    def global_weight_at(self, round_: int) -> str | None:
        """Return the CID of the global weights that a round started from, or None."""
        return _cid(self._read("globalWeightAt", round_))

    def local_weight_at(self, round_: int, node_id: int) -> str | None:
        """Return the CID of the local weights that a learner published in a round, or None."""
        return _cid(self._read("localWeightAt", round_, node_id))

    def learners(self) -> list[int]:
        """Return the nodeIds that are registered, in ascending order."""
        return sorted(self._read("learners"))

    def account_of(self, node_id: int) -> str | None:
        """Return the account of a node, or None."""
        account = str(self._read("accountOf", node_id))
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

    def log(self) -> list[LogEntry]:
        """Return all events of the contract, in the order in which they came about."""
        with self.chain.errors():
            entries = self.chain.web3.eth.get_logs(
                {"address": Web3.to_checksum_address(self.address), "fromBlock": 0, "toBlock": "latest"}
            )
            return sorted(self._entry(entry) for entry in entries)

    def _entry(self, entry: Any) -> LogEntry:
        for name in ("LocalWeightSet", "GlobalWeightSet", "LearnerRegistered"):
            event = self._contract.events[name]()
            if bytes(entry["topics"][0]) == bytes.fromhex(event.topic.removeprefix("0x")):
                args = event.process_log(entry)["args"]
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
        raise ChainError(f"contract {self.address} has an event of another kind in block {entry['blockNumber']}")

    def _read(self, name: str, *arguments: Any) -> Any:
        # Roles read often while they wait, and this takes a fifth of the time of web3's contract call.
        selector, inputs, outputs = _signatures()[name]
        data = selector + self.chain.web3.codec.encode(inputs, arguments)
        with self.chain.errors():
            answer = self.chain.web3.provider.make_request(
                "eth_call",  # type: ignore[arg-type]
                [{"to": self.address, "data": "0x" + data.hex()}, "latest"],
            )
        result = answer.get("result")
        if not result or result == "0x":
            raise ChainError(f"contract {self.address} did not answer {name}: {answer.get('error', 'no result')}")
        return self.chain.web3.codec.decode(outputs, bytes.fromhex(result.removeprefix("0x")))[0]

    def _transact(self, function: ContractFunction, nonce: int) -> Receipt | None:
        caller: TxParams = {"from": Web3.to_checksum_address(self.chain.address)}
        with self.chain.errors():
            # A call first: what the contract refuses is not sent, and its custom error is known.
            function.call(caller)
            data = function._encode_transaction_data()
        return self.chain._send(self.address, data, CALL_GAS, nonce)


def wait_until(ready: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Ask until the answer is yes, for up to ``timeout`` seconds; return the last answer."""
    deadline = time.monotonic() + timeout
    while not (answer := ready()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer


def _cid(digest: bytes) -> str | None:
    return None if digest == cid.EMPTY_DIGEST else cid.from_digest(digest)


def _custom_error(error: web3_errors.ContractLogicError) -> str:
    data = error.data if isinstance(error.data, str) else ""
    for entry in artifact()["abi"]:
        if entry["type"] == "error":
            types = [argument["type"] for argument in entry["inputs"]]
            selector = Web3.keccak(text=f"{entry['name']}({','.join(types)})")[:4].hex()
            if data.removeprefix("0x").startswith(selector.removeprefix("0x")):
                content = bytes.fromhex(data.removeprefix("0x"))[4:]
                values = Web3().codec.decode(types, content)
                return f"the contract refused: {entry['name']}({', '.join(str(v) for v in values)})"
    return f"the contract refused: {error.message or data or 'no reason given'}"


def _rpc_message(error: web3_errors.Web3RPCError) -> str:
    response = error.rpc_response or {}
    details = response.get("error")
    return str(details["message"]) if isinstance(details, dict) and "message" in details else str(error)


def _raise_for(rpc: str, message: str, error: Exception) -> None:
    lowered = message.lower()
    if "indexing is in progress" in lowered:
        raise _NotYet(message) from error
    if "underpriced" in lowered:
        raise _Underpriced(message) from error
    if "already known" in lowered:
        raise _AlreadySent(message) from error
    if "nonce too low" in lowered:
        raise _NonceUsed(message) from error
    raise ChainError(f"chain at {rpc}: {message}") from error
