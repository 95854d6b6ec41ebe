"""How a contract was created: by the constructor of this version, of an earlier one, or of somebody else.

A constructor can leave any state behind the code that everybody knows: votes, registered learners, other terms. The
code and the functions of a contract show little of that. But only one transaction can have created it, because its
address follows from the account and the number of that transaction, and a genuine constructor leaves one state for
its arguments. The transaction is in a block, so a node that has not executed the old blocks has it, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import rlp
from eth_utils.crypto import keccak
from web3 import Web3

from fl_node.chain.abi import artifact
from fl_node.chain.contract import LEARNER_REGISTERED, Contract
from fl_node.chain.earlier import EarlierContract, reading, version_of
from fl_node.errors import ChainError, ChainUnreachable
from fl_node.runtime import recursion

recursion.restore()

FIRST_BLOCKS, MOST_BLOCKS = 4, 128
"""Blocks that are read at once: few at first, since learners are usually registered in the next ones."""
MARGIN = 16
"""Blocks by which sealers may have moved the transaction while it is looked for."""
LOOKS = 2
"""How often it is looked for before a contract is said to have none."""


@dataclass(frozen=True)
class Origin:
    """Where a contract comes from.

    ``earlier`` is the earlier version that was deployed, or None. ``problem`` is the field that is wrong with code or
    deployment, and what is wrong; it is None for this version and for earlier ones.
    """

    problem: tuple[str, str] | None = None
    earlier: EarlierContract | None = None


def origin_of(contract: Contract) -> Origin:
    """Find out where a contract comes from.

    Parameters
    ----------
    contract
        The contract.

    Raises
    ------
    ChainUnreachable
        The node can't be reached.
    ChainError
        The node does not have the old blocks.
    """
    if contract.has_known_code():
        created = _created(contract, contract.deployer())
        if isinstance(created, tuple):
            return Origin(created)
        if created.startswith(bytes.fromhex(artifact()["bytecode"].removeprefix("0x"))):
            return Origin()
        return Origin(("constructor", "it was deployed by another constructor than that of FederatedLearning.sol"))
    unknown = Origin(("contract", "its code differs from FederatedLearning.sol"))
    contract = reading(contract)
    try:
        deployer = contract.deployer()
    except ChainUnreachable:
        raise
    except ChainError:
        return unknown  # it lacks what every version has
    created = _created(contract, deployer)
    earlier = None if isinstance(created, tuple) else version_of(created)
    return unknown if earlier is None else Origin(earlier=earlier)


def problem_of(contract: Contract) -> tuple[str, str] | None:
    """Return the field that keeps roles from working with a contract, and what is wrong; None if nothing is.

    Parameters
    ----------
    contract
        The contract.

    Raises
    ------
    ChainError
        The node can't be reached, or does not have the old blocks.
    """
    origin = origin_of(contract)
    if origin.earlier is not None:
        replaced = f"it is of an earlier version, replaced on {origin.earlier.replaced}"
        return "contract", f"{replaced}; this version can audit and read its runs, but not continue them"
    return origin.problem


def _created(contract: Contract, deployer: str) -> bytes | tuple[str, str]:
    """Return the input of the transaction that created a contract, or the field that is wrong and what is wrong."""
    number = _number_of(contract, deployer)
    if number is None:
        return "deployer", f"no transaction of {deployer} creates a contract at this address"
    for _ in range(LOOKS):
        transaction = _find(contract, deployer, number)
        if transaction is not None:
            # A contract that the genesis has already was created by no transaction.
            if transaction.get("to") or not _has_succeeded(contract, transaction):
                return "deployment", f"transaction {number} of {deployer} did not create it"
            return bytes.fromhex(str(transaction["input"]).removeprefix("0x"))
    return "deployment", f"no block has transaction {number} of {deployer}, which should have created it"


def _has_succeeded(contract: Contract, transaction: dict[str, Any]) -> bool:
    """Return whether a transaction created a contract at this address.

    Raises
    ------
    ChainError
        The node can't be reached, or has no receipt of the transaction.
    """
    chain = contract.chain
    (receipt,) = chain.ask(("eth_getTransactionReceipt", [transaction["hash"]]))
    if not isinstance(receipt, dict):
        raise ChainError(f"chain at {chain.rpc}: the node has no receipt of transaction {transaction['hash']}")
    created = str(receipt.get("contractAddress") or "")
    return chain.quantity(receipt.get("status")) == 1 and created.lower() == contract.address.lower()


def _number_of(contract: Contract, deployer: str) -> int | None:
    """Return the number of the deployer's transaction from which the contract's address follows, or None."""
    sender = bytes.fromhex(deployer.removeprefix("0x"))
    (count,) = contract.chain.ask(("eth_getTransactionCount", [deployer, "latest"]))
    for number in reversed(range(contract.chain.quantity(count))):
        if Web3.to_checksum_address(keccak(rlp.encode([sender, number]))[12:]) == contract.address:
            return number
    return None


def _find(contract: Contract, deployer: str, number: int) -> dict[str, Any] | None:
    """Return the deployer's transaction of this number, or None; the search goes back from the first registration.

    Raises
    ------
    ChainError
        The node can't be reached, or does not have the old blocks.
    """
    chain, count = contract.chain, FIRST_BLOCKS
    height = chain.block_number()
    first = contract.first_block_of(LEARNER_REGISTERED)
    last = height if first is None else min(height, first + MARGIN)
    while last >= 0:
        numbers = range(last, max(last - count, -1), -1)
        blocks = chain.blocks(numbers, full=True)
        if missing := [each for each in numbers if each not in blocks]:
            raise ChainError(f"chain at {chain.rpc}: the node does not have block {missing[0]}; is it still syncing?")
        for block in blocks.values():
            for one in block["transactions"]:
                if (Web3.to_checksum_address(one["from"]), chain.quantity(one["nonce"])) == (deployer, number):
                    return dict(one)
        last, count = last - count, min(2 * count, MOST_BLOCKS)
    return None
