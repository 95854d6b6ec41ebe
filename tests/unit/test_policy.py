"""What the owner of a learner accepts."""

from dataclasses import replace

import pytest

from fl_node.artifacts import cid
from fl_node.chain import deployment
from fl_node.chain.client import Chain
from fl_node.errors import ConfigError
from fl_node.protocol.terms import terms_of
from fl_node.roles import policy
from tests.helpers import constructors
from tests.helpers.accounts import ALICE, BOB, HEADER, MALLORY
from tests.helpers.runs import plan


def test_limits_are_names_and_numbers() -> None:
    assert policy.parse(["max_epochs=10", "min_samples=2.5"]) == {"max_epochs": 10.0, "min_samples": 2.5}
    assert policy.parse([]) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_epochs",
        "max_epochs=",
        "max_epochs=x",
        "epochs=3",
        "max_rounds=-1",
        "max_rounds=inf",
        "max_rounds=1e400",
        "max_epsilon=nan",
        "max_rounds=1_0",
        "max_rounds= 3",
        "max_rounds=\u0663",
    ],
)
def test_a_limit_that_is_none_is_named_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ConfigError, match="should be NAME=NUMBER, such as max_epochs=10; names are min_samples"):
        policy.parse([text])


@pytest.mark.parametrize("second", ["max_rounds=3", "max_rounds=4"])
def test_a_limit_that_is_given_twice_is_refused(second: str) -> None:
    with pytest.raises(ConfigError, match=f"--accept {second}: max_rounds"):
        policy.parse(["max_rounds=3", "max_epochs=1", second])


@pytest.mark.parametrize(
    ("limit", "value", "excess"),
    [
        ("min_samples", 51, "50 samples in the smallest shard"),
        ("min_learners", 3, "2 learners"),
        ("max_epochs", 4, "5 epochs per round"),
        ("max_rounds", 1, "2 rounds"),
    ],
)
def test_a_plan_beyond_a_limit_is_refused_and_one_at_the_limit_is_not(limit: str, value: float, excess: str) -> None:
    with pytest.raises(
        ConfigError, match=f"the plan small has {excess}; this learner accepts at (most|least) {value}"
    ):
        policy.check_plan(plan(), {limit: value})
    step = -1 if limit.startswith("min") else 1
    policy.check_plan(plan(), {limit: value + step})


def test_a_contract_of_other_terms_is_refused_with_what_differs(rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    contract = chain.contract(
        str(chain.deploy(cid.of_bytes(b"plan"), replace(terms_of(plan()), learners=3)).contract)
    )
    with pytest.raises(ConfigError, match="has learners = 3; the plan small gives 2"):
        policy.check_contract(contract, plan())


def test_a_contract_is_refused_that_its_own_constructor_did_not_deploy(rpc: str) -> None:
    chain, name = Chain(rpc, HEADER), cid.of_bytes(b"plan")
    runtime = constructors.genuine_code(chain, name, terms_of(plan()))
    other_deployer = runtime.replace(bytes.fromhex(HEADER.address[2:]), bytes.fromhex(BOB.address[2:]))
    for field, code in {
        "constructor": constructors.returning(runtime, constructors.storing(chain)),
        "deployer": constructors.returning(other_deployer, constructors.storing(chain)),
        "contract": constructors.returning(runtime[:-1]),
    }.items():
        contract = chain.contract(constructors.deploy(chain, code))
        with pytest.raises(ConfigError, match=rf"contract {contract.address} is refused \({field}\): "):
            policy.check_contract(contract, plan())


def test_a_contract_is_accepted_however_long_ago_it_was_deployed(rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(cid.of_bytes(b"plan"), terms_of(plan())).contract))
    for _ in range(deployment.FIRST_BLOCKS + 1):
        chain.transfer(BOB.address, 1)
    policy.check_contract(contract, plan())  # nobody is registered: it looks from the newest block on
    contract.register_learner(1, ALICE.address, chain.nonce())
    policy.check_contract(contract, plan())


def test_a_contract_that_is_in_no_block_is_refused(rpc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As one that was in the genesis, with any state that its author liked.
    chain = Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(cid.of_bytes(b"plan"), terms_of(plan())).contract))
    monkeypatch.setattr(deployment, "_find", lambda *_: None)
    with pytest.raises(ConfigError, match=r"refused \(deployment\): no block has transaction \d+ of "):
        policy.check_contract(contract, plan())


def test_another_account_than_the_owner_knows_is_refused_as_soon_as_it_is_registered(rpc: str) -> None:
    chain, expected = Chain(rpc, HEADER), {1: ALICE.address, 2: BOB.address}
    contract = chain.contract(str(chain.deploy(cid.of_bytes(b"plan"), terms_of(plan())).contract))
    assert policy.check_accounts(contract, expected) == expected
    contract.register_learner(1, ALICE.address, chain.nonce())
    assert policy.check_accounts(contract, expected) == {2: BOB.address}
    contract.register_learner(2, MALLORY.address, chain.nonce())
    with pytest.raises(ConfigError, match=f"learner 2 is {MALLORY.address}; should be {BOB.address}"):
        policy.check_accounts(contract, expected)
