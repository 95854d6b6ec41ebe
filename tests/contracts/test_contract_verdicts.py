"""What learners say of global weights and of the header, and what follows when more than half say it."""

from collections.abc import Sequence

import pytest
from deployment import (
    ACCOUNTS,
    ALICE,
    BOB,
    CLASS,
    HEADER,
    MALLORY,
    OPEN,
    ZERO_HASH,
    Deployment,
    Event,
    Refusal,
    Terms,
    sha,
    with_learners,
)
from eth_account.signers.local import LocalAccount
from web3 import Web3

INITIAL = sha("initial")
CODE = b"shares".ljust(32, b"\0")
EVIDENCE = sha("evidence")
THREE = {1: ALICE, 2: BOB, 3: MALLORY}


def close(run: Deployment, learners: dict[int, LocalAccount], *, attests: bool = True) -> None:
    """Let these learners publish in the current round, which closes it."""
    rounds, parent, closed, *_ = run.read("getState")
    assert not closed
    for node, learner in learners.items():
        run.write(learner, "setLocalWeight", node, sha(f"local {rounds} {node}"), rounds - 1, parent, attests)
    assert run.read("getState")[2]


def reject(run: Deployment, learner: LocalAccount, round_: int) -> Sequence[Event]:
    """Reject the global weights of a round, and return what the log says of it."""
    hash_ = run.read("globalWeightAt", round_)
    return run.events(run.write(learner, "rejectGlobalWeight", round_, hash_, CODE, EVIDENCE)["logs"])


@pytest.fixture
def three(w3: Web3) -> Deployment:
    """A contract with three learners in round 0, which closes when all have published."""
    run = with_learners(Deployment(w3, Terms(learners=3)), 3)
    run.write(HEADER, "setGlobalWeight", INITIAL)
    return run


@pytest.fixture
def closed(three: Deployment) -> Deployment:
    """The same, with round 0 closed."""
    close(three, THREE)
    return three


# Attestations


def test_whoever_publishes_attests_the_global_weights_of_the_round(three: Deployment) -> None:
    receipt = three.write(ALICE, "setLocalWeight", 1, sha("alice"))
    assert three.events(receipt["logs"]) == [
        Event("LocalWeightSet", (0, 1, sha("alice"))),
        Event("GlobalWeightAttested", (0, 1, INITIAL)),
    ]
    receipt = three.write(ALICE, "setLocalWeight", 1, sha("again"))
    assert three.events(receipt["logs"]) == [Event("LocalWeightSet", (0, 1, sha("again")))]
    three.write(BOB, "setLocalWeight", 2, sha("bob"), 0, INITIAL, True)
    assert three.attested() == [(0, 1), (0, 2)]
    assert [three.read("verdictOf", node) for node in (1, 2, 3)] == [(True, False, False)] * 2 + [(False,) * 3]


def test_whoever_has_verified_nothing_publishes_and_attests_nothing(three: Deployment) -> None:
    receipt = three.write(ALICE, "setLocalWeight", 1, sha("alice"), 0, INITIAL, False)
    assert three.events(receipt["logs"]) == [Event("LocalWeightSet", (0, 1, sha("alice")))]
    assert three.attested() == []
    assert three.read("verdictOf", 1) == (False, False, False)


def test_the_last_global_weights_are_attested_by_a_call(closed: Deployment) -> None:
    closed.write(HEADER, "setGlobalWeight", sha("last"))
    for node, learner in THREE.items():
        receipt = closed.write(learner, "attestGlobalWeight", 1, sha("last"))
        assert closed.events(receipt["logs"]) == [Event("GlobalWeightAttested", (1, node, sha("last")))]
        assert closed.read("verdictOf", node) == (True, False, False)


def test_an_attestation_is_of_all_earlier_global_weights_too(three: Deployment) -> None:
    close(three, THREE, attests=False)
    three.write(HEADER, "setGlobalWeight", sha("next"))
    three.write(ALICE, "attestGlobalWeight", 1, sha("next"))
    assert three.refused(ALICE, "attestGlobalWeight", 0, INITIAL) == Refusal("AlreadyJudged", (1,))
    assert three.refused(ALICE, "rejectGlobalWeight", 0, INITIAL, CODE, EVIDENCE) == Refusal("AlreadyJudged", (1,))
    three.write(BOB, "attestGlobalWeight", 0, INITIAL)
    assert three.attested() == [(1, 1), (0, 2)]


@pytest.mark.parametrize("caller", ["header", "mallory"])
@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("attestGlobalWeight", (0, INITIAL)),
        ("rejectGlobalWeight", (0, INITIAL, CODE, EVIDENCE)),
        ("attestGlobalWeight", (9, ZERO_HASH)),
        ("rejectGlobalWeight", (9, ZERO_HASH, CODE, EVIDENCE)),
        ("voteHeader", (0,)),
        ("voteHeader", (9,)),
    ],
)
def test_only_learners_attest_reject_and_vote(
    synchronous: Deployment, caller: str, function: str, args: tuple[object, ...]
) -> None:
    account = ACCOUNTS[caller]
    assert synchronous.refused(account, function, *args) == Refusal("NotLearner", (0, account.address))


@pytest.mark.parametrize(
    ("round_", "hash_", "right"),
    [
        (0, sha("other"), INITIAL),
        (0, ZERO_HASH, INITIAL),
        (1, INITIAL, ZERO_HASH),
        (2**256 - 1, ZERO_HASH, ZERO_HASH),
    ],
    ids=["other", "none", "not yet", "never"],
)
def test_nobody_judges_global_weights_that_are_not_there(
    three: Deployment, round_: int, hash_: bytes, right: bytes
) -> None:
    other = Refusal("OtherWeights", (right,))
    assert three.refused(ALICE, "attestGlobalWeight", round_, hash_) == other
    assert three.refused(ALICE, "rejectGlobalWeight", round_, hash_, CODE, EVIDENCE) == other


def test_nobody_judges_the_same_weights_twice(three: Deployment) -> None:
    three.write(ALICE, "attestGlobalWeight", 0, INITIAL)
    reject(three, BOB, 0)
    for node, learner in {1: ALICE, 2: BOB}.items():
        judged = Refusal("AlreadyJudged", (node,))
        assert three.refused(learner, "attestGlobalWeight", 0, INITIAL) == judged
        assert three.refused(learner, "rejectGlobalWeight", 0, INITIAL, CODE, EVIDENCE) == judged
    assert three.attested() == [(0, 1)]
    assert three.read("roundAt", 0)[2] == 1


def test_whoever_has_rejected_weights_can_publish_but_does_not_attest_them(three: Deployment) -> None:
    reject(three, ALICE, 0)
    receipt = three.write(ALICE, "setLocalWeight", 1, sha("alice"))
    assert three.events(receipt["logs"]) == [Event("LocalWeightSet", (0, 1, sha("alice")))]
    assert three.attested() == []
    assert three.read("verdictOf", 1) == (False, True, False)


def test_whoever_has_rejected_weights_and_attests_later_ones_has_rejected_them_all_the_same(w3: Web3) -> None:
    run = with_learners(Deployment(w3, OPEN), 3)
    for text in ("initial", "second"):
        run.write(HEADER, "setGlobalWeight", sha(text))
    reject(run, ALICE, 0)
    run.write(ALICE, "attestGlobalWeight", 1, sha("second"))
    assert run.read("verdictOf", 1) == (True, False, False)
    for learner in (BOB, MALLORY):
        reject(run, learner, 1)
    # The weights that she rejected are the newest again.
    assert run.read("getGlobalWeight") == INITIAL
    assert run.read("verdictOf", 1) == (False, True, False)


# Rejections


def test_a_minority_that_rejects_changes_nothing_but_the_record(closed: Deployment) -> None:
    closed.write(HEADER, "setGlobalWeight", sha("right"))
    before = closed.read("getState")
    assert reject(closed, ALICE, 1) == [Event("GlobalWeightRejected", (1, 1, sha("right"), CODE, EVIDENCE))]
    assert closed.read("getState") == before
    assert closed.read("roundAt", 1)[2] == 1
    assert closed.read("verdictOf", 1) == (False, True, False)
    for node, learner in {2: BOB, 3: MALLORY}.items():
        closed.write(learner, "setLocalWeight", node, sha(f"local {node}"))
    closed.write(ALICE, "setLocalWeight", 1, sha("local 1"))
    closed.write(HEADER, "setGlobalWeight", sha("next"))
    assert closed.read("globalWeightAt", 1) == sha("right")


def test_a_majority_withdraws_weights_and_deposes_the_header(closed: Deployment) -> None:
    record = closed.read("roundAt", 0)
    closed.write(HEADER, "setGlobalWeight", sha("wrong"))
    closed.write(ALICE, "setLocalWeight", 1, sha("from wrong"), 1, sha("wrong"), False)
    reject(closed, BOB, 1)
    assert reject(closed, MALLORY, 1) == [
        Event("GlobalWeightRejected", (1, 3, sha("wrong"), CODE, EVIDENCE)),
        Event("GlobalWeightWithdrawn", (1, sha("wrong"))),
        Event("HeaderChanged", (ALICE.address, 1)),
    ]
    # Round 0 is as it was: closed, with the same local weights.
    assert closed.read("getState") == (1, INITIAL, True, ALICE.address, 1)
    assert closed.read("roundAt", 0) == record
    assert [closed.read("localWeightAt", 0, node) for node in THREE] == [sha(f"local 1 {node}") for node in THREE]
    assert closed.read("globalWeightAt", 1) == closed.read("localWeightAt", 1, 1) == ZERO_HASH
    assert closed.read("roundAt", 1) == (0, 0, 0, 0, 0)
    assert closed.attested() == [(0, node) for node in THREE]
    assert closed.refused(ALICE, "setLocalWeight", 1, sha("late")) == Refusal("RoundIsClosed", (0,))
    assert closed.refused(HEADER, "setGlobalWeight", sha("wrong")) == Refusal("NotHeader", (HEADER.address,))

    closed.write(ALICE, "setGlobalWeight", sha("right"))
    assert closed.read("getState") == (2, sha("right"), False, ALICE.address, 1)
    # Of the withdrawn weights nothing is left in the round, and who judged those judges these.
    assert closed.read("roundAt", 1)[:3] == (0, 0, 0)
    assert closed.read("localWeightAt", 1, 1) == ZERO_HASH
    assert [closed.read("verdictOf", node) for node in THREE] == [(False, False, False)] * 3
    close(closed, THREE)
    assert closed.attested() == [*((0, node) for node in THREE), *((1, node) for node in THREE)]
    published = [event.args for event in closed.history() if event.name == "GlobalWeightSet"]
    assert published == [(0, INITIAL), (1, sha("wrong")), (1, sha("right"))]


def test_weights_that_follow_from_withdrawn_ones_are_withdrawn_too(three: Deployment) -> None:
    for number in range(1, 4):
        close(three, THREE, attests=False)
        three.write(HEADER, "setGlobalWeight", sha(f"global {number}"))
    reject(three, ALICE, 2)
    reject(three, BOB, 2)
    assert three.read("getState") == (2, sha("global 1"), True, ALICE.address, 1)
    assert [three.read("globalWeightAt", number) for number in range(4)] == [
        INITIAL,
        sha("global 1"),
        ZERO_HASH,
        ZERO_HASH,
    ]
    assert three.refused(MALLORY, "rejectGlobalWeight", 3, sha("global 3"), CODE, EVIDENCE) == Refusal(
        "OtherWeights", (ZERO_HASH,)
    )


def test_initial_weights_are_withdrawn_as_others_are(three: Deployment) -> None:
    three.write(ALICE, "setLocalWeight", 1, sha("from wrong"), 0, INITIAL, False)
    reject(three, ALICE, 0)
    reject(three, BOB, 0)
    assert three.read("getState") == (0, ZERO_HASH, False, ALICE.address, 1)
    assert three.read("getGlobalWeight") == three.read("globalWeightAt", 0) == ZERO_HASH
    assert three.refused(BOB, "setLocalWeight", 2, sha("bob")) == Refusal("NotStarted")
    three.write(ALICE, "setGlobalWeight", sha("right"))
    close(three, THREE)
    assert three.read("roundAt", 0)[:2] == (3, 3)


@pytest.mark.parametrize(("learners", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_more_than_half_of_the_registered_learners_decide(w3: Web3, learners: int, needed: int) -> None:
    run = Deployment(w3, Terms(learners=learners))
    members = list(CLASS.items())[:learners]
    for node, learner in members:
        run.write(HEADER, "registerLearner", node, learner.address)
    for _, learner in members[: needed - 1]:
        run.write(learner, "voteHeader", 0)
        assert run.read("header") == HEADER.address
    run.write(members[needed - 1][1], "voteHeader", 0)
    assert run.read("header") == CLASS[1].address
    run.write(CLASS[1], "setGlobalWeight", INITIAL)
    for _, learner in members[: needed - 1]:
        reject(run, learner, 0)
        assert run.read("getState")[0] == 1
    reject(run, members[needed - 1][1], 0)
    assert run.read("getState")[0] == 0


def test_a_learner_registered_late_counts_among_those_of_whom_half_are_not_enough(w3: Web3) -> None:
    run = with_learners(Deployment(w3, Terms(learners=4)), 3)
    run.write(HEADER, "setGlobalWeight", INITIAL)
    reject(run, ALICE, 0)
    run.write(HEADER, "registerLearner", 4, CLASS[4].address)
    reject(run, BOB, 0)
    assert run.read("getState")[0] == 1
    reject(run, CLASS[4], 0)
    assert run.read("getState")[0] == 0


# Votes and succession


def test_more_than_half_replace_a_header_that_does_nothing(closed: Deployment) -> None:
    before = closed.read("roundAt", 0)
    receipt = closed.write(BOB, "voteHeader", 0)
    assert closed.events(receipt["logs"]) == [Event("HeaderVoted", (0, 2))]
    assert closed.read("getState") == (1, INITIAL, True, HEADER.address, 0)
    assert closed.read("verdictOf", 2) == (True, False, True)
    receipt = closed.write(MALLORY, "voteHeader", 0)
    assert closed.events(receipt["logs"]) == [
        Event("HeaderVoted", (0, 3)),
        Event("HeaderChanged", (ALICE.address, 1)),
    ]
    assert closed.read("getState") == (1, INITIAL, True, ALICE.address, 1)
    assert closed.read("roundAt", 0) == before
    assert closed.read("verdictOf", 2) == (True, False, False)
    assert closed.refused(HEADER, "setGlobalWeight", sha("back")) == Refusal("NotHeader", (HEADER.address,))
    closed.write(ALICE, "setGlobalWeight", sha("next"))
    close(closed, THREE)


def test_nobody_votes_twice_nor_in_a_ballot_that_is_over_or_to_come(closed: Deployment) -> None:
    closed.write(ALICE, "voteHeader", 0)
    assert closed.refused(ALICE, "voteHeader", 0) == Refusal("AlreadyVoted", (1,))
    assert closed.refused(ALICE, "voteHeader", 1) == Refusal("WrongBallot", (0,))
    closed.write(BOB, "voteHeader", 0)
    assert closed.refused(MALLORY, "voteHeader", 0) == Refusal("WrongBallot", (1,))
    closed.write(ALICE, "voteHeader", 1)
    assert closed.read("header") == ALICE.address


def test_nobody_votes_while_the_round_is_open(three: Deployment) -> None:
    three.write(ALICE, "setLocalWeight", 1, sha("alice"))
    assert three.refused(ALICE, "voteHeader", 0) == Refusal("RoundIsOpen", (0, 1, 3))


def test_learners_replace_a_header_that_never_starts(w3: Web3) -> None:
    run = with_learners(Deployment(w3, Terms()))
    run.write(ALICE, "voteHeader", 0)
    run.write(BOB, "voteHeader", 0)
    run.write(ALICE, "setGlobalWeight", INITIAL)
    assert run.read("getState") == (1, INITIAL, False, ALICE.address, 1)


def test_votes_are_void_when_the_header_acts(closed: Deployment) -> None:
    closed.write(ALICE, "voteHeader", 0)
    closed.write(HEADER, "setGlobalWeight", sha("next"))
    assert closed.read("getState") == (2, sha("next"), False, HEADER.address, 1)
    assert closed.read("verdictOf", 1) == (False, False, False)
    close(closed, THREE)
    # A vote that comes too late counts for nothing, and one vote of before and one of now are no majority.
    assert closed.refused(BOB, "voteHeader", 0) == Refusal("WrongBallot", (1,))
    closed.write(BOB, "voteHeader", 1)
    assert closed.read("header") == HEADER.address
    closed.write(ALICE, "voteHeader", 1)
    assert closed.read("header") == ALICE.address


def test_a_ballot_goes_on_when_the_header_acts_and_nobody_has_voted(closed: Deployment) -> None:
    closed.write(HEADER, "setGlobalWeight", sha("next"))
    assert closed.read("getState")[4] == 0


def test_votes_are_void_when_the_header_is_deposed_by_a_rejection(w3: Web3) -> None:
    run = with_learners(Deployment(w3, OPEN), 3)
    run.write(HEADER, "setGlobalWeight", INITIAL)
    run.write(MALLORY, "voteHeader", 0)
    reject(run, ALICE, 0)
    reject(run, BOB, 0)
    assert run.read("getState") == (0, ZERO_HASH, False, ALICE.address, 1)
    run.write(ALICE, "voteHeader", 1)
    assert run.read("header") == ALICE.address


def test_learners_succeed_in_the_order_of_their_registration_and_then_the_deployer_again(w3: Web3) -> None:
    run = Deployment(w3, Terms(learners=3))
    for node, learner in {2: BOB, 3: MALLORY, 1: ALICE}.items():
        run.write(HEADER, "registerLearner", node, learner.address)
    order = [(BOB, 2), (MALLORY, 3), (ALICE, 1), (HEADER, 0)] * 2
    for ballot, (account, node) in enumerate(order):
        run.write(ALICE, "voteHeader", ballot)
        receipt = run.write(MALLORY, "voteHeader", ballot)
        assert run.events(receipt["logs"])[1:] == [Event("HeaderChanged", (account.address, node))]
        assert run.read("header") == account.address
    assert run.read("deployer") == HEADER.address


def test_a_successor_does_all_that_a_header_does_and_its_learners_stay_learners(w3: Web3) -> None:
    run = with_learners(Deployment(w3, Terms(learners=4)), 3)
    for learner in (BOB, MALLORY):
        run.write(learner, "voteHeader", 0)
    run.write(ALICE, "setGlobalWeight", INITIAL)
    assert run.refused(ALICE, "registerLearner", 4, HEADER.address) == Refusal("InvalidAccount", (HEADER.address,))
    assert run.refused(HEADER, "registerLearner", 4, CLASS[4].address) == Refusal("NotHeader", (HEADER.address,))
    run.write(ALICE, "registerLearner", 4, CLASS[4].address)
    close(run, {**THREE, 4: CLASS[4]})


def test_a_learner_registered_late_is_a_candidate_too(w3: Web3) -> None:
    run = with_learners(Deployment(w3, Terms()), 1)
    run.write(ALICE, "voteHeader", 0)
    assert run.read("header") == ALICE.address
    run.write(ALICE, "registerLearner", 2, BOB.address)
    for learner in (ALICE, BOB):
        run.write(learner, "voteHeader", 1)
    assert run.read("header") == BOB.address


def test_learners_of_an_asynchronous_run_vote_and_reject_at_any_time(started: Deployment) -> None:
    started.write(ALICE, "voteHeader", 0)
    started.write(BOB, "voteHeader", 0)
    assert started.read("getState") == (1, INITIAL, False, ALICE.address, 1)
    started.write(ALICE, "setGlobalWeight", sha("wrong"))
    started.write(ALICE, "setLocalWeight", 1, sha("alice"), 0, INITIAL, True)
    reject(started, ALICE, 1)
    reject(started, BOB, 1)
    assert started.read("getState") == (1, INITIAL, False, BOB.address, 2)


def test_a_learner_that_publishes_again_after_a_withdrawal_counts_once(started: Deployment) -> None:
    started.write(ALICE, "setLocalWeight", 1, sha("alice"))
    started.write(HEADER, "setGlobalWeight", sha("wrong"))
    started.write(ALICE, "setLocalWeight", 1, sha("from wrong"), 1, sha("wrong"), False)
    reject(started, ALICE, 1)
    reject(started, BOB, 1)
    started.write(ALICE, "setLocalWeight", 1, sha("again"))
    assert started.read("localWeightAt", 0, 1) == started.read("getLocalWeight", 1) == sha("again")
    assert started.read("roundAt", 0)[0] == 1
