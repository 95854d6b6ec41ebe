"""The registration of learners: few transactions, their gas, and what is registered already."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_node.artifacts import cid
from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import DEPLOY_GAS, Chain
from fl_node.chain.contract import CALL_GAS, MAX_REGISTRATIONS, REGISTRATION_GAS, Contract, Terms
from fl_node.chain.transactions import Receipt
from fl_node.errors import ConfigError, ContractError
from fl_node.plan.schema import Plan
from fl_node.protocol.names import learners_label
from fl_node.roles.deploy import deploy, register
from tests.helpers.accounts import ALICE, BOB, HEADER, account
from tests.helpers.stub import StubTrainer, add

MANY = {number: account(f"one of many {number}").address for number in range(1, 121)}


@pytest.fixture
def contract(rpc: str) -> Contract:
    """A new contract as its header sees it."""
    chain = Chain(rpc, HEADER)
    terms = Terms(learners=200, asynchronous=True)
    return chain.contract(str(chain.deploy(cid.of_bytes(b"plan"), terms).contract))


def test_many_learners_are_registered_in_few_transactions(contract: Contract) -> None:
    before = contract.chain.nonce()
    register(contract, MANY)
    assert contract.accounts_of(list(MANY)) == MANY
    assert contract.learners() == list(MANY)
    assert contract.chain.nonce() - before == 3


def test_what_is_registered_already_is_left_out(contract: Contract) -> None:
    contract.register_learner(2, BOB.address, contract.chain.nonce())
    register(contract, {1: ALICE.address, 2: BOB.address})
    assert contract.accounts_of([1, 2, 3]) == {1: ALICE.address, 2: BOB.address}
    before = contract.chain.nonce()
    register(contract, {1: ALICE.address, 2: BOB.address})
    assert contract.chain.nonce() == before


def test_another_account_of_a_registered_learner_is_refused(contract: Contract) -> None:
    register(contract, {1: ALICE.address})
    with pytest.raises(ContractError, match="AlreadyRegistered"):
        register(contract, {1: BOB.address, 2: ALICE.address})
    assert contract.learners() == [1]


@pytest.mark.parametrize("other", [ALICE.address, HEADER.address, "0x" + "00" * 20], ids=["twice", "header", "zero"])
def test_accounts_that_can_not_be_registered_are_refused_before_the_contract_is_deployed(
    rpc: str, tmp_path: Path, other: str
) -> None:
    chain, store = Chain(rpc, HEADER), FolderStore(tmp_path / "store")
    plan = Plan.model_validate({"name": "test", "rounds": 1, "data": {"name": "digits"}})
    before = chain.nonce()
    with pytest.raises(ConfigError, match=f"--learner 2={other}: "):
        deploy(chain, store, tmp_path / "work", plan, {1: ALICE.address, 2: other}, StubTrainer(plan, {}, add(1.0)))
    assert chain.nonce() == before
    assert not list(tmp_path.iterdir())


def test_the_gas_is_linear_and_within_the_bound(contract: Contract) -> None:
    def gas(first: int, last: int) -> int:
        accounts = {number: MANY[number] for number in range(first, last + 1)}
        receipt = contract.register_learners(accounts, contract.chain.nonce())
        assert isinstance(receipt, Receipt)
        return receipt.gas

    gas(1, 1)
    one, ten, forty = gas(2, 2), gas(3, 12), gas(13, 52)
    each = (ten - one) / 9
    assert abs((forty - ten) / 30 - each) < 500
    assert each < REGISTRATION_GAS
    assert CALL_GAS + MAX_REGISTRATIONS * REGISTRATION_GAS <= DEPLOY_GAS


@pytest.mark.parametrize(
    ("node_ids", "label"),
    [([7], "learner 7"), ([1, 2], "learners 1, 2"), ([5, 3, 4, 9, 1], "learners 1, 3–5, 9")],
)
def test_learners_have_a_short_label(node_ids: list[int], label: str) -> None:
    assert learners_label(node_ids) == label
