"""Draws the committee of learners that verifies a round's global weights.

The draw follows from the hash of the block that published the weights, so the header does not know the committee
before it publishes. The sealer of that block can try many hashes and so, together with the header, choose the
committee. If fewer learners collude than the committee has members, at least one member is honest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from fl_node.artifacts import cid
from fl_node.chain.contract import BlockId, Contract


@dataclass(frozen=True)
class Committee:
    """The committee of a round; sealers may replace the block that it was drawn by, and then it is another one."""

    members: frozenset[int] = frozenset()
    block: BlockId | None = None
    """The block that published the round's global weights; None if no block shows them, and then nobody is drawn."""


def draw(block: str, contract: str, round_: int, learners: Iterable[int], size: int) -> frozenset[int]:
    """Return the committee of a round.

    Parameters
    ----------
    block
        The hash of the block that published the round's global weights.
    contract
        The address of the run's contract.
    round_
        The round.
    learners
        The registered nodeIds.
    size
        The number of members; fewer if there are fewer learners.
    """
    seed = bytes.fromhex(block.removeprefix("0x")) + bytes.fromhex(contract.removeprefix("0x"))

    def lot(node_id: int) -> bytes:
        return hashlib.sha256(seed + round_.to_bytes(32, "big") + node_id.to_bytes(32, "big")).digest()

    return frozenset(sorted(learners, key=lot)[:size])


def committee_of(contract: Contract, round_: int, name: str, learners: Iterable[int], size: int) -> Committee:
    """Return the committee of a round, read at the newest block.

    Parameters
    ----------
    contract
        The run's contract.
    round_
        The round.
    name
        The CID of its global weights.
    learners, size
        As for :func:`draw`.
    """
    block = contract.published_in(round_, cid.to_digest(name))
    return Committee(draw(block.hash, contract.address, round_, learners, size), block) if block else Committee()
