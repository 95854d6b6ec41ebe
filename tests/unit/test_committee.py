"""Who verifies where not everybody does."""

from __future__ import annotations

from collections import Counter

from fl_node.artifacts import cid
from fl_node.chain.client import Chain
from fl_node.protocol.committee import committee_of, draw
from tests.helpers.accounts import HEADER
from tests.helpers.chain import OPEN

BLOCK, CONTRACT = "0x" + "ab" * 32, "0x" + "Cd" * 20


def test_a_committee_is_the_same_for_everybody_whatever_the_order_of_learners() -> None:
    committee = draw(BLOCK, CONTRACT, 3, range(1, 21), 5)
    assert len(committee) == 5
    assert committee <= set(range(1, 21))
    assert draw(BLOCK, CONTRACT.lower(), 3, range(20, 0, -1), 5) == committee
    # The least of three SHA-256 hashes: nobody may change the draw, or nodes of two versions would disagree.
    assert sorted(draw(BLOCK, CONTRACT, 0, range(1, 4), 1)) == [2]


def test_another_block_contract_or_round_draws_another_committee() -> None:
    committees = [
        draw(block, contract, round_, range(1, 101), 10)
        for block in (BLOCK, "0x" + "ac" * 32)
        for contract in (CONTRACT, "0x" + "ce" * 20)
        for round_ in (0, 1)
    ]
    assert len(set(committees)) == len(committees)


def test_all_learners_are_drawn_equally_often() -> None:
    drawn = Counter(n for round_ in range(2000) for n in draw(BLOCK, CONTRACT, round_, range(1, 11), 3))
    # 600 times each; six standard deviations of a binomial distribution are 123.
    assert all(abs(drawn[node_id] - 600) < 123 for node_id in range(1, 11))


def test_of_fewer_learners_all_are_in_the_committee() -> None:
    assert draw(BLOCK, CONTRACT, 0, [2, 7], 5) == {2, 7}


def test_a_committee_follows_from_the_block_of_the_weights_that_stand(rpc: str) -> None:
    chain, names = Chain(rpc, HEADER), [cid.of_bytes(bytes([n])) for n in range(3)]
    contract = chain.contract(str(chain.deploy(cid.of_bytes(b"plan"), OPEN).contract))
    receipts = [contract.set_global_weight(name, chain.nonce()) for name in names[:2]]
    for round_, receipt in enumerate(receipts):
        assert receipt is not None
        block = "0x" + bytes(chain.web3.eth.get_block(receipt.block)["hash"]).hex()
        assert contract.published_in(round_, cid.to_digest(names[round_])) == block
        found = committee_of(contract, round_, names[round_], range(1, 10), 3)
        assert found == draw(block, contract.address, round_, range(1, 10), 3)
    assert committee_of(contract, 0, names[1], range(1, 10), 3) == frozenset()
    assert committee_of(contract, 2, names[2], range(1, 10), 3) == frozenset()
