"""Clique's sealers: who sealed a block, how votes change the sealers, and who is at work."""

from __future__ import annotations

from typing import Any, cast

import pytest
import rlp
from eth_account import Account
from eth_utils import keccak

from fl_node.chain import clique
from fl_node.chain.clique import Change, replay, sealer_of, sealers
from fl_node.chain.node import Node
from fl_node.errors import ChainError
from tests.helpers.accounts import account

A, B, C, D = sorted((account(name) for name in "abcd"), key=lambda signer: signer.address.lower())
NOBODY = "0x" + "00" * 20


def extra(*accounts: Any) -> str:
    return "0x" + "00" * 32 + "".join(signer.address[2:].lower() for signer in accounts) + "00" * 65


def sealed(number: int, by: Any, about: Any = None, adds: bool = True, names: tuple[Any, ...] = ()) -> dict[str, Any]:
    """A block that somebody sealed, perhaps with a vote on an account; the first block of an epoch names sealers."""
    block = {
        **dict.fromkeys(("parentHash", "sha3Uncles", "stateRoot", "transactionsRoot"), "0x" + "11" * 32),
        **{"receiptsRoot": "0x" + "22" * 32, "logsBloom": "0x" + "00" * 256, "mixHash": "0x" + "00" * 32},
        **{"difficulty": "0x2", "number": hex(number), "gasLimit": "0x1c9c380", "gasUsed": "0x0", "timestamp": "0x5"},
        "miner": about.address.lower() if about else NOBODY,
        "nonce": "0x" + ("ff" if about and adds else "00") * 8,
        "extraData": extra(*names),
        "baseFeePerGas": "0x7",
    }
    order = [*clique._FIELDS, "extraData", "mixHash", "nonce", "baseFeePerGas"]
    values: list[Any] = []
    for name in order:
        if name in (*clique._QUANTITIES, "baseFeePerGas"):
            values.append(int(block[name], 16))
        else:
            content = bytes.fromhex(block[name][2:])
            values.append(content[: -clique.SEAL] if name == "extraData" else content)
    signature = Account.unsafe_sign_hash(keccak(rlp.encode(values)), by.key).signature
    seal = signature[:-1] + bytes([signature[-1] - 27])
    return block | {"extraData": block["extraData"][: -2 * clique.SEAL] + seal.hex()}


class Chain:
    """A chain of these blocks after a genesis that names its sealers."""

    is_clique = True

    def __init__(self, genesis: tuple[Any, ...], *blocks: dict[str, Any]) -> None:
        self._blocks = {0: {"extraData": extra(*genesis)}} | {int(block["number"], 16): block for block in blocks}

    def blocks(self, numbers: Any) -> dict[int, dict[str, Any]]:
        return {number: self._blocks[number] for number in numbers if number in self._blocks}

    def block_number(self) -> int:
        return max(self._blocks)


def after(chain: Chain, first: int = 0) -> tuple[set[str], list[Change]]:
    members, changes = replay(cast(Node, chain), first, chain.block_number())
    return set(members), list(changes)


def addresses(*accounts: Any) -> set[str]:
    return {signer.address for signer in accounts}


def test_the_sealer_of_a_block_follows_from_its_seal() -> None:
    block = sealed(7, B)
    assert sealer_of(block) == B.address
    assert sealer_of(block | {"timestamp": "0x4"}) != B.address


def test_a_block_without_a_seal_is_an_error() -> None:
    with pytest.raises(ChainError, match="block 0x1"):
        sealer_of({"number": "0x1", "extraData": "0x"})


def test_without_votes_the_sealers_are_those_of_the_genesis() -> None:
    assert after(Chain((A, B, C), sealed(1, A), sealed(2, B))) == (addresses(A, B, C), [])


def test_more_than_half_of_the_sealers_add_one() -> None:
    first = sealed(1, A, D)
    assert after(Chain((A, B, C), first)) == (addresses(A, B, C), [])
    assert after(Chain((A, B, C), first, sealed(2, B, D))) == (addresses(A, B, C, D), [Change(2, D.address, True)])


def test_a_vote_counts_once() -> None:
    assert after(Chain((A, B, C), sealed(1, A, D), sealed(2, A, D)))[1] == []


def test_more_than_half_of_the_sealers_remove_one_and_its_votes_are_void() -> None:
    blocks = [sealed(1, C, D), sealed(2, A, C, False), sealed(3, B, C, False), sealed(4, A, D)]
    members, changes = after(Chain((A, B, C), *blocks))
    assert (members, changes) == (addresses(A, B), [Change(3, C.address, False)])


def test_a_vote_can_be_taken_back() -> None:
    blocks = [sealed(1, A, D), sealed(2, A, D, False), sealed(3, B, D)]
    assert after(Chain((A, B, C), *blocks))[1] == []


def test_a_vote_for_what_is_so_already_is_none() -> None:
    blocks = [sealed(1, A, B), sealed(2, C, B), sealed(3, A, D, False), sealed(4, B, D, False)]
    assert after(Chain((A, B, C), *blocks)) == (addresses(A, B, C), [])


def test_only_changes_of_the_blocks_in_question_are_named() -> None:
    chain = Chain((A, B, C), sealed(1, A, D), sealed(2, B, D), sealed(3, A, B, False))
    assert after(chain, 3) == (addresses(A, B, C, D), [])


def test_an_epoch_starts_from_the_sealers_that_its_first_block_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clique, "EPOCH", 4)
    blocks = [sealed(3, A, D), sealed(4, B, names=(A, B, C)), sealed(5, B, D), sealed(6, A, D)]
    # Of the blocks before nothing is read, and the vote that was open at the end of the epoch does not count.
    assert after(Chain((D,), *blocks), 5) == (addresses(A, B, C, D), [Change(6, D.address, True)])
    assert after(Chain((A, B, C), *blocks), 1)[1] == [Change(6, D.address, True)]


def test_who_is_at_work_whose_turn_it_is_and_who_is_missing() -> None:
    state = sealers(cast(Node, Chain((A, B, C), sealed(1, A), sealed(2, B), sealed(3, A))))
    assert state is not None
    assert (state.accounts, state.blocks) == ((A.address, B.address, C.address), 3)
    assert dict(state.sealed) == {A.address: 2, B.address: 1, C.address: 0}
    assert (state.next, state.missing) == (B.address, (C.address,))  # block 4; 4 % 3 is 1
    assert f"missing: {C.address}" in str(state)


def test_a_chain_without_blocks_says_nothing_of_who_is_missing() -> None:
    assert "missing" not in str(sealers(cast(Node, Chain((A, B)))))


def test_other_chains_have_no_sealers(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain((A,))
    monkeypatch.setattr(chain, "is_clique", False)
    assert sealers(cast(Node, chain)) is None
    assert replay(cast(Node, chain), 0, 9) == (frozenset(), ())
