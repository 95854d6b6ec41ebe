"""When a round closes, and what is in it from then on."""

from collections.abc import Callable

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
from web3 import Web3

INITIAL = sha("initial")
LIMIT = 8


def begin(w3: Web3, terms: Terms, learners: int = 2) -> Deployment:
    """Deploy a contract in round 0 with so many learners."""
    run = with_learners(Deployment(w3, terms), learners)
    run.write(HEADER, "setGlobalWeight", INITIAL)
    return run


def is_closed(run: Deployment) -> bool:
    """Whether the current round is closed, as all getters that know it say."""
    closed = run.read("getState")[2]
    assert (run.read("roundAt", run.read("round"))[4] != 0) == closed
    return closed


def test_the_last_publication_closes_a_round_without_another_call(synchronous: Deployment) -> None:
    opened = synchronous.now()
    synchronous.write(ALICE, "setLocalWeight", 1, sha("alice"))
    assert synchronous.read("roundAt", 0) == (1, 0, 0, opened, 0)
    receipt = synchronous.write(BOB, "setLocalWeight", 2, sha("bob"))
    assert synchronous.events(receipt["logs"]) == [
        Event("LocalWeightSet", (0, 2, sha("bob"))),
        Event("RoundClosed", (0, 2, 2)),
        Event("GlobalWeightAttested", (0, 2, INITIAL)),
    ]
    assert synchronous.read("roundAt", 0) == (2, 2, 0, opened, synchronous.now())
    assert synchronous.read("getState") == (1, INITIAL, True, HEADER.address, 0)


@pytest.mark.parametrize("published", [0, 1])
def test_there_are_no_global_weights_before_the_round_closes(synchronous: Deployment, published: int) -> None:
    for node, learner in list({1: ALICE, 2: BOB}.items())[:published]:
        synchronous.write(learner, "setLocalWeight", node, sha("local"))
    refusal = synchronous.refused(HEADER, "setGlobalWeight", sha("next"))
    assert refusal == Refusal("RoundIsOpen", (0, published, 2))
    assert synchronous.read("getState") == (1, INITIAL, False, HEADER.address, 0)


def test_the_header_ends_a_closed_round_and_the_next_one_is_open(synchronous: Deployment) -> None:
    for number in range(3):
        synchronous.write(ALICE, "setLocalWeight", 1, sha(f"alice {number}"))
        synchronous.write(BOB, "setLocalWeight", 2, sha(f"bob {number}"))
        assert is_closed(synchronous)
        synchronous.write(HEADER, "setGlobalWeight", sha(f"global {number + 1}"))
        assert not is_closed(synchronous)
        assert synchronous.read("round") == number + 1
    assert synchronous.refused(HEADER, "setGlobalWeight", sha("early")) == Refusal("RoundIsOpen", (3, 0, 2))


def test_the_local_weights_of_a_closed_round_are_fixed(synchronous: Deployment) -> None:
    synchronous.write(ALICE, "setLocalWeight", 1, sha("alice"))
    synchronous.write(BOB, "setLocalWeight", 2, sha("bob"))
    before = synchronous.read("roundAt", 0)
    closed = Refusal("RoundIsClosed", (0,))
    assert synchronous.refused(ALICE, "setLocalWeight", 1, sha("again")) == closed
    assert synchronous.refused(ALICE, "setLocalWeight", 1, sha("again"), 0, INITIAL, True) == closed
    assert synchronous.refused(MALLORY, "closeRound") == closed
    synchronous.write(HEADER, "setGlobalWeight", sha("next"))
    synchronous.write(ALICE, "setLocalWeight", 1, sha("alice 1"))
    assert [synchronous.read("localWeightAt", 0, node) for node in (1, 2, 3)] == [sha("alice"), sha("bob"), ZERO_HASH]
    assert synchronous.read("roundAt", 0) == before


def test_anyone_closes_a_round_after_its_timeout_when_enough_have_published(
    w3: Web3, wait_until_time: Callable[[int], None]
) -> None:
    run = begin(w3, Terms(learners=3, timeout=1))
    opened = run.now()
    wait_until_time(opened + 1)
    run.write(HEADER, "registerLearner", 3, CLASS[3].address)  # a block of that time
    assert run.refused(MALLORY, "closeRound") == Refusal("RoundIsOpen", (0, 0, 1))
    run.write(ALICE, "setLocalWeight", 1, sha("alice"))
    receipt = run.write(MALLORY, "closeRound")
    assert run.events(receipt["logs"]) == [Event("RoundClosed", (0, 1, 3))]
    assert run.read("roundAt", 0) == (1, 3, 0, opened, run.now())
    assert run.refused(BOB, "setLocalWeight", 2, sha("bob")) == Refusal("RoundIsClosed", (0,))
    run.write(HEADER, "setGlobalWeight", sha("next"))
    run.write(BOB, "setLocalWeight", 2, sha("bob"))


def test_fewer_publications_than_the_least_close_no_round_after_any_time(
    w3: Web3, wait_until_time: Callable[[int], None]
) -> None:
    run = begin(w3, Terms(learners=3, minimum=2, timeout=1), learners=3)
    run.write(ALICE, "setLocalWeight", 1, sha("alice"))
    wait_until_time(run.now() + 2)
    run.write(ALICE, "setLocalWeight", 1, sha("again"))
    assert run.refused(HEADER, "closeRound") == Refusal("RoundIsOpen", (0, 1, 2))
    run.write(BOB, "setLocalWeight", 2, sha("bob"))
    run.write(BOB, "closeRound")
    assert is_closed(run)


@pytest.mark.parametrize("caller", ACCOUNTS)
@pytest.mark.parametrize("terms", [Terms(), Terms(timeout=0), OPEN], ids=["too early", "no timeout", "asynchronous"])
def test_nobody_closes_a_round_before_its_timeout(w3: Web3, terms: Terms, caller: str) -> None:
    run = begin(w3, terms)
    run.write(ALICE, "setLocalWeight", 1, sha("alice"))
    assert run.refused(ACCOUNTS[caller], "closeRound") == Refusal("RoundIsOpen", (0, 1, terms.learners))


def test_there_is_no_round_to_close_before_the_first_global_weights(w3: Web3) -> None:
    assert Deployment(w3, Terms()).refused(HEADER, "closeRound") == Refusal("NotStarted")


def test_a_round_waits_for_learners_that_the_plan_has_and_nobody_registered_yet(w3: Web3) -> None:
    run = begin(w3, Terms(learners=3))
    run.write(ALICE, "setLocalWeight", 1, sha("alice"))
    run.write(BOB, "setLocalWeight", 2, sha("bob"))
    assert run.refused(HEADER, "setGlobalWeight", sha("next")) == Refusal("RoundIsOpen", (0, 2, 3))
    run.write(HEADER, "registerLearner", 3, MALLORY.address)
    assert not is_closed(run)
    run.write(MALLORY, "setLocalWeight", 3, sha("mallory"))
    assert run.read("roundAt", 0)[:2] == (3, 3)
    assert is_closed(run)


def test_a_learner_registered_in_a_closed_round_is_no_member_of_it_and_one_of_the_next(
    w3: Web3, wait_until_time: Callable[[int], None]
) -> None:
    run = begin(w3, Terms(learners=3, timeout=1))
    wait_until_time(run.now() + 1)
    for node, learner in {1: ALICE, 2: BOB}.items():
        run.write(learner, "setLocalWeight", node, sha("local"))
    run.write(HEADER, "closeRound")
    run.write(HEADER, "registerLearner", 3, MALLORY.address)
    assert run.refused(MALLORY, "setLocalWeight", 3, sha("late")) == Refusal("RoundIsClosed", (0,))
    run.write(HEADER, "setGlobalWeight", sha("next"))
    assert run.read("roundAt", 0)[:2] == (2, 2)
    assert run.read("localWeightAt", 0, 3) == ZERO_HASH
    for node, learner in {1: ALICE, 2: BOB}.items():
        run.write(learner, "setLocalWeight", node, sha("local 1"))
    assert not is_closed(run)
    run.write(MALLORY, "setLocalWeight", 3, sha("mallory 1"))
    assert run.read("roundAt", 1)[:2] == (3, 3)


def test_a_publication_replaces_the_last_and_counts_once(synchronous: Deployment) -> None:
    for text in ("first", "second"):
        synchronous.write(ALICE, "setLocalWeight", 1, sha(text))
        assert synchronous.read("roundAt", 0)[0] == 1
        assert synchronous.read("localWeightAt", 0, 1) == sha(text)
    assert not is_closed(synchronous)


def test_a_learner_publishes_so_often_in_a_round_and_no_more(synchronous: Deployment) -> None:
    assert synchronous.read("MAX_PUBLICATIONS") == LIMIT
    for number in range(2):
        parent = synchronous.read("getGlobalWeight")
        for time in range(LIMIT):
            more = (number, parent, True) if time % 2 else ()
            synchronous.write(ALICE, "setLocalWeight", 1, sha(f"{number} {time}"), *more)
        too_many = Refusal("TooManyPublications", (1,))
        assert synchronous.refused(ALICE, "setLocalWeight", 1, sha("more")) == too_many
        assert synchronous.refused(ALICE, "setLocalWeight", 1, sha("more"), number, parent, False) == too_many
        assert synchronous.read("localWeightAt", number, 1) == sha(f"{number} {LIMIT - 1}")
        synchronous.write(BOB, "setLocalWeight", 2, sha("bob"))
        synchronous.write(HEADER, "setGlobalWeight", sha(f"global {number + 1}"))


def test_local_weights_are_refused_that_were_trained_from_other_global_weights(synchronous: Deployment) -> None:
    def refused(round_: int, parent: bytes) -> Refusal:
        return synchronous.refused(ALICE, "setLocalWeight", 1, sha("local"), round_, parent, True)

    assert refused(0, sha("other")) == refused(0, ZERO_HASH) == Refusal("OtherWeights", (INITIAL,))
    assert refused(1, INITIAL) == Refusal("WrongRound", (0,))
    synchronous.write(ALICE, "setLocalWeight", 1, sha("local"), 0, INITIAL, True)
    synchronous.write(BOB, "setLocalWeight", 2, sha("local"))
    synchronous.write(HEADER, "setGlobalWeight", sha("next"))
    assert refused(0, INITIAL) == Refusal("WrongRound", (1,))
    assert refused(1, INITIAL) == Refusal("OtherWeights", (sha("next"),))
    assert synchronous.read("localWeightAt", 1, 1) == ZERO_HASH


def test_asynchronous_rounds_never_close_and_take_weights_of_earlier_rounds(started: Deployment) -> None:
    assert started.read("getTerms") == (4, 1, 0, True, 0)
    started.write(ALICE, "setLocalWeight", 1, sha("alice"))
    started.write(BOB, "setLocalWeight", 2, sha("bob"))
    assert not is_closed(started)
    started.write(HEADER, "setGlobalWeight", sha("next"))
    receipt = started.write(ALICE, "setLocalWeight", 1, sha("stale"), 0, INITIAL, True)
    assert started.events(receipt["logs"]) == [Event("LocalWeightSet", (1, 1, sha("stale")))]
    assert started.read("localWeightAt", 1, 1) == sha("stale")
    started.write(HEADER, "setGlobalWeight", sha("third"))
    assert started.refused(ALICE, "setLocalWeight", 1, sha("odd"), 1, INITIAL, True) == Refusal(
        "OtherWeights", (sha("next"),)
    )
    assert started.refused(ALICE, "setLocalWeight", 1, sha("odd"), 3, INITIAL, True) == Refusal(
        "OtherWeights", (ZERO_HASH,)
    )


def test_the_terms_can_be_read(w3: Web3) -> None:
    terms = Terms(learners=7, minimum=3, timeout=11, threshold=2)
    assert Deployment(w3, terms).read("getTerms") == (7, 3, 11, False, 2)
