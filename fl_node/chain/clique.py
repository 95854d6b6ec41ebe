"""Clique (EIP-225): who may seal blocks, who sealed a block, and how votes changed the sealers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import rlp
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError
from web3 import Web3

from fl_node.chain.node import Node
from fl_node.errors import ChainError
from fl_node.runtime import recursion

recursion.restore()

VANITY, SEAL = 32, 65
"""Bytes before and after the sealers' addresses in a block's extra data."""
EPOCH = 30_000
"""Number of blocks after which a block lists all sealers and discards open votes; Clique's default."""
RECENT = 30
"""Number of newest blocks from which active sealers are determined."""
NOT_CLIQUE = "not Clique"
_AUTHORIZE, _DROP = "0xffffffffffffffff", "0x0000000000000000"
_ZERO_ADDRESS = "0x" + "00" * 20
_FIELDS = (
    *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"),
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp"),
)
_QUANTITIES = ("difficulty", "number", "gasLimit", "gasUsed", "timestamp")


@dataclass(frozen=True)
class Change:
    """A change of the sealers: the block whose vote decided it, and whether the account was added or removed."""

    block: int
    account: str
    added: bool


@dataclass(frozen=True)
class Sealers:
    """The sealers of a Clique chain and their share of recent blocks.

    ``accounts`` are in the order of their turns, ``sealed`` has the number of blocks that each of them sealed among
    the last ``blocks`` blocks, and ``next`` is the account whose turn the next block is.
    """

    accounts: tuple[str, ...]
    sealed: Mapping[str, int]
    blocks: int
    next: str

    @property
    def missing(self) -> tuple[str, ...]:
        """The sealers that sealed none of the recent blocks."""
        return tuple(account for account in self.accounts if not self.sealed.get(account))

    def __str__(self) -> str:
        shares = ", ".join(f"{account} {self.sealed.get(account, 0)}" for account in self.accounts)
        text = f"{len(self.accounts)} sealers; of the last {self.blocks} blocks sealed {shares}; next: {self.next}"
        return f"{text}; missing: {', '.join(self.missing)}" if self.missing and self.blocks else text


def sealer_of(block: Mapping[str, Any]) -> str:
    """Return the address of the account that sealed a block.

    Parameters
    ----------
    block
        The block, as the RPC returns it.

    Raises
    ------
    ChainError
        The block has no Clique signature.
    """
    try:
        extra = _bytes(block["extraData"])
        fields: list[int | bytes] = [
            int(block[name], 16) if name in _QUANTITIES else _bytes(block[name]) for name in _FIELDS
        ]
        fields += [extra[:-SEAL], _bytes(block["mixHash"]), _bytes(block["nonce"])]
        if "baseFeePerGas" in block:
            fields.append(int(block["baseFeePerGas"], 16))
        signature = Signature(extra[-SEAL:])
        key = signature.recover_public_key_from_msg_hash(keccak(rlp.encode(fields)))
        return key.to_checksum_address()
    except (KeyError, TypeError, ValueError, BadSignature, ValidationError) as error:
        raise ChainError(f"block {block.get('number')} has no Clique signature") from error


def sealers(chain: Node) -> Sealers | None:
    """Return the sealers of a chain and their share of recent blocks; None if the chain does not use Clique.

    Raises
    ------
    ChainError
        The chain can't be read.
    """
    if not chain.is_clique:
        return None
    height = chain.block_number()
    members, _ = replay(chain, height, height)
    recent = chain.blocks(range(max(1, height - RECENT + 1), height + 1))
    counts = Counter(sealer_of(block) for block in recent.values())
    order = tuple(sorted(members, key=str.lower))
    return Sealers(
        order, {account: counts[account] for account in order}, len(recent), order[(height + 1) % len(order)]
    )


def replay(chain: Node, first: int, last: int) -> tuple[frozenset[str], tuple[Change, ...]]:
    """Return the sealers after block ``last`` and their changes since block ``first``, from the votes in the blocks.

    Both are empty if the chain does not use Clique.

    Parameters
    ----------
    chain
        A node of the chain.
    first, last
        The numbers of the first and last block.

    Raises
    ------
    ChainError
        The chain can't be read.
    """
    if not chain.is_clique:
        return frozenset(), ()
    start = first - first % EPOCH
    named = _named(chain.blocks([start]).get(start, {}))
    if not named:  # the chain has a different epoch length
        start, named = 0, _named(chain.blocks([0]).get(0, {}))
    members, votes, changed = set(named), dict[tuple[str, str], bool](), list[Change]()
    for number, block in _after(chain, start, last):
        if named := _named(block):
            members, votes = set(named), {}
            continue
        if (account := block.get("miner", _ZERO_ADDRESS)) == _ZERO_ADDRESS:
            continue
        account, adds = Web3.to_checksum_address(account), block.get("nonce") == _AUTHORIZE
        voter = sealer_of(block)
        votes.pop((voter, account), None)
        if adds == (account in members):
            continue  # nothing to change
        votes[voter, account] = adds
        if 2 * sum(about == account for _, about in votes) <= len(members):
            continue
        (members.add if adds else members.discard)(account)
        # This decides the votes on the account and voids the votes of a removed sealer.
        votes = {key: vote for key, vote in votes.items() if key[1] != account and key[0] in members}
        if number >= first:
            changed.append(Change(number, account, adds))
    return frozenset(members), tuple(changed)


def _after(chain: Node, start: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for begin in range(start + 1, last + 1, 500):
        yield from chain.blocks(range(begin, min(begin + 500, last + 1))).items()


def _named(block: Mapping[str, Any]) -> list[str]:
    """Return the sealers that a block lists; only the genesis and the first block of an epoch list any."""
    accounts = _bytes(block.get("extraData", "0x"))[VANITY:-SEAL]
    return [Web3.to_checksum_address(accounts[i : i + 20]) for i in range(0, len(accounts) - 19, 20)]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))
