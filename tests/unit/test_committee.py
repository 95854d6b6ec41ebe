"""Who verifies where not everybody does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_node.artifacts import cid
from fl_node.chain.client import Chain
from fl_node.chain.contract import BlockId
from fl_node.plan.schema import Plan
from fl_node.protocol.committee import Committee, committee_of, draw
from fl_node.protocol.names import learner_name
from fl_node.roles.loop import Waiting
from tests.helpers.accounts import HEADER
from tests.helpers.chain import OPEN
from tests.helpers.network import Network

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
        block = BlockId("0x" + bytes(chain.web3.eth.get_block(receipt.block)["hash"]).hex(), receipt.block)
        assert contract.published_in(round_, cid.to_digest(names[round_])) == block
        found = committee_of(contract, round_, names[round_], range(1, 10), 3)
        assert found == Committee(draw(block.hash, contract.address, round_, range(1, 10), 3), block)
    assert committee_of(contract, 0, names[1], range(1, 10), 3) == Committee()
    assert committee_of(contract, 2, names[2], range(1, 10), 3) == Committee()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    settings = {"verification": "committee", "committee": 2, "header_timeout": 1000}
    network = Network(tmp_path, Plan.model_validate({"name": "drawn", "learners": 5, "rounds": 3, **settings}))
    assert network.let_learners_close_the_round()
    network.step("header")
    try:
        yield network
    finally:
        network.close()


def drawn(network: Network) -> frozenset[int]:
    contract = network.as_node("header")
    return committee_of(contract, 1, str(contract.global_weight_at(1)), range(1, 6), 2).members


def until_it_waits(network: Network, node: str) -> Waiting:
    for _ in range(10):
        if (waiting := network.role(node).step()) is not None and waiting.reason == "attestation":
            return waiting
    raise AssertionError(f"{node} does not wait for the committee")


def is_new(waiting: Waiting) -> bool:
    assert waiting.watch is not None
    return waiting.watch() != waiting.seen


# The clock of these learners stands still, so nothing is drawn again because of the time.
def test_a_learner_that_waits_draws_another_committee_when_the_block_that_drew_it_is_replaced(
    network: Network,
) -> None:
    before = drawn(network)
    node_id = min(set(range(1, 6)) - before)
    waiting = until_it_waits(network, learner_name(node_id))
    assert waiting.learners == tuple(sorted(before))
    assert not is_new(waiting)
    chain = network.as_node(learner_name(node_id)).chain
    for _ in range(50):
        network.lose_blocks(1)
        chain.send_noop()
        network.step("header")
        assert is_new(waiting)
        after = drawn(network)
        if after != before and node_id not in after:
            break
    assert after != before
    assert until_it_waits(network, learner_name(node_id)).learners == tuple(sorted(after))


@pytest.mark.parametrize("of_committee", [True, False])
def test_a_learner_that_waits_notices_that_another_rejects(network: Network, of_committee: bool) -> None:
    others = sorted(set(range(1, 6)) - drawn(network))
    waiting = until_it_waits(network, learner_name(others[0]))
    contract = network.as_node(learner_name(min(drawn(network)) if of_committee else others[1]))
    assert not is_new(waiting)
    contract.reject(1, str(contract.state().global_cid), contract.chain.nonce(), code="sum", evidence=None)
    assert is_new(waiting)


def test_a_learner_that_saw_no_block_with_the_weights_draws_as_soon_as_there_is_one(network: Network) -> None:
    node_id = min(set(range(1, 6)) - drawn(network))
    contract, name = network.as_node(learner_name(node_id)), str(network.as_node("header").global_weight_at(1))
    view = contract.view(contract.chain.address)
    network.lose_blocks(1)
    duty = network.role(learner_name(node_id))._duty  # type: ignore[union-attr]
    assert not duty.is_on(view, node_id, name)
    waiting = duty.wait(view)
    assert waiting is not None
    assert waiting.learners == ()
    assert not is_new(waiting)
    network.step("header")
    assert is_new(waiting)
    assert duty.is_on(contract.view(contract.chain.address), node_id, name) == (node_id in drawn(network))
    assert duty.awaited == ([] if node_id in drawn(network) else sorted(drawn(network)))
