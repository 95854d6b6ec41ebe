"""What one node says of the chain, and what its errors mean."""

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
from fl_node.chain.rpc import NodeProvider, Request
from fl_node.errors import ChainError, ChainUnreachable, ContractError
from fl_node.runtime import recursion
from fl_node.runtime.waiting import wait_until

recursion.restore()

REQUEST_TIMEOUT = 10.0
INDEX_PATIENCE = 10.0
"""Seconds in which a node must have indexed its blocks, so that it knows their transactions."""
PACE_BLOCKS = 16
"""Recent blocks from which the pace of a chain is measured."""
PACE_SECONDS = 60.0
"""Seconds after which the pace is measured again."""
_REVERTED = 3
"""The code of the RPC's error when a contract refuses."""
_NO_METHOD = (-32601, -32604)
"""The codes when a node does not have a method, or does not serve it (Besu)."""
_CLIQUE_VANITY, _CLIQUE_SEAL = 32, 65
"""Bytes before and after the sealers' addresses in the extra data of a Clique genesis."""


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


@dataclass(frozen=True)
class Pace:
    """How blocks follow one another.

    ``seconds`` is the shortest time between two recent blocks. It is almost 0 where each transaction is sealed at
    once; elsewhere it is the slot or period. ``is_steady`` says that blocks come without transactions too.
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
    """A transaction is in no block yet, or its node has not indexed it."""


class Underpriced(ChainError):
    """Another transaction with the same number and as high a fee waits."""


class AlreadySent(ChainError):
    """The node has this transaction already."""


class NonceUsed(ChainError):
    """A transaction with this number is in a block."""


class Node:
    """A node's RPC.

    Parameters
    ----------
    rpc
        Its URL.
    timeout
        Seconds in which a request must be answered.
    """

    def __init__(self, rpc: str, timeout: float = REQUEST_TIMEOUT) -> None:
        self.rpc = rpc
        self._chain_id: int | None = None
        self._has_mining = True
        self._pace: tuple[float, Pace] | None = None
        self._provider = NodeProvider(rpc, timeout)
        self.web3 = Web3(self._provider)
        # Clique keeps its signatures in a field that web3 takes for too long.
        self.web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)

    def chain_id(self) -> int:
        """Return the number of the chain; it is asked for once."""
        if self._chain_id is None:
            with self.errors():
                self._chain_id = self.web3.eth.chain_id
        return self._chain_id

    def block_number(self) -> int:
        """Return the height of the chain."""
        return self.quantity(self.ask(("eth_blockNumber", []))[0])

    def head(self) -> Head:
        """Return the newest block.

        Raises
        ------
        ChainError
            The answer is not a block, so the node is not an Ethereum node.
        """
        (block,) = self.ask(("eth_getBlockByNumber", ["latest", False]))
        try:
            return Head(str(block["hash"]), self.quantity(block["number"]), self.quantity(block["timestamp"]))
        except (TypeError, KeyError) as error:
            raise ChainError(f"chain at {self.rpc} returned no latest block; is this an Ethereum node?") from error

    def blocks(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Return the blocks with these numbers as the RPC gives them, by number; those that there are."""
        wanted = list(dict.fromkeys(numbers))
        answers = self.ask(*(("eth_getBlockByNumber", [hex(number), False]) for number in wanted))
        return {number: block for number, block in zip(wanted, answers, strict=True) if isinstance(block, dict)}

    def timestamp(self, block: int) -> int:
        """Return when a block was sealed, in seconds since 1970."""
        with self.errors():
            return int(self.web3.eth.get_block(block)["timestamp"])

    def sealed(self, transactions: Iterable[str]) -> dict[str, Sealed]:
        """Return what the chain keeps of transactions, by their hashes; of one in no block it keeps nothing."""
        names = list(dict.fromkeys(transactions))
        answers: list[Any] = []

        def look() -> bool:
            with contextlib.suppress(NotYet):
                answers[:] = self.ask(*(("eth_getTransactionReceipt", [name]) for name in names))
                return True
            return False

        if not wait_until(look, INDEX_PATIENCE):
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

    def is_ready(self) -> bool:
        """Return whether blocks will take the node's transactions: it seals, or it follows the nodes that do.

        A node of a Clique chain has to seal: a transaction that comes earlier may wait for the next one. Nodes of
        other chains need only be in sync; current clients no longer have ``eth_mining``.
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
        """Whether the chain is one of Clique, by the form of its genesis (EIP-225)."""
        (block,) = self.ask(("eth_getBlockByNumber", ["0x0", False]))
        extra = bytes.fromhex(str((block or {}).get("extraData", "")).removeprefix("0x"))
        sealers, rest = divmod(len(extra) - _CLIQUE_VANITY - _CLIQUE_SEAL, 20)
        return sealers > 0 and rest == 0 and not any(extra[-_CLIQUE_SEAL:])

    def pace(self) -> Pace:
        """Return how blocks follow one another, measured now and then from recent blocks."""
        now = time.monotonic()
        if self._pace is not None and now < self._pace[0]:
            return self._pace[1]
        height = self.block_number()
        numbers = range(max(1, height - PACE_BLOCKS + 1), height + 1)
        if len(numbers) < 2:
            return Pace()
        blocks = [one for one in self.ask(*(("eth_getBlockByNumber", [hex(n), False]) for n in numbers)) if one]
        times = [self.quantity(one["timestamp"]) for one in blocks]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        measured = Pace(max(min(gaps, default=0), 0), any(not one["transactions"] for one in blocks))
        self._pace = now + PACE_SECONDS, measured
        return measured

    def finalized(self) -> int | None:
        """Return the number of the newest final block; None if the chain does not say which blocks are final.

        Only proof of stake does. There a young chain, which has no final block yet, gives 0.

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
        """Return whether the node has transactions that it may not seal now, and that nobody else has sealed."""
        return self.quantity(self.ask(("eth_getBlockTransactionCountByNumber", ["pending"]))[0]) > 0

    def quantity(self, answer: object) -> int:
        """Return a number as the RPC writes it, such as ``0x1b4``.

        Raises
        ------
        ChainError
            The answer is not a number.
        """
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
                _raise_error(self.rpc, answer["error"])
        return [answer.get("result") for answer in answers]

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Translate errors of the connection and the node into a :class:`ChainError` of one line.

        Raises
        ------
        ChainUnreachable
            The node does not answer.
        ChainError
            The node reports an error, or its answer makes no sense; subclasses say which error.
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
            raise ChainError(f"chain at {self.rpc}: {error}") from error


def _raise_error(rpc: str, error: Any) -> NoReturn:
    """Raise the exception that an RPC error stands for.

    Raises
    ------
    ContractError
        The contract reverted the call.
    NoMethod
        The node does not have the method.
    NotYet
        The node is still indexing.
    Underpriced
        Another transaction with the same number pays as much or more.
    AlreadySent
        The node has the transaction already.
    NonceUsed
        A block has a transaction with this number.
    ChainError
        Any other error.
    """
    error = error if isinstance(error, dict) else {"message": error}
    message = str(error.get("message", error))
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
