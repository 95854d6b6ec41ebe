"""Contracts of earlier versions of this package: their runs can be read and audited, but not continued."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from web3 import Web3

from fl_node.artifacts import cid
from fl_node.chain.contract import GLOBAL_WEIGHT_SET, ROUND_CLOSED, Contract, LogEntry, State, Terms
from fl_node.errors import ChainError, ChainUnreachable, ContractError
from fl_node.runtime import recursion

recursion.restore()


@dataclass(frozen=True)
class EarlierContract:
    """An earlier version of the contract.

    ``creation_size`` and ``creation_digest`` are the length in bytes and the SHA-256 digest of its creation code,
    ``replaced`` is the day when the next version took its place. ``gaps`` says what it allows and today's does not.
    """

    replaced: str
    creation_size: int
    creation_digest: str
    gaps: tuple[str, ...] = ()


_HEADER_CLOSES = (
    "its header decided when a round closed and which local weights it used, and learners could not reject them"
)
_COUNTS_TWICE = "in an asynchronous run it counts a learner twice that publishes again after a withdrawal"
_REGISTERS_ANYBODY = (
    "its header could register more accounts than the plan has learners, and outvote the learners with them"
)
EARLIER = (
    EarlierContract(
        "27 November 2026",
        2304,
        "c580b04c884d46453c18c9d49c0e033415393bc52fa0c9625c02fb970494ef71",
        (_HEADER_CLOSES,),
    ),
    EarlierContract(
        "27 November 2026",
        9132,
        "3512d951f638445bdf04505a4aa28a88925ab5394825adb0ffed9c5981550c02",
        (_COUNTS_TWICE, _REGISTERS_ANYBODY),
    ),
    EarlierContract(
        "27 November 2026",
        9163,
        "32d9d12192a57734740dfb36430f400c622dac6b9818790c4573b8d19afbfbf2",
        (_REGISTERS_ANYBODY,),
    ),
    EarlierContract(
        "28 November 2026",
        9170,
        "75dd8e09e87306912d7ece1293fe3ae61443336c4cba8e740af41e8447c46d5b",
        (_REGISTERS_ANYBODY,),
    ),
    EarlierContract("28 November 2026", 9320, "7e37f9621302109fd6d52cce5643b027484f981464c94beff53cf2be3224c0b3"),
    EarlierContract("28 November 2026", 9095, "7b59a64c79d4190a9a1c685af55543fac6df585cdca42d46a8a01bdcee6ad2b6"),
    EarlierContract("28 November 2026", 11314, "64efe1ed5d7119fe30187179fa32d6f482ea6fc9c74ad691024cd9f35045ac80"),
)
"""All of them, oldest first. Whoever changes the contract adds the version that is replaced."""


def version_of(creation: bytes) -> EarlierContract | None:
    """Return the earlier version that a transaction created, or None.

    Parameters
    ----------
    creation
        The input of the transaction: the creation code, followed by the arguments of the constructor.
    """
    for earlier in EARLIER:
        if hashlib.sha256(creation[: earlier.creation_size]).hexdigest() == earlier.creation_digest:
            return earlier
    return None


def reading(contract: Contract) -> Contract:
    """Return a contract by which a run can be read, whichever version deployed it.

    Parameters
    ----------
    contract
        The run's contract.

    Raises
    ------
    ChainUnreachable
        The node can't be reached.
    """
    first = FirstContract(contract.chain, contract.address)
    return first if not _answers(contract.terms) and _answers(first.state) else contract


def _answers(question: Callable[[], object]) -> bool:
    """Return whether a contract answers a question.

    Raises
    ------
    ChainUnreachable
        The node can't be reached.
    """
    try:
        question()
    except ChainUnreachable:
        raise
    except ChainError:
        return False
    return True


class FirstContract(Contract):
    """The first version, which has no terms and does not close rounds: the header published global weights at will.

    It reads as if each round had closed with the weights that ended it.
    """

    closes_rounds = False

    def deployer(self) -> str:
        """Return the address of the account that deployed the contract, which stays its header."""
        return self.header()

    def terms(self) -> Terms:
        """Raise an error, because this version enforces no terms.

        Raises
        ------
        ContractError
            Always.
        """
        raise ContractError(f"contract {self.address} is of the first version, which enforces no terms")

    def state(self) -> State:
        """Return the current state: the round, its global weights and the header."""
        round_, digest, header = self._read_all(("round", []), ("getGlobalWeight", []), ("header", []))
        name = cid.from_digest(digest) if any(digest) else None
        return State(name is not None, int(round_), name, header=Web3.to_checksum_address(header))

    def log(self, first: int = 0) -> list[LogEntry]:
        """Return all events of the contract from block ``first`` on, and the end of each round as its closing."""
        entries: list[LogEntry] = []
        for entry in super().log(first):
            if entry.name == GLOBAL_WEIGHT_SET and entry.round:
                closing = LogEntry(entry.block, entry.index, ROUND_CLOSED, entry.transaction, round=entry.round - 1)
                entries.append(closing)
            entries.append(entry)
        return entries
