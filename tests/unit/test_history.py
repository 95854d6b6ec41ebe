"""The events of a run arranged by rounds: what is closed, withdrawn and attested, and who is the header."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from fl_node.artifacts import cid
from fl_node.chain.contract import (
    ATTESTED,
    GLOBAL_WEIGHT_SET,
    HEADER_CHANGED,
    HEADER_VOTED,
    LEARNER_REGISTERED,
    LOCAL_WEIGHT_SET,
    REJECTED,
    ROUND_CLOSED,
    WITHDRAWN,
    LogEntry,
)
from fl_node.errors import LogError
from fl_node.plan.schema import Plan
from fl_node.protocol.history import History, arrange, read_from
from fl_node.protocol.terms import terms_of
from fl_node.protocol.verdicts import verdicts

PLAN = cid.of_bytes(b"plan")
DEPLOYER, ALICE, BOB = "0xDeployer", "0xAlice", "0xBob"


def name(text: str) -> str:
    return cid.of_bytes(text.encode())


def registered(node_id: int) -> dict[str, Any]:
    return {"name": LEARNER_REGISTERED, "node_id": node_id, "account": f"0x{node_id}"}


def started(round_: int, text: str) -> dict[str, Any]:
    return {"name": GLOBAL_WEIGHT_SET, "round": round_, "cid": name(text)}


def published(round_: int, node_id: int, text: str) -> dict[str, Any]:
    return {"name": LOCAL_WEIGHT_SET, "round": round_, "node_id": node_id, "cid": name(text)}


def closed(round_: int, members: int) -> dict[str, Any]:
    return {"name": ROUND_CLOSED, "round": round_, "members": members}


def attested(round_: int, node_id: int, text: str) -> dict[str, Any]:
    return {"name": ATTESTED, "round": round_, "node_id": node_id, "cid": name(text)}


def rejected(round_: int, node_id: int, text: str) -> dict[str, Any]:
    return {"name": REJECTED, "round": round_, "node_id": node_id, "cid": name(text), "code": "share"}


def withdrawn(round_: int, text: str) -> dict[str, Any]:
    return {"name": WITHDRAWN, "round": round_, "cid": name(text)}


def changed(account: str, node_id: int) -> dict[str, Any]:
    return {"name": HEADER_CHANGED, "account": account, "node_id": node_id}


def log(*events: dict[str, Any]) -> list[LogEntry]:
    """Return log entries, each in a block of its own."""
    return [LogEntry(block=10 * n, index=0, transaction=f"0x{n}", **event) for n, event in enumerate(events, 1)]


def past(*events: dict[str, Any]) -> History:
    return arrange(PLAN, DEPLOYER, log(*events))


def cids(entries: Iterable[LogEntry]) -> list[str | None]:
    return [entry.cid for entry in entries]


TWO = [registered(2), registered(1)]
ROUND_0 = [
    *TWO,
    started(0, "first"),
    published(0, 1, "alice"),
    attested(0, 1, "first"),
    published(0, 2, "bob"),
    closed(0, 2),
]


def test_a_run_without_events_has_no_rounds_and_its_deployer_is_its_header() -> None:
    empty = past()
    assert (empty.plan_cid, empty.deployer, empty.learners, empty.rounds, empty.withdrawn) == (
        PLAN,
        DEPLOYER,
        {},
        (),
        (),
    )


def test_rounds_have_what_was_published_and_said_of_them() -> None:
    history = past(*ROUND_0, started(1, "second"), rejected(1, 2, "second"), attested(1, 1, "second"))
    assert list(history.learners) == [1, 2]
    first, second = history.rounds
    assert (first.number, first.started.cid, first.members) == (0, name("first"), {1, 2})
    assert first.closed is not None
    assert first.closed.members == 2
    assert cids(first.published) == [name("alice"), name("bob")]
    assert cids(first.attestations) == [name("first")]
    assert (second.number, second.closed, second.members, second.published) == (1, None, frozenset(), ())
    assert [(entry.node_id, entry.code) for entry in second.rejections] == [(2, "share")]
    assert history.publications == first.published
    assert history.withdrawn == ()


def test_of_a_learners_publications_in_a_round_the_last_one_counts() -> None:
    (only,) = past(*TWO, started(0, "first"), published(0, 1, "old"), published(0, 1, "new")).rounds
    assert cids(only.published) == [name("old"), name("new")]
    assert {node_id: entry.cid for node_id, entry in only.latest().items()} == {1: name("new")}


def test_the_members_of_a_round_are_those_that_were_registered_when_it_closed() -> None:
    history = past(*ROUND_0, registered(3), started(1, "second"))
    assert history.rounds[0].members == {1, 2}
    assert list(history.learners) == [1, 2, 3]


def test_withdrawn_weights_and_what_followed_from_them_are_kept_apart() -> None:
    history = past(
        *ROUND_0,
        started(1, "wrong"),
        published(1, 1, "from wrong"),
        closed(1, 2),
        started(2, "worse"),
        rejected(1, 1, "wrong"),
        rejected(1, 2, "wrong"),
        withdrawn(1, "wrong"),
        changed(ALICE, 1),
        started(1, "right"),
        published(1, 1, "from right"),
    )
    assert cids(round_.started for round_ in history.rounds) == [name("first"), name("right")]
    assert [round_.number for round_ in history.rounds] == [0, 1]
    assert [(round_.number, round_.started.cid) for round_ in history.withdrawn] == [
        (1, name("wrong")),
        (2, name("worse")),
    ]
    assert [entry.node_id for entry in history.withdrawn[0].rejections] == [1, 2]
    assert cids(history.withdrawn[0].published) == [name("from wrong")]
    # What is of the new round is not mixed with what was of the withdrawn one, nor the other way round.
    assert cids(history.rounds[1].published) == [name("from right")]
    assert history.rounds[1].rejections == ()
    assert history.rounds[1].closed is None
    assert history.rounds[0].closed is not None
    assert history.rounds[0].members == {1, 2}
    assert cids(history.publications) == [name(text) for text in ("alice", "bob", "from wrong", "from right")]


def test_weights_are_withdrawn_again_and_from_the_first_round_on() -> None:
    history = past(
        *TWO,
        started(0, "a"),
        withdrawn(0, "a"),
        started(0, "b"),
        closed(0, 2),
        started(1, "c"),
        withdrawn(0, "b"),
        started(0, "d"),
    )
    assert cids(round_.started for round_ in history.rounds) == [name("d")]
    assert [(round_.number, round_.started.cid) for round_ in history.withdrawn] == [
        (0, name("a")),
        (0, name("b")),
        (1, name("c")),
    ]


def test_the_header_at_an_event_is_the_one_named_last_before_it() -> None:
    entries = log(started(0, "a"), changed(ALICE, 1), started(1, "b"), changed(BOB, 2), started(2, "c"))
    history = arrange(PLAN, DEPLOYER, entries)
    assert [history.header_at(entry) for entry in entries] == [DEPLOYER, DEPLOYER, ALICE, ALICE, BOB]
    assert cids(history.headers) == [None, None]
    assert [entry.account for entry in history.headers] == [ALICE, BOB]


def test_the_header_is_known_between_events_of_one_block() -> None:
    events = [started(0, "a"), changed(ALICE, 1), started(1, "b")]
    entries = [LogEntry(block=5, index=index, transaction="0x", **event) for index, event in enumerate(events)]
    history = arrange(PLAN, DEPLOYER, entries)
    assert [history.header_at(entry) for entry in entries] == [DEPLOYER, DEPLOYER, ALICE]


def test_whoever_attests_later_weights_attests_the_earlier_ones_and_not_the_other_way_round() -> None:
    history = past(
        *TWO,
        started(0, "a"),
        attested(0, 1, "a"),
        started(1, "b"),
        attested(1, 2, "b"),
        started(2, "c"),
    )
    assert [history.attested(number) for number in range(4)] == [{1, 2}, {2}, frozenset(), frozenset()]


def test_whoever_rejected_weights_and_attests_later_ones_does_not_attest_the_rejected() -> None:
    history = past(
        *TWO,
        *(started(number, text) for number, text in enumerate("abc")),
        rejected(0, 1, "a"),
        rejected(1, 1, "b"),
        attested(2, 1, "c"),
        attested(2, 2, "c"),
    )
    assert [history.attested(number) for number in range(3)] == [{2}, {2}, {1, 2}]
    assert [history.is_finalized(number) for number in range(4)] == [False, False, True, False]
    assert [verdict.finalized for verdict in verdicts(history)] == [False, False, True]


def test_attestations_of_withdrawn_weights_count_no_more() -> None:
    history = past(*TWO, started(0, "a"), started(1, "b"), attested(1, 1, "b"), withdrawn(1, "b"), started(1, "c"))
    assert [history.attested(number) for number in range(2)] == [frozenset(), frozenset()]
    assert [entry.node_id for entry in history.withdrawn[0].attestations] == [1]


@pytest.mark.parametrize(
    "odd",
    [
        published(7, 1, "odd"),
        closed(7, 1),
        attested(7, 1, "odd"),
        rejected(7, 1, "odd"),
        withdrawn(7, "odd"),
        {"name": HEADER_VOTED, "node_id": 1},
    ],
    ids=lambda event: event["name"],
)
def test_an_event_of_a_round_that_never_was_changes_no_round(odd: dict[str, Any]) -> None:
    for place in range(len(ROUND_0) + 1):
        history = past(*ROUND_0[:place], odd, *ROUND_0[place:])
        expected = past(*ROUND_0)
        assert [round_.started.cid for round_ in history.rounds] == [round_.started.cid for round_ in expected.rounds]
        assert [cids(round_.published) for round_ in history.rounds] == [
            cids(round_.published) for round_ in expected.rounds
        ]
        assert [round_.members for round_ in history.rounds] == [round_.members for round_ in expected.rounds]
        assert history.withdrawn == ()


# Terms


def test_the_terms_are_those_of_the_plan() -> None:
    for learners, least, asynchronous in itertools.product((1, 3), (0, 1), (False, True)):
        plan = Plan.model_validate(
            {
                "name": "test",
                "learners": learners,
                "min_learners": least,
                "round_timeout": 7,
                **({"mode": "async", "aggregation": {"rule": "fedasync"}} if asynchronous else {}),
            }
        )
        terms = terms_of(plan)
        assert (terms.learners, terms.min_learners) == (learners, plan.required_learners)
        assert terms.min_learners == (least or learners)
        assert (terms.round_timeout, terms.asynchronous) == (7, asynchronous)


@pytest.mark.parametrize(("seconds", "blocks"), [(0, 0), (0.001, 1), (1, 1), (1.5, 2), (1_000_000, 1_000_000)])
def test_a_timeout_in_terms_is_in_whole_seconds_and_never_shorter_than_the_plans(seconds: float, blocks: int) -> None:
    assert terms_of(Plan.model_validate({"name": "test", "round_timeout": seconds})).round_timeout == blocks


# The end of a history, without what came before


class Node:
    """A contract of which only the log and the learners are asked."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._log = log(*events)

    def log(self, first: int = 0) -> list[LogEntry]:
        return [entry for entry in self._log if entry.block >= first]

    def learners(self) -> tuple[int, ...]:
        return (1, 2)


WITHDRAWALS: dict[str, list[dict[str, Any]]] = {
    "before": [started(1, "a"), started(2, "b"), withdrawn(2, "b"), started(2, "c"), started(3, "d")],
    "with later ones": [
        *(started(n, f"old {n}") for n in (1, 2, 3)),
        withdrawn(1, "old 1"),
        *(started(n, f"new {n}") for n in (1, 2, 3)),
    ],
    "twice": [
        *(started(1, "a"), withdrawn(1, "a"), started(1, "b")),
        *(started(2, "c"), withdrawn(2, "c"), started(2, "d")),
        started(3, "e"),
    ],
    "of the round itself": [
        *(started(n, f"old {n}") for n in (1, 2, 3)),
        *(withdrawn(3, "old 3"), started(3, "new 3")),
    ],
}


@pytest.mark.parametrize("events", WITHDRAWALS.values(), ids=WITHDRAWALS)
def test_the_end_of_a_history_is_read_from_any_block_although_weights_were_withdrawn_before(
    events: list[dict[str, Any]],
) -> None:
    node = Node(*TWO, started(0, "first"), *events, published(3, 1, "local"), started(4, "last"))
    whole = arrange(PLAN, DEPLOYER, node.log())
    for block in range(0, whole.rounds[3].started.block, 10):
        end = read_from(node, 3, block)  # type: ignore[arg-type]
        assert end.rounds[3:] == whole.rounds[3:], block


def test_a_history_that_begins_elsewhere_is_of_another_chain() -> None:
    node = Node(*TWO, *(started(n, str(n)) for n in range(5)))
    with pytest.raises(LogError, match="blocks were replaced"):
        read_from(node, 3, 70)  # type: ignore[arg-type]
