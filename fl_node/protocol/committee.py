"""Who verifies a round's global weights where not everybody does: learners that the chain draws.

The draw follows from the hash of the block that published the weights, so the header does not know the committee
before it has published. The sealer of that block can choose among as many hashes as it computes: together with the
header it can choose the committee. With fewer colluding learners than a committee has members, an honest one is
always among them.
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
        The nodeIds that are registered.
    size
        The number of members; fewer if there are fewer learners.
    """
    seed = bytes.fromhex(block.removeprefix("0x")) + bytes.fromhex(contract.removeprefix("0x"))

    def lot(node_id: int) -> bytes:
        return hashlib.sha256(seed + round_.to_bytes(32, "big") + node_id.to_bytes(32, "big")).digest()

    return frozenset(sorted(learners, key=lot)[:size])


def committee_of(contract: Contract, round_: int, name: str, learners: Iterable[int], size: int) -> frozenset[int]:
    """Return the committee of a round as the newest block shows it; empty if it does not show these global weights.

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
