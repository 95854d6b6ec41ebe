"""What the contract says and keeps: getters, and the log of events."""

import pytest
from deployment import ALICE, BOB, HEADER, MALLORY, PLAN, ZERO_ADDRESS, ZERO_HASH, Deployment, Event, sha


def test_a_new_contract_knows_its_header_and_its_plan_and_nothing_else(deployed: Deployment) -> None:
    assert deployed.read("header") == HEADER.address
    assert deployed.read("plan") == PLAN
    assert deployed.read("round") == 0
    assert deployed.read("learners") == []
    assert deployed.read("accountOf", 1) == ZERO_ADDRESS
    assert deployed.read("nodeIdOf", ALICE.address) == 0
    assert deployed.read("getGlobalWeight") == deployed.read("globalWeightAt", 0) == ZERO_HASH
    assert deployed.read("getLocalWeight", 1) == deployed.read("localWeightAt", 0, 1) == ZERO_HASH
    assert deployed.read("deployer") == HEADER.address
    assert deployed.read("getState") == (0, ZERO_HASH, False, HEADER.address, 0)
    assert deployed.read("roundAt", 0) == (0, 0, 0, 0, 0)
    assert deployed.read("verdictOf", 1) == (False, False, False)
    assert deployed.history() == []


def test_a_registration_is_in_the_log_and_both_ways_in_the_state(deployed: Deployment) -> None:
    receipt = deployed.write(HEADER, "registerLearner", 3, ALICE.address)
    assert deployed.events(receipt["logs"]) == [Event("LearnerRegistered", (3, ALICE.address))]
    assert deployed.read("accountOf", 3) == ALICE.address
    assert deployed.read("nodeIdOf", ALICE.address) == 3


def test_one_call_registers_several_learners_in_its_order(deployed: Deployment) -> None:
    accounts = {3: BOB.address, 1: ALICE.address}
    receipt = deployed.write(HEADER, "registerLearners", list(accounts), list(accounts.values()))
    assert deployed.events(receipt["logs"]) == [Event("LearnerRegistered", pair) for pair in accounts.items()]
    assert deployed.read("learners") == [3, 1]
    assert {node: deployed.read("accountOf", node) for node in accounts} == accounts
    assert {deployed.read("nodeIdOf", account): account for account in accounts.values()} == accounts


def test_learners_are_listed_in_the_order_of_their_registration(deployed: Deployment) -> None:
    for node, account in [(3, BOB), (4, MALLORY), (1, ALICE)]:
        deployed.write(HEADER, "registerLearner", node, account.address)
    assert deployed.read("learners") == [3, 4, 1]


def test_the_first_global_weights_start_round_0_and_each_later_ones_the_next(deployed: Deployment) -> None:
    for number in range(4):
        receipt = deployed.write(HEADER, "setGlobalWeight", sha(f"global {number}"))
        assert deployed.events(receipt["logs"]) == [Event("GlobalWeightSet", (number, sha(f"global {number}")))]
        assert deployed.read("round") == number
        assert deployed.read("getGlobalWeight") == sha(f"global {number}")
    assert [deployed.read("globalWeightAt", number) for number in range(5)] == [
        *(sha(f"global {number}") for number in range(4)),
        ZERO_HASH,
    ]


def test_several_learners_publish_in_the_current_round_and_every_round_is_kept(
    registered: Deployment,
) -> None:
    learners = {1: ALICE, 2: BOB}
    for number in range(3):
        registered.write(HEADER, "setGlobalWeight", sha(f"global {number}"))
        # The order in which learners come is not theirs to choose.
        for node in sorted(learners, reverse=bool(number % 2)):
            receipt = registered.write(learners[node], "setLocalWeight", node, sha(f"local {number} {node}"))
            assert registered.events(receipt["logs"]) == [
                Event("LocalWeightSet", (number, node, sha(f"local {number} {node}"))),
                Event("GlobalWeightAttested", (number, node, sha(f"global {number}"))),
            ]
    for node in learners:
        assert registered.read("getLocalWeight", node) == sha(f"local 2 {node}")
        for number in range(3):
            assert registered.read("localWeightAt", number, node) == sha(f"local {number} {node}")
        assert registered.read("localWeightAt", 3, node) == ZERO_HASH


def test_the_latest_local_weights_stay_those_of_an_earlier_round_until_there_are_new_ones(
    registered: Deployment,
) -> None:
    registered.write(HEADER, "setGlobalWeight", sha("global 0"))
    registered.write(ALICE, "setLocalWeight", 1, sha("local 0"))
    for number in (1, 2):
        registered.write(HEADER, "setGlobalWeight", sha(f"global {number}"))
    assert registered.read("getLocalWeight", 1) == sha("local 0")
    assert registered.read("localWeightAt", 2, 1) == ZERO_HASH

    registered.write(ALICE, "setLocalWeight", 1, sha("local 2"))
    assert registered.read("getLocalWeight", 1) == registered.read("localWeightAt", 2, 1) == sha("local 2")
    assert registered.read("localWeightAt", 1, 1) == ZERO_HASH
    assert registered.read("localWeightAt", 0, 1) == sha("local 0")


def test_local_weights_published_again_in_a_round_replace_the_answer_but_not_the_event(
    registered: Deployment,
) -> None:
    registered.write(HEADER, "setGlobalWeight", sha("global"))
    registered.write(ALICE, "setLocalWeight", 1, sha("first"))
    registered.write(ALICE, "setLocalWeight", 1, sha("second"))
    assert registered.read("getLocalWeight", 1) == registered.read("localWeightAt", 0, 1) == sha("second")
    assert registered.history() == [
        Event("LearnerRegistered", (1, ALICE.address)),
        Event("LearnerRegistered", (2, BOB.address)),
        Event("GlobalWeightSet", (0, sha("global"))),
        Event("LocalWeightSet", (0, 1, sha("first"))),
        Event("GlobalWeightAttested", (0, 1, sha("global"))),
        Event("LocalWeightSet", (0, 1, sha("second"))),
    ]


def test_a_learner_registered_late_takes_part_from_the_current_round(registered: Deployment) -> None:
    for number in range(3):
        registered.write(HEADER, "setGlobalWeight", sha(f"global {number}"))
    registered.write(HEADER, "registerLearner", 3, MALLORY.address)
    assert registered.read("getLocalWeight", 3) == ZERO_HASH

    registered.write(MALLORY, "setLocalWeight", 3, sha("late"))
    assert registered.read("getLocalWeight", 3) == registered.read("localWeightAt", 2, 3) == sha("late")
    assert [registered.read("localWeightAt", number, 3) for number in (0, 1)] == [ZERO_HASH, ZERO_HASH]
    assert registered.read("learners") == [1, 2, 3]


def test_the_same_hash_is_published_by_two_learners_and_in_two_rounds(registered: Deployment) -> None:
    for _ in range(2):
        registered.write(HEADER, "setGlobalWeight", sha("same"))
        registered.write(ALICE, "setLocalWeight", 1, sha("same"))
        registered.write(BOB, "setLocalWeight", 2, sha("same"))
    assert registered.read("round") == 1
    assert [registered.read("localWeightAt", number, node) for number in (0, 1) for node in (1, 2)] == [
        sha("same")
    ] * 4


@pytest.mark.parametrize(
    ("event", "arguments", "expected"),
    [
        ("LocalWeightSet", {"round": 1}, [(1, 1, sha("local 1 1")), (1, 2, sha("local 1 2"))]),
        ("LocalWeightSet", {"nodeId": 2}, [(0, 2, sha("local 0 2")), (1, 2, sha("local 1 2"))]),
        ("LocalWeightSet", {"round": 0, "nodeId": 1}, [(0, 1, sha("local 0 1"))]),
        ("GlobalWeightSet", {"round": 1}, [(1, sha("global 1"))]),
        ("GlobalWeightAttested", {"nodeId": 2}, [(0, 2, sha("global 0")), (1, 2, sha("global 1"))]),
        ("LearnerRegistered", {"nodeId": 1}, [(1, ALICE.address)]),
        ("LearnerRegistered", {"account": BOB.address}, [(2, BOB.address)]),
    ],
)
def test_the_log_can_be_asked_by_round_by_node_and_by_account(
    registered: Deployment, event: str, arguments: dict[str, object], expected: list[tuple[object, ...]]
) -> None:
    for number in range(2):
        registered.write(HEADER, "setGlobalWeight", sha(f"global {number}"))
        for node, account in {1: ALICE, 2: BOB}.items():
            registered.write(account, "setLocalWeight", node, sha(f"local {number} {node}"))
    logs = registered.contract.events[event]().get_logs(
        from_block=registered.receipt["blockNumber"], argument_filters=arguments
    )
    assert [tuple(log["args"].values()) for log in logs] == expected


def test_two_contracts_on_a_chain_know_nothing_of_each_other(registered: Deployment) -> None:
    other = Deployment(registered.w3)
    registered.write(HEADER, "setGlobalWeight", sha("global"))
    assert other.read("learners") == []
    assert other.read("getGlobalWeight") == ZERO_HASH
    assert other.history() == []
