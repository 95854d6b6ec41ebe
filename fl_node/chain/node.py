"""The RPC of a node: its view of the chain, and the exceptions for its errors."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import urllib3
from web3 import Web3
from web3 import exceptions as web3_errors
from web3.middleware import ExtraDataToPOAMiddleware

from fl_node.chain.abi import custom_error
from fl_node.chain.answers import QUANTITY
from fl_node.chain.news import News
from fl_node.chain.rpc import NodeProvider, Request
from fl_node.errors import ChainError, ChainUnreachable, ContractError
from fl_node.runtime import recursion
from fl_node.runtime.terminal import visible
from fl_node.runtime.waiting import wait_until

recursion.restore()

REQUEST_TIMEOUT = 10.0
INDEX_PATIENCE = 10.0
"""Seconds to wait for a node to index its blocks, so that it knows their transactions."""
PACE_BLOCKS = 16
"""Number of recent blocks from which the pace of a chain is measured."""
PACE_SECONDS = 60.0
"""Seconds after which the pace is measured again."""
LATEST: Request = ("eth_getBlockByNumber", ["latest", False])
"""Asks for the newest block."""
_MOST_SHOWN = 300
"""Characters of a node's own text that an error message shows."""
_REVERTED = 3
"""RPC error code: the contract reverted the call."""
_NO_METHOD = (-32601, -32604)
"""RPC error codes: the node does not have the method, or does not serve it (Besu)."""
_CLIQUE_VANITY, _CLIQUE_SEAL = 32, 65
"""Bytes before and after the sealers' addresses in the extra data of a Clique genesis."""


@dataclass(frozen=True)
class Sealed:
    """A transaction in a block.

    ``receiver`` is None if the transaction deployed a contract; ``gas`` is the gas used; ``time`` is the block's, in
    seconds since 1970 by its sealer's clock.
    """

    sender: str
    receiver: str | None
    gas: int
    time: int


@dataclass(frozen=True)
class Pace:
    """The pace at which a chain creates blocks.

    ``seconds`` is the shortest time between two recent blocks. It is almost 0 if each transaction is sealed at once;
    otherwise it is the slot or period. ``is_steady`` says that the chain creates blocks without transactions too.
    """

    seconds: float = 0.0
    is_steady: bool = False


@dataclass(frozen=True)
class Head:
    """The newest block: its hash, its number, and its time in seconds since 1970, by its sealer's clock."""

    hash: str
    number: int
    time: int


class NoMethod(ChainError):
    """The node does not have this method."""


class NotYet(ChainError):
    """The node has not indexed the transaction yet."""


class Underpriced(ChainError):
    """A pending transaction has the same nonce and pays as much or more."""


class AlreadySent(ChainError):
    """The node already has this transaction."""


class NonceUsed(ChainError):
    """A block contains a transaction with this nonce."""


class Node:
    """A node's RPC.

    Parameters
    ----------
    rpc
        Its URL.
    timeout
        Seconds to wait for the answer to a request.
    """

    def __init__(self, rpc: str, timeout: float = REQUEST_TIMEOUT) -> None:
        self.rpc = rpc
        self._chain_id: int | None = None
        self._has_mining = True
        self._pace: tuple[float, Pace] | None = None
        self.news: News | None = None
        """What the node reports by itself, if somebody listens."""
        self.seen: Head | None = None
        """The newest block when it was last asked for; another may have come since, or taken its place."""
        self._provider = NodeProvider(rpc, timeout)
        self.web3 = Web3(self._provider)
        # Clique signs in the extra data, which web3 would refuse as too long.
        self.web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)

    def chain_id(self) -> int:
        """Return the chain id; only the first call asks the node."""
        if self._chain_id is None:
            self._chain_id = self.quantity(self.ask(("eth_chainId", []))[0])
        return self._chain_id

    def block_number(self) -> int:
        """Return the height of the chain."""
        return self.quantity(self.ask(("eth_blockNumber", []))[0])

    def newest(self) -> object:
        """Return what differs from before whenever there is a new block; nothing is asked while the node reports."""
        if self.news is not None and self.news.is_alive:
            return "reported", self.news.mark().blocks
        return self.head().number

    def likely_head(self) -> str | None:
        """Return the hash of the block that is probably the newest, without a request; None if none is known."""
        if self.news is not None and self.news.is_alive and self.news.newest is not None:
            return self.news.newest
        return self.seen.hash if self.seen is not None else None

    def head(self) -> Head:
        """Return the newest block.

        Raises
        ------
        ChainError
            The answer is not a block; the server may not be an Ethereum node.
        """
        return self.head_of(*self.ask(LATEST))

    def head_of(self, block: Any) -> Head:
        """Return the newest block from the answer to :data:`LATEST`.

        Raises
        ------
        ChainError
            The answer is not a block; the server may not be an Ethereum node.
        """
        try:
            seen = Head(str(block["hash"]), self.quantity(block["number"]), self.quantity(block["timestamp"]))
        except (TypeError, KeyError) as error:
            raise ChainError(f"chain at {self.rpc} returned no latest block; is this an Ethereum node?") from error
        self.seen = seen
        return seen

    def blocks(self, numbers: Iterable[int], *, full: bool = False) -> dict[int, dict[str, Any]]:
        """Return the existing blocks among these numbers, by number, as the RPC returns them.

        Parameters
        ----------
        numbers
            Their numbers.
        full
            Whether their transactions come whole, and not as hashes alone.

        Raises
        ------
        ChainError
            A block comes without its transactions.
        """
        requested = list(dict.fromkeys(numbers))
        answers = self.ask(*(("eth_getBlockByNumber", [hex(number), full]) for number in requested))
        found = {number: block for number, block in zip(requested, answers, strict=True) if isinstance(block, dict)}
        kind = dict if full else str
        for number, block in found.items():
            transactions = block.get("transactions")
            if not isinstance(transactions, list) or not all(isinstance(one, kind) for one in transactions):
                raise ChainError(f"chain at {self.rpc} returned block {number} without its transactions")
        return found

    def timestamp(self, block: int) -> int:
        """Return the time of a block, in seconds since 1970."""
        with self.errors():
            return int(self.web3.eth.get_block(block)["timestamp"])

    def sealed(self, transactions: Iterable[str]) -> dict[str, Sealed]:
        """Return transactions by their hashes, without those that are in no block.

        The result is empty if the node does not index its blocks in time.
        """
        hashes = list(dict.fromkeys(transactions))
        answers: list[Any] = []

        def is_indexed() -> bool:
            with contextlib.suppress(NotYet):
                answers[:] = self.ask(*(("eth_getTransactionReceipt", [hash_]) for hash_ in hashes))
                return True
            return False

        if not wait_until(is_indexed, INDEX_PATIENCE):
            return {}
        receipts = {hash_: receipt for hash_, receipt in zip(hashes, answers, strict=True) if receipt}
        blocks_of = {hash_: hex(self.quantity(receipt.get("blockNumber"))) for hash_, receipt in receipts.items()}
        numbers = list(dict.fromkeys(blocks_of.values()))
        blocks = self.ask(*(("eth_getBlockByNumber", [number, False]) for number in numbers))
        times = {
            number: self.quantity(block["timestamp"]) for number, block in zip(numbers, blocks, strict=True) if block
        }
        return {
            hash_: Sealed(
                Web3.to_checksum_address(receipt["from"]),
                Web3.to_checksum_address(receipt["to"]) if receipt.get("to") else None,
                self.quantity(receipt.get("gasUsed")),
                times[blocks_of[hash_]],
            )
            for hash_, receipt in receipts.items()
            if blocks_of[hash_] in times
        }

    def genesis(self) -> str:
        """Return the hash of block 0."""
        with self.errors():
            return "0x" + bytes(self.web3.eth.get_block(0)["hash"]).hex()

    def balance(self, address: str) -> int:
        """Return the balance of an account in wei."""
        return self.quantity(self.ask(("eth_getBalance", [address, "latest"]))[0])

    def client(self) -> str:
        """Return the name and version of the node's client, such as ``Geth/v1.13.15-…``.

        Raises
        ------
        ChainError
            The answer is not a text.
        """
        (name,) = self.ask(("web3_clientVersion", []))
        if not isinstance(name, str):
            raise ChainError(f"chain at {self.rpc}: {_one_line(repr(name))} is not the name of a client")
        return _one_line(name)

    def peers(self) -> int:
        """Return the number of the node's peers."""
        return self.quantity(self.ask(("net_peerCount", []))[0])

    def is_ready(self) -> bool:
        """Return whether blocks will include the node's transactions: it seals blocks, or is in sync with sealers.

        A node of a Clique chain must seal: an earlier transaction may not be sealed before the next one arrives.
        Nodes of other chains need only be in sync; current clients no longer have ``eth_mining``.
        """
        if self._has_mining:
            try:
                if self.ask(("eth_mining", []))[0] is True:
                    return True
                if self.is_clique:
                    return False
            except NoMethod:
                self._has_mining = False
        return self.ask(("eth_syncing", []))[0] is False

    @functools.cached_property
    def is_clique(self) -> bool:
        """Whether the chain uses Clique, by the format of its genesis (EIP-225)."""
        (block,) = self.ask(("eth_getBlockByNumber", ["0x0", False]))
        extra = bytes.fromhex(str((block or {}).get("extraData") or "0x").removeprefix("0x"))
        sealers, remainder = divmod(len(extra) - _CLIQUE_VANITY - _CLIQUE_SEAL, 20)
        return sealers > 0 and remainder == 0 and not any(extra[-_CLIQUE_SEAL:])

    def pace(self) -> Pace:
        """Return the pace of the chain, measured from recent blocks every :data:`PACE_SECONDS`."""
        now = time.monotonic()
        if self._pace is not None and now < self._pace[0]:
            return self._pace[1]
        height = self.block_number()
        numbers = range(max(1, height - PACE_BLOCKS + 1), height + 1)
        if len(numbers) < 2:
            return Pace()
        blocks = list(self.blocks(numbers).values())
        times = [self.quantity(block["timestamp"]) for block in blocks]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        measured = Pace(max(min(gaps, default=0), 0), any(not block["transactions"] for block in blocks))
        self._pace = now + PACE_SECONDS, measured
        return measured

    def finalized(self) -> int | None:
        """Return the number of the newest final block; None if the chain does not say which blocks are final.

        Only proof-of-stake chains do. A young one, which has no final block yet, gives 0.

        Raises
        ------
        ChainUnreachable
            The node does not answer.
        """
        try:
            (block,) = self.ask(("eth_getBlockByNumber", ["finalized", False]))
        except ChainUnreachable:
            raise
        except ChainError:
            block = None
        if block:
            return self.quantity(block.get("number"))
        (head,) = self.ask(("eth_getBlockByNumber", ["latest", False]))
        return 0 if head and self.quantity(head.get("difficulty", "0x0")) == 0 else None

    def holds_back(self) -> bool:
        """Return whether the node has pending transactions that it may not seal now and no other node has sealed."""
        return self.quantity(self.ask(("eth_getBlockTransactionCountByNumber", ["pending"]))[0]) > 0

    def quantity(self, answer: object) -> int:
        """Return the number that the RPC encoded, such as ``0x1b4``.

        Raises
        ------
        ChainError
            The answer is not a number.
        """
        if not isinstance(answer, str) or not QUANTITY.fullmatch(answer):
            shown = _one_line(repr(answer))
            raise ChainError(f"chain at {self.rpc}: {shown} is not a number such as 0x1b4; is this an Ethereum node?")
        return int(answer, 16)

    def ask(self, *requests: Request) -> list[Any]:
        """Make requests to the node's RPC and return their results.

        This bypasses web3, which is slow; roles make requests all the time. Rare requests use web3.
        """
        with self.errors():
            answers = self._provider.batch(requests)
        for answer in answers:
            if "error" in answer:
                _raise_error(self.rpc, answer["error"])
        return [answer.get("result") for answer in answers]

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Translate errors of the connection and the node into a :class:`ChainError` with a message of one line.

        Raises
        ------
        ChainUnreachable
            The node does not answer.
        ChainError
            The node reports an error (subclasses say which) or returns an invalid answer.
        """
        try:
            yield
        except web3_errors.Web3RPCError as error:
            _raise_error(self.rpc, (error.rpc_response or {}).get("error") or str(error))
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.TimeoutError,
            urllib3.exceptions.ProtocolError,
        ) as error:
            raise ChainUnreachable(f"chain at {self.rpc} can't be reached; is the node running?") from error
        except (urllib3.exceptions.HTTPError, web3_errors.Web3Exception, ValueError) as error:
            raise ChainError(f"chain at {self.rpc}: {_one_line(str(error))}") from error


def _one_line(text: str) -> str:
    """Return what a node said, which may be anything, as a part of a message of one line."""
    shown = visible(text[:_MOST_SHOWN], lines=False)
    return shown if len(text) <= _MOST_SHOWN else f"{shown} …"


def _raise_error(rpc: str, error: Any) -> NoReturn:
    """Raise the exception for an RPC error.

    Raises
    ------
    ContractError
        The contract reverted the call.
    NoMethod
        The node does not have the method.
    NotYet
        The node is still indexing.
    Underpriced
        A pending transaction has the same nonce and pays as much or more.
    AlreadySent
        The node already has the transaction.
    NonceUsed
        A block contains a transaction with this nonce.
    ChainError
        Any other error.
    """
    error = error if isinstance(error, dict) else {"message": error}
    message = _one_line(str(error.get("message", error)))
    lowered = message.lower()
    if error.get("code") == _REVERTED or lowered.startswith("execution reverted"):
        raise ContractError(*custom_error(message, error.get("data")))
    if error.get("code") in _NO_METHOD:
        raise NoMethod(f"chain at {rpc}: {message}")
    if "indexing is in progress" in lowered:
        raise NotYet(message)
    if "underpriced" in lowered:
        raise Underpriced(message)
    if "already known" in lowered:
        raise AlreadySent(message)
    if "nonce too low" in lowered:
        raise NonceUsed(message)
    raise ChainError(f"chain at {rpc}: {message}")
