"""Draws the committee of learners that verifies a round's global weights.

The draw follows from the hash of the block that published the weights, so the header does not know the committee
before it publishes. The sealer of that block can try many hashes and so, together with the header, choose the
committee. If fewer learners collude than the committee has members, at least one member is honest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fl_node.artifacts import cid
from fl_node.chain.contract import Contract


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


def committee_of(contract: Contract, round_: int, name: str, learners: Iterable[int], size: int) -> frozenset[int]:
    """Return the committee of a round, read at the newest block; empty if that has other global weights.

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
    return draw(block, contract.address, round_, learners, size) if block else frozenset()
