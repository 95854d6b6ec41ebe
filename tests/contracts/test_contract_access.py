"""Who may do what, and what nobody may do."""

from dataclasses import astuple
from typing import Any

import pytest
from deployment import (
    ACCOUNTS,
    ALICE,
    ARTIFACT,
    BOB,
    CLASS,
    HEADER,
    MALLORY,
    PLAN,
    ZERO_ADDRESS,
    ZERO_HASH,
    Deployment,
    Refusal,
    Terms,
    decode_revert,
    send,
    sha,
    with_learners,
)
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import ContractLogicError

WEIGHTS = sha("weights")
LARGEST = 2**256 - 1
NOT_THE_HEADER = [name for name in ACCOUNTS if name != "header"]


def snapshot(run: Deployment) -> list[Any]:
    """All that the contract says in round 0."""
    return [
        run.read("header"),
        run.read("deployer"),
        run.read("plan"),
        run.read("getTerms"),
        run.read("getState"),
        run.read("round"),
        run.read("learners"),
        run.read("getGlobalWeight"),
        [run.read("globalWeightAt", number) for number in range(3)],
        [run.read("roundAt", number) for number in range(3)],
        run.attested(),
        [run.read("getLocalWeight", node) for node in range(4)],
        [run.read("localWeightAt", number, node) for number in range(2) for node in range(4)],
        [run.read("accountOf", node) for node in range(4)],
        [run.read("verdictOf", node) for node in range(4)],
        [run.read("nodeIdOf", account.address) for account in ACCOUNTS.values()],
    ]


@pytest.mark.parametrize("caller", NOT_THE_HEADER)
@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("registerLearner", (3, MALLORY.address)),
        ("registerLearners", ([3], [MALLORY.address])),
        ("setGlobalWeight", (WEIGHTS,)),
    ],
    ids=["registerLearner", "registerLearners", "setGlobalWeight"],
)
def test_only_the_header_registers_and_publishes_global_weights(
    started: Deployment, caller: str, function: str, args: tuple[Any, ...]
) -> None:
    before = snapshot(started)
    account = ACCOUNTS[caller]
    assert started.refused(account, function, *args) == Refusal("NotHeader", (account.address,))
    assert snapshot(started) == before


@pytest.mark.parametrize("caller", ["header", "bob", "mallory"])
def test_only_the_learners_own_account_publishes_its_local_weights(started: Deployment, caller: str) -> None:
    before = snapshot(started)
    account = ACCOUNTS[caller]
    for more in ((), (0, sha("initial"), True)):
        refusal = started.refused(account, "setLocalWeight", 1, WEIGHTS, *more)
        assert refusal == Refusal("NotLearner", (1, account.address))
    assert snapshot(started) == before


@pytest.mark.parametrize("caller", ACCOUNTS)
@pytest.mark.parametrize("node", [0, 3, LARGEST])
def test_nobody_publishes_for_a_node_that_is_not_registered(started: Deployment, caller: str, node: int) -> None:
    account = ACCOUNTS[caller]
    for more in ((), (0, sha("initial"), True)):
        refusal = started.refused(account, "setLocalWeight", node, WEIGHTS, *more)
        assert refusal == Refusal("NotLearner", (node, account.address))


@pytest.mark.parametrize("caller", ACCOUNTS)
def test_everybody_reads_everything(started: Deployment, caller: str) -> None:
    started.write(ALICE, "setLocalWeight", 1, WEIGHTS)
    reader = ACCOUNTS[caller]

    def read(name: str, *args: Any) -> Any:
        return started.read(name, *args, sender=reader)

    assert read("header") == HEADER.address
    assert read("plan") == PLAN
    assert read("round") == 0
    assert read("learners") == [1, 2]
    assert read("accountOf", 1) == ALICE.address
    assert read("nodeIdOf", BOB.address) == 2
    assert read("getGlobalWeight") == read("globalWeightAt", 0) == sha("initial")
    assert read("getLocalWeight", 1) == read("localWeightAt", 0, 1) == WEIGHTS
    assert read("deployer") == HEADER.address
    assert read("getTerms") == (4, 1, 0, True, 0)
    assert read("getState") == (1, sha("initial"), False, HEADER.address, 0)
    assert read("roundAt", 0)[:3] == (1, 0, 0)
    assert read("verdictOf", 1) == (True, False, False)


@pytest.mark.parametrize("node", [0, 5, LARGEST])
def test_nobody_is_registered_beyond_the_plans_learners(deployed: Deployment, node: int) -> None:
    refusal = deployed.refused(HEADER, "registerLearner", node, ALICE.address)
    assert refusal == Refusal("InvalidNodeId", (node, 4))
    deployed.write(HEADER, "registerLearner", 4, ALICE.address)


def test_a_header_wins_no_majority_with_accounts_of_its_own(w3: Web3) -> None:
    run = with_learners(Deployment(w3, Terms(learners=3)), 3)
    for node in (4, 5, 6, 7):
        refusal = run.refused(HEADER, "registerLearner", node, CLASS[node].address)
        assert refusal == Refusal("InvalidNodeId", (node, 3))
        assert run.refused(CLASS[node], "voteHeader", 0) == Refusal("NotLearner", (0, CLASS[node].address))
    run.write(ALICE, "voteHeader", 0)
    run.write(BOB, "voteHeader", 0)
    assert run.read("header") == ALICE.address


@pytest.mark.parametrize("account", [ZERO_ADDRESS, HEADER.address], ids=["zero address", "header"])
def test_the_zero_address_and_the_header_are_no_learners(deployed: Deployment, account: str) -> None:
    assert deployed.refused(HEADER, "registerLearner", 1, account) == Refusal("InvalidAccount", (account,))


@pytest.mark.parametrize(
    ("node", "account"),
    [(1, MALLORY.address), (3, ALICE.address), (1, ALICE.address), (1, BOB.address)],
    ids=["node taken", "account taken", "both, by each other", "both, by two learners"],
)
def test_a_node_or_an_account_is_registered_once(registered: Deployment, node: int, account: str) -> None:
    assert registered.refused(HEADER, "registerLearner", node, account) == Refusal(
        "AlreadyRegistered", (node, account)
    )
    assert registered.read("learners") == [1, 2]
    assert registered.read("accountOf", 1) == ALICE.address
    assert registered.read("nodeIdOf", ALICE.address) == 1


@pytest.mark.parametrize(
    ("nodes", "accounts", "refusal"),
    [
        ([3], [], Refusal("UnequalLists", (1, 0))),
        ([3], [MALLORY.address, ZERO_ADDRESS], Refusal("UnequalLists", (1, 2))),
        ([3, 5], [MALLORY.address, CLASS[5].address], Refusal("InvalidNodeId", (5, 4))),
        ([3, 4], [MALLORY.address, ZERO_ADDRESS], Refusal("InvalidAccount", (ZERO_ADDRESS,))),
        ([3, 4], [MALLORY.address, ALICE.address], Refusal("AlreadyRegistered", (4, ALICE.address))),
        ([3, 4], [MALLORY.address, MALLORY.address], Refusal("AlreadyRegistered", (4, MALLORY.address))),
        ([3, 3], [MALLORY.address, CLASS[4].address], Refusal("AlreadyRegistered", (3, CLASS[4].address))),
    ],
)
def test_several_learners_are_registered_all_or_none(
    registered: Deployment, nodes: list[int], accounts: list[str], refusal: Refusal
) -> None:
    before = snapshot(registered)
    assert registered.refused(HEADER, "registerLearners", nodes, accounts) == refusal
    assert snapshot(registered) == before


def test_a_run_may_have_a_thousand_learners(w3: Web3) -> None:
    run = Deployment(w3, Terms(learners=1_000))
    assert run.read("MAX_LEARNERS") == 1_000
    run.write(HEADER, "registerLearner", 1_000, ALICE.address)


def test_an_empty_hash_is_no_global_weights(deployed: Deployment) -> None:
    assert deployed.refused(HEADER, "setGlobalWeight", ZERO_HASH) == Refusal("EmptyHash")


def test_an_empty_hash_is_no_local_weights(started: Deployment) -> None:
    assert started.refused(ALICE, "setLocalWeight", 1, ZERO_HASH) == Refusal("EmptyHash")
    assert started.refused(ALICE, "setLocalWeight", 1, ZERO_HASH, 0, sha("initial"), True) == Refusal("EmptyHash")


@pytest.mark.parametrize(
    ("plan", "terms", "refusal"),
    [
        (ZERO_HASH, Terms(), Refusal("EmptyHash")),
        (PLAN, Terms(learners=0, minimum=0), Refusal("InvalidTerms")),
        (PLAN, Terms(learners=3, minimum=0), Refusal("InvalidTerms")),
        (PLAN, Terms(learners=3, minimum=4), Refusal("InvalidTerms")),
        (PLAN, Terms(learners=0, minimum=1, asynchronous=True), Refusal("InvalidTerms")),
        (PLAN, Terms(learners=1_001), Refusal("InvalidTerms")),
        (PLAN, Terms(learners=3, minimum=2, threshold=3), Refusal("InvalidTerms")),
        (PLAN, Terms(learners=3, minimum=3, asynchronous=True, threshold=2), Refusal("InvalidTerms")),
    ],
    ids=[
        "no plan",
        "nobody",
        "none needed",
        "more needed than there are",
        "more needed than nobody",
        "too many",
        "more to open than needed",
        "masks without rounds that close",
    ],
)
def test_a_contract_without_a_plan_or_with_terms_that_nobody_can_keep_is_not_deployed(
    w3: Web3, plan: bytes, terms: Terms, refusal: Refusal
) -> None:
    factory = w3.eth.contract(abi=ARTIFACT["abi"], bytecode=ARTIFACT["bytecode"])
    constructor = factory.constructor(plan, astuple(terms))
    with pytest.raises(ContractLogicError) as caught:
        w3.eth.call({"from": HEADER.address, "data": constructor.data_in_transaction})
    assert decode_revert(HexBytes(caught.value.data)) == refusal
    assert send(w3, HEADER, constructor.data_in_transaction)["status"] == 0


def test_local_weights_wait_for_the_first_global_weights(registered: Deployment) -> None:
    assert registered.refused(ALICE, "setLocalWeight", 1, WEIGHTS) == Refusal("NotStarted")
    assert registered.refused(ALICE, "setLocalWeight", 1, WEIGHTS, 0, ZERO_HASH, True) == Refusal("NotStarted")
    registered.write(HEADER, "setGlobalWeight", sha("initial"))
    registered.write(ALICE, "setLocalWeight", 1, WEIGHTS)


@pytest.mark.parametrize(
    ("caller", "function", "args", "refusal"),
    [
        ("mallory", "registerLearner", (0, ZERO_ADDRESS), Refusal("NotHeader", (MALLORY.address,))),
        ("mallory", "setGlobalWeight", (ZERO_HASH,), Refusal("NotHeader", (MALLORY.address,))),
        ("mallory", "setLocalWeight", (1, ZERO_HASH), Refusal("NotLearner", (1, MALLORY.address))),
        (
            "mallory",
            "setLocalWeight",
            (1, ZERO_HASH, 9, ZERO_HASH, True),
            Refusal("NotLearner", (1, MALLORY.address)),
        ),
    ],
    ids=["registerLearner", "setGlobalWeight", "setLocalWeight", "setLocalWeight of a round"],
)
def test_a_stranger_is_told_so_before_anything_about_its_arguments(
    registered: Deployment, caller: str, function: str, args: tuple[Any, ...], refusal: Refusal
) -> None:
    assert registered.refused(ACCOUNTS[caller], function, *args) == refusal


@pytest.mark.parametrize(
    ("caller", "function", "args"),
    [
        ("header", "registerLearner", (3, MALLORY.address)),
        ("header", "registerLearners", ([3], [MALLORY.address])),
        ("header", "setGlobalWeight", (WEIGHTS,)),
        ("alice", "setLocalWeight", (1, WEIGHTS)),
        ("alice", "setLocalWeight", (1, WEIGHTS, 0, sha("initial"), True)),
        ("alice", "attestGlobalWeight", (0, sha("initial"))),
        ("alice", "rejectGlobalWeight", (0, sha("initial"), WEIGHTS, ZERO_HASH)),
        ("alice", "voteHeader", (0,)),
        ("header", "", ()),
    ],
)
def test_the_contract_takes_no_ether(started: Deployment, caller: str, function: str, args: tuple[Any, ...]) -> None:
    data = started.data(function, *args) if function else "0x"
    transaction = {"from": ACCOUNTS[caller].address, "to": started.contract.address, "data": data}
    if function:
        started.w3.eth.call(transaction)
    with pytest.raises(ContractLogicError):
        started.w3.eth.call(transaction | {"value": 1})
