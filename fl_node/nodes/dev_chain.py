"""A small Ethereum chain in one Python process, for demonstrations and tests: py-evm behind JSON-RPC.

It seals a block for each transaction, as Clique with period 0 does, speaks the part of Ethereum's JSON-RPC that
``fl-node`` uses (https://ethereum.github.io/execution-apis/), and listens on loopback alone. Blocks are kept in a
file, one a line, so that a chain that was stopped or killed goes on where it was.

It answers programs on this machine, not web pages: a request with a foreign ``Host`` (DNS rebinding), with an
``Origin``, or with another type than JSON is refused. Gas, processor time, batches, answers, connections and the
time that a request may take to arrive are bounded. There are no precompiled contracts for large numbers and curves
(addresses 5 to 9): their gas says little about the time that they take in Python.

    python -m fl_node.nodes.dev_chain --blocks FILE --accounts 0x…,0x… [--port N]

prints its URL once it answers.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic, thread_time
from typing import Any, ClassVar

import rlp
from eth.abc import BlockAPI, MessageAPI, ReceiptAPI, StateAPI, TransactionContextAPI
from eth.chains.base import MiningChain
from eth.consensus import ConsensusApplier, NoProofConsensus
from eth.constants import ZERO_ADDRESS, ZERO_HASH32
from eth.db.atomic import AtomicDB
from eth.exceptions import HeaderNotFound, InsufficientFunds, PyEVMError, Revert, VMError
from eth.vm.forks.london import LondonVM
from eth.vm.forks.london.computation import LondonComputation
from eth.vm.forks.london.state import LondonState
from eth.vm.spoof import SpoofTransaction
from eth_keys.exceptions import BadSignature
from eth_utils import ValidationError, decode_hex, encode_hex, keccak, to_checksum_address
from eth_utils.exceptions import ValidationError as EthValidationError

from fl_node.errors import JsonError
from fl_node.nodes import CHAIN_ID
from fl_node.runtime import files, recursion, strict_json

recursion.restore()

GAS_LIMIT = 30_000_000
BALANCE = 10**24
GENESIS_TIME = 1_700_000_000
MAX_REQUEST_BYTES = 4 * 1024**2

MAX_GAS = 4_000_000
"""Gas of one transaction or call; the contract's deployment takes less than 3,000,000."""
MAX_SECONDS = 5.0
"""Processor time of one request, a batch as well."""
MAX_BATCH = 1000
MAX_ANSWER_BYTES = 25 * 1000**2
"""Of one request, a batch as well. These two are Geth's."""
CONNECTIONS = 512
PATIENCE = 10.0
"""Seconds in which a request must have arrived after its first byte, and an answer must be taken."""
IDLE = 120.0
"""Seconds that a connection stays open without a request."""

MAX_KEPT = 1000
"""Answers to ``eth_call`` that are kept: roles ask the same of a block again and again."""
MAX_KEPT_BYTES = 4096
"""Of one such question and its answer."""
MAX_CODES = 16
"""Contracts for which the places that code may jump to are kept."""

LATEST = ("latest", "pending", "safe", "finalized")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class RpcError(Exception):
    """An answer that is an error, with its JSON-RPC code."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message} | ({"data": data} if data is not None else {})


class _Budget(threading.local):
    """The processor time that this thread may use; without end where nobody has set one."""

    end = float("inf")

    @contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        self.end = thread_time() + seconds
        try:
            yield
        finally:
            self.end = float("inf")

    def check(self) -> None:
        if thread_time() > self.end:
            # No VMError: that would make a transaction fail in a block, at another place on each machine.
            raise RpcError(-32002, f"the request takes more than {MAX_SECONDS:g} s of processor time")


_budget = _Budget()


def _refuse(_computation: Any) -> Any:
    raise VMError("this chain has no precompiled contracts for large numbers and curves")


@functools.lru_cache(MAX_CODES)
def _positions(_code: bytes) -> tuple[set[int], set[int]]:
    """Return where py-evm has seen that code may jump, and where not; it adds to both."""
    return set(), set()


class _Computation(LondonComputation):
    _precompiles: ClassVar[dict[Any, Any]] = {
        address: _refuse if int.from_bytes(address, "big") > 4 else function
        for address, function in LondonComputation.get_precompiles().items()
    }

    def __init__(self, state: StateAPI, message: MessageAPI, transaction_context: TransactionContextAPI) -> None:
        super().__init__(state, message, transaction_context)
        _budget.check()
        self._steps = 0
        self.code.valid_positions, self.code.invalid_positions = _positions(message.code)

    def consume_gas(self, amount: int, reason: str) -> None:
        self._steps += 1
        if self._steps % 256 == 0:
            _budget.check()
        self._gas_meter.consume_gas(amount, reason)


class _State(LondonState):
    computation_class = _Computation


class _Vm(LondonVM):
    _state_class = _State


class _Chain(MiningChain):
    chain_id = CHAIN_ID
    vm_configuration = ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, _Vm),))


class _Reading:
    """The state after a block, in which calls change nothing; what a call has read is at hand for the next one."""

    def __init__(self, chain: Any, parent: Any) -> None:
        self.parent = parent.hash
        header = chain.create_header_from_parent(parent)
        vm = chain.get_vm(header)
        self._price = header.base_fee_per_gas
        self._build = vm.get_transaction_builder().create_unsigned_transaction
        with vm.in_costless_state() as state:
            self.state: Any = state

    def call(self, sender: bytes, fields: Mapping[str, Any]) -> Any:
        unsigned = self._build(nonce=self.state.get_nonce(sender), gas_price=self._price, **fields)
        before = self.state.snapshot()
        computation = self.state.costless_execute_transaction(SpoofTransaction(unsigned, from_=sender))
        self.state.revert(before)
        return computation


class EmbeddedChain:
    """A chain with London's rules whose blocks are kept in a file.

    Parameters
    ----------
    blocks
        The file of blocks; made if missing.
    accounts
        Addresses that own 10^6 ether each from the start. They belong to the genesis: another list with an
        existing file is refused.
    behind
        Seconds by which its clock is behind, as that of a sealer who dates blocks back.
    """

    def __init__(self, blocks: Path, accounts: Sequence[str], behind: float = 0.0) -> None:
        self._behind = behind
        funded = {"balance": BALANCE, "nonce": 0, "code": b"", "storage": {}}
        self._chain: Any = _Chain.from_genesis(
            AtomicDB(),
            {
                "coinbase": ZERO_ADDRESS,
                "difficulty": 1,
                "extra_data": b"",
                "gas_limit": GAS_LIMIT,
                "mix_hash": ZERO_HASH32,
                "nonce": b"\0" * 8,
                "receipt_root": decode_hex("56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"),
                "timestamp": GENESIS_TIME,
                "transaction_root": decode_hex("56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"),
            },
            {decode_hex(account): funded for account in accounts},
        )
        self._receipts: dict[str, dict[str, Any]] = {}
        self._answers: dict[tuple[Any, ...], str] = {}
        self._logs: list[dict[str, Any]] = []
        self._reading: _Reading | None = None
        blocks.parent.mkdir(parents=True, exist_ok=True)
        self._restore(blocks)
        self._file = blocks.open("a")
        self._methods: dict[str, Callable[..., Any]] = {
            "eth_blockNumber": lambda: hex(self._head.block_number),
            "eth_call": self._call,
            "eth_chainId": lambda: hex(CHAIN_ID),
            "eth_getBalance": lambda address, at="latest": hex(self._state(at).get_balance(decode_hex(address))),
            "eth_getBlockByNumber": self._block,
            "eth_getBlockReceipts": self._block_receipts,
            "eth_getBlockTransactionCountByNumber": self._count_transactions,
            "eth_getCode": lambda address, at="latest": encode_hex(self._state(at).get_code(decode_hex(address))),
            "eth_getLogs": self._get_logs,
            "eth_getTransactionCount": self._count,
            "eth_getTransactionReceipt": self._receipts.get,
            "eth_maxPriorityFeePerGas": lambda: "0x1",
            "eth_mining": lambda: True,
            "eth_sendRawTransaction": self._send,
            "eth_syncing": lambda: False,
            "net_peerCount": lambda: "0x0",
            "net_version": lambda: str(CHAIN_ID),
            "web3_clientVersion": lambda: "fl-node/embedded",
        }

    def request(self, method: str, params: Sequence[Any]) -> Any:
        """Answer one JSON-RPC request.

        Raises
        ------
        RpcError
            The method does not exist, or its arguments are invalid.
        """
        if method not in self._methods:
            raise RpcError(-32601, f"the method {method[:100]} does not exist")
        try:
            return self._methods[method](*params)
        except (
            *(TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError),
            *(ValidationError, EthValidationError, PyEVMError, rlp.RLPException),
        ) as error:
            raise RpcError(-32602, f"invalid arguments of {method}: {str(error)[:300]}") from error

    @property
    def _head(self) -> Any:
        return self._chain.get_canonical_head()

    def _restore(self, blocks: Path) -> None:
        if not blocks.exists():
            return
        if not blocks.is_file():  # a device might have no end
            raise FileExistsError(errno.EEXIST, files.NO_FILE, str(blocks))
        whole = [line + b"\n" for line in blocks.read_bytes().split(b"\n")[:-1]]
        block_class = self._chain.get_vm_class(self._chain.header).get_block_class()
        for number, line in enumerate(whole, 1):
            try:
                block = rlp.decode(decode_hex(line.strip().decode("ascii")), block_class)
                imported = self._chain.import_block(block, perform_validation=False).imported_block
                if imported.hash != block.hash:
                    raise ValueError("its transactions lead to another state")
            except Exception as error:  # a damaged block may be anything to py-evm
                raise SystemExit(f"{blocks}, line {number}: not the next block of this chain: {error}") from error
            self._index(imported)
        # A process that was killed while it wrote may have left a part of a line; nobody was told of that block.
        if (size := sum(map(len, whole))) < blocks.stat().st_size:
            os.truncate(blocks, size)

    def _send(self, raw: str) -> str:
        try:
            transaction = self._chain.get_vm().get_transaction_builder().decode(decode_hex(raw))
            sender = transaction.sender
        except (rlp.RLPException, EthValidationError, BadSignature) as error:
            raise RpcError(-32602, f"not a transaction: {error}") from error
        name = encode_hex(transaction.hash)
        if name in self._receipts:
            raise RpcError(-32000, "already known")
        if transaction.chain_id != CHAIN_ID:
            raise RpcError(-32000, f"invalid chain id for signer: have {transaction.chain_id} want {CHAIN_ID}")
        if transaction.gas > MAX_GAS:
            raise RpcError(-32000, f"exceeds the gas limit: have {transaction.gas}, at most {MAX_GAS}")
        nonce = self._state("latest").get_nonce(sender)
        if transaction.nonce < nonce:
            raise RpcError(-32000, f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        if transaction.nonce > nonce:
            raise RpcError(-32000, f"nonce too high: next nonce {nonce}, tx nonce {transaction.nonce}")
        now = max(int(time.time() - self._behind), self._head.timestamp + 1)
        self._chain.header = self._chain.create_header_from_parent(self._head, timestamp=now)
        try:
            result, _, _ = self._chain.mine_all([transaction])
        except InsufficientFunds as error:
            raise RpcError(-32000, "insufficient funds for gas * price + value") from error
        except (EthValidationError, VMError) as error:
            raise RpcError(-32000, str(error)) from error
        try:
            self._file.write(encode_hex(rlp.encode(result.imported_block)) + "\n")
            self._file.flush()
        except OSError as error:
            # The block is in memory and not in the file: what is kept counts, from which the chain goes on when it is
            # started again.
            with contextlib.suppress(OSError):  # the log may be on the same disk
                print(f"{self._file.name}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(1)
        self._index(result.imported_block)
        return name

    def _index(self, block: BlockAPI) -> None:
        position = 0
        receipts: Sequence[ReceiptAPI] = block.get_receipts(self._chain.chaindb)
        before = 0
        for index, (transaction, receipt) in enumerate(zip(block.transactions, receipts, strict=True)):
            place = {
                "blockHash": encode_hex(block.hash),
                "blockNumber": hex(block.number),
                "transactionHash": encode_hex(transaction.hash),
                "transactionIndex": hex(index),
            }
            logs = []
            for log in receipt.logs:
                logs.append(
                    place
                    | {
                        "address": to_checksum_address(log.address),
                        "data": encode_hex(log.data),
                        "logIndex": hex(position),
                        "removed": False,
                        "topics": ["0x" + topic.to_bytes(32, "big").hex() for topic in log.topics],
                    }
                )
                position += 1
            created = None
            if not transaction.to:
                created = keccak(rlp.encode([transaction.sender, transaction.nonce]))[12:]
            self._logs += logs
            self._receipts[encode_hex(transaction.hash)] = place | {
                "contractAddress": to_checksum_address(created) if created else None,
                "cumulativeGasUsed": hex(receipt.gas_used),
                "effectiveGasPrice": "0x0",
                "from": to_checksum_address(transaction.sender),
                "gasUsed": hex(receipt.gas_used - before),
                "logs": logs,
                "logsBloom": "0x" + "00" * 256,
                "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
                "to": to_checksum_address(transaction.to) if transaction.to else None,
                "type": "0x2",
            }
            before = receipt.gas_used

    def _header(self, at: str | dict[str, str]) -> Any:
        if isinstance(at, dict):
            try:
                return self._chain.get_block_header_by_hash(decode_hex(at["blockHash"]))
            except HeaderNotFound:
                return None
        if at in LATEST:
            return self._head
        number = 0 if at == "earliest" else int(at, 16)
        return self._chain.get_canonical_block_header_by_number(number) if self._exists(number) else None

    def _exists(self, number: int) -> bool:
        return 0 <= number <= int(self._head.block_number)

    def _known_header(self, at: str | dict[str, str]) -> Any:
        header = self._header(at)
        if header is None:
            raise RpcError(-32000, f"there is no block {str(at)[:100]}")
        return header

    def _state(self, at: str | dict[str, str]) -> Any:
        return self._read(self._known_header(at)).state

    def _read(self, parent: Any) -> _Reading:
        if self._reading is None or self._reading.parent != parent.hash:
            self._reading = _Reading(self._chain, parent)
        return self._reading

    def _count(self, address: str, at: str | dict[str, str] = "latest") -> str:
        return hex(self._state(at).get_nonce(decode_hex(address)))

    def _call(self, request: dict[str, str], at: str | dict[str, str] = "latest", *_: Any) -> str:
        parent = self._known_header(at)
        sender = decode_hex(request.get("from", "0x" + "00" * 20))
        data = decode_hex(request.get("data", request.get("input", "0x")))
        fields = {
            "gas": min(int(request.get("gas", hex(MAX_GAS)), 16), MAX_GAS),
            "to": decode_hex(request["to"]),
            "value": int(request.get("value", "0x0"), 16),
            "data": data,
        }
        asked = (parent.hash, sender, *fields.values())
        answer = self._answers.get(asked)
        if answer is None:
            answer = self._execute(parent, sender, fields)
            if len(self._answers) >= MAX_KEPT:
                self._answers.clear()
            if len(data) + len(answer) <= MAX_KEPT_BYTES:
                self._answers[asked] = answer
        return answer

    def _execute(self, parent: Any, sender: bytes, fields: Mapping[str, Any]) -> str:
        reading = self._read(parent)
        try:
            # Forgotten if the call does not come to its end, such as for want of time.
            self._reading = None
            computation = reading.call(sender, fields)
            self._reading = reading
            computation.raise_if_error()
        except Revert as error:
            raise RpcError(3, "execution reverted", encode_hex(error.args[0] if error.args else b"")) from error
        except (VMError, EthValidationError) as error:
            raise RpcError(-32000, str(error)) from error
        return encode_hex(computation.output)

    def _count_transactions(self, at: str) -> str | None:
        # Each transaction is in a block before its sender hears of it, so none is ever pending.
        block = self._block(at)
        return None if block is None else hex(0 if at == "pending" else len(block["transactions"]))

    def _block_receipts(self, at: str) -> list[dict[str, Any]] | None:
        block = self._block(at)
        return None if block is None else [self._receipts[name] for name in block["transactions"]]

    def _block(self, at: str, full: bool = False) -> dict[str, Any] | None:
        header = self._header(at)
        if header is None:
            return None
        block = self._chain.get_canonical_block_by_number(header.block_number)
        return {
            "baseFeePerGas": hex(header.base_fee_per_gas),
            "difficulty": hex(header.difficulty),
            "extraData": encode_hex(header.extra_data),
            "gasLimit": hex(header.gas_limit),
            "gasUsed": hex(header.gas_used),
            "hash": encode_hex(header.hash),
            "logsBloom": "0x" + "00" * 256,
            "miner": to_checksum_address(header.coinbase),
            "number": hex(header.block_number),
            "parentHash": encode_hex(header.parent_hash),
            "stateRoot": encode_hex(header.state_root),
            "timestamp": hex(header.timestamp),
            "transactions": [
                _shown(transaction) if full else encode_hex(transaction.hash) for transaction in block.transactions
            ],
        }

    def _get_logs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        first = self._number(query.get("fromBlock", "earliest"))
        last = self._number(query.get("toBlock", "latest"))
        given = query.get("address", [])
        addresses = {a.lower() for a in ([given] if isinstance(given, str) else given)}
        return [
            log
            for log in self._logs
            if first <= int(log["blockNumber"], 16) <= last and (not addresses or log["address"].lower() in addresses)
        ]

    def _number(self, at: str) -> int:
        return int(self._head.block_number) if at in LATEST else 0 if at == "earliest" else int(at, 16)


def _shown(transaction: Any) -> dict[str, Any]:
    return {
        "from": to_checksum_address(transaction.sender),
        "gas": hex(transaction.gas),
        "hash": encode_hex(transaction.hash),
        "input": encode_hex(transaction.data),
        "nonce": hex(transaction.nonce),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
    }


class _Incoming(io.RawIOBase):
    """What comes from a socket until a deadline, however slowly."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = monotonic() + PATIENCE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        """Wait for a request, read it and answer it; what comes too late or breaks off ends the connection."""
        try:
            self._incoming.deadline = monotonic() + IDLE
            self.rfile.peek(1)
            self._incoming.deadline = monotonic() + PATIENCE
            super().handle_one_request()
            self.server.note(self.connection, answering=False)
        except OSError:
            self.close_connection = True

    def _refuse(self) -> None:
        self.send_response(405)
        self.send_header("Allow", "POST")
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    do_GET = do_HEAD = do_OPTIONS = do_PUT = do_DELETE = do_PATCH = _refuse  # noqa: N815 - http.server's names

    def do_POST(self) -> None:
        """Answer a JSON-RPC request of a program on this machine."""
        length = self.headers.get("Content-Length", "")
        if self._count("Host") != 1 or not _is_loopback(self.headers["Host"]):
            self.send_error(403, "Use the address 127.0.0.1")
        elif any(name in self.headers for name in ("Origin", "Sec-Fetch-Site")):
            self.send_error(403, "Web pages get no answer")
        elif self.headers.get_content_type() != "application/json" or self._count("Content-Type") != 1:
            self.send_error(415, "The Content-Type should be application/json")
        elif "Transfer-Encoding" in self.headers or not length:
            self.send_error(411)
        elif not (length.isascii() and length.isdecimal()) or self._count("Content-Length") != 1:
            self.send_error(400)
        elif len(length) > 9 or not 0 < int(length) <= MAX_REQUEST_BYTES:
            self.send_error(413)
        else:
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                self.close_connection = True
                return
            self.server.note(self.connection, answering=True)
            self._answer_with(self._answers(body))

    def _count(self, header: str) -> int:
        return len(self.headers.get_all(header, []))

    def _answers(self, body: bytes) -> bytes:
        try:
            requests = strict_json.loads(body, max_text=MAX_REQUEST_BYTES)
        except JsonError:
            requests = None
        with _budget.of(MAX_SECONDS):
            if not isinstance(requests, list):
                return self._answer(requests, MAX_ANSWER_BYTES)
            if len(requests) > MAX_BATCH:
                return _as_bytes(_failure(None, -32600, f"batch too large: at most {MAX_BATCH} requests"))
            left = MAX_ANSWER_BYTES
            answers = []
            for request in requests:
                answers.append(self._answer(request, left))
                left -= len(answers[-1])
            return b"[" + b",".join(answers) + b"]"

    def _answer(self, request: Any, most: int) -> bytes:
        """Return the answer to one request as JSON, which has no more than these bytes unless it is an error."""
        if not isinstance(request, dict):
            return _as_bytes(_failure(None, -32700, "not a JSON-RPC request"))
        name = request.get("id")
        if not isinstance(name, str | int | None) or len(str(name)) > 100:
            return _as_bytes(_failure(None, -32600, "the id should be a number or a short text"))
        try:
            with self.server.lock:
                _budget.check()
                result = self.server.chain.request(str(request["method"]), request.get("params", []))
        except RpcError as error:
            return _as_bytes({"jsonrpc": "2.0", "id": name, "error": error.body})
        except (ValueError, KeyError, AttributeError, TypeError):
            return _as_bytes(_failure(name, -32700, "not a JSON-RPC request"))
        answer = _as_bytes({"jsonrpc": "2.0", "id": name, "result": result})
        if len(answer) > most:
            return _as_bytes(_failure(name, -32003, f"response too large: more than {MAX_ANSWER_BYTES} bytes"))
        return answer

    def _answer_with(self, content: bytes) -> None:
        self.connection.settimeout(PATIENCE)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Log no requests."""


def _is_loopback(host: str) -> bool:
    name, colon, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    return name.lower() in LOOPBACK and (not colon or (port.isascii() and port.isdecimal()))


def _failure(name: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": name, "error": {"code": code, "message": message}}


def _as_bytes(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode()


class _Server(ThreadingHTTPServer):
    """Serves a bounded number of connections; who comes when all are taken replaces who has waited the longest.

    A connection waits that has sent no whole request. One that is being answered is not closed.
    """

    daemon_threads = True
    address_family = socket.AF_INET
    request_queue_size = 1024

    def __init__(self, port: int, chain: EmbeddedChain) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.chain = chain
        self.lock = threading.Lock()
        self._waiting: dict[socket.socket, bool] = {}
        """Open connections, in the order in which they began to wait; false for one that is being answered."""
        self._guard = threading.RLock()

    def note(self, connection: socket.socket, *, answering: bool) -> None:
        """Remember that a connection is being answered, or waits from now on."""
        with self._guard:
            if self._waiting.pop(connection, None) is not None:
                self._waiting[connection] = not answering

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection, in the place of another if there are too many."""
        with self._guard:
            if len(self._waiting) >= CONNECTIONS:
                oldest = next((connection for connection, waits in self._waiting.items() if waits), None)
                if oldest is None:
                    self.shutdown_request(request)
                    return
                del self._waiting[oldest]
                with suppress(OSError):  # its thread closes it
                    oldest.shutdown(socket.SHUT_RDWR)
            self._waiting[request] = True
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._guard:
            self._waiting.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a client that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a chain until SIGTERM or SIGINT.

    Raises
    ------
    SystemExit
        The file of blocks can't be used.
    """
    parser = argparse.ArgumentParser(description="A small Ethereum chain in one process, on loopback.")
    parser.add_argument("--blocks", type=Path, required=True, help="file for blocks")
    parser.add_argument("--accounts", required=True, help="addresses that own ether, separated by commas")
    parser.add_argument("--port", type=int, default=0, help="port; a free one if 0")
    parser.add_argument("--behind", type=float, default=0.0, help="seconds by which the clock is behind")
    options = parser.parse_args(arguments)
    try:
        chain = EmbeddedChain(options.blocks, options.accounts.split(","), options.behind)
    except OSError as error:
        raise SystemExit(f"{error.filename or options.blocks}: {error.strerror}") from error
    server = _Server(options.port, chain)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        os._exit(0)


if __name__ == "__main__":
    main()
