"""What is seen of a run, from what a node answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.artifacts import cid
from fl_node.artifacts.model_file import GlobalMeta, Input, LocalMeta, Rejection
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract, LogEntry
from fl_node.errors import ChainError
from fl_node.monitor import state
from fl_node.monitor.state import Action, BlockView, FileFacts
from fl_node.plan.schema import Plan
from fl_node.protocol.awaited import awaited
from fl_node.protocol.history import History, arrange
from tests.helpers.accounts import ALICE, BOB, HEADER, MALLORY, POOR
from tests.helpers.chain import OPEN

PLAN = Plan.model_validate({"name": "small", "rounds": 2, "learners": 2, "data": {"name": "digits"}})
NAMES = {HEADER.address: "header", ALICE.address: "learner 1", BOB.address: "learner 2"}
FILES = {
    name: cid.of_bytes(name.encode()) for name in ("plan", "global 0", "global 1", "local 1", "local 2", "other")
}


def publish(entries: list[tuple[str, int, int | None, str]]) -> History:
    """A history of these events: their name, round, nodeId and file; both learners are registered."""
    log = [
        LogEntry(number, 0, "LearnerRegistered", "0x0", node_id=number, account=account.address)
        for number, account in ((1, ALICE), (2, BOB))
    ]
    log += [
        LogEntry(number, 0, name, f"0x{number}", round_, node_id, FILES[file])
        for number, (name, round_, node_id, file) in enumerate(entries, 3)
    ]
    return arrange(FILES["plan"], HEADER.address, log)


ONE_ROUND = publish(
    [
        ("GlobalWeightSet", 0, None, "global 0"),
        ("LocalWeightSet", 0, 1, "local 1"),
        ("LocalWeightSet", 0, 2, "local 2"),
        ("GlobalWeightSet", 1, None, "global 1"),
    ]
)


def local(node_id: int, accuracy: float) -> FileFacts:
    return FileFacts("read", LocalMeta(FILES["plan"], node_id, 0, FILES["global 0"], 10, accuracy, 0.5))


# Transactions


def test_every_transaction_of_a_run_is_told_in_words(rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    start = chain.block_number()
    contract = chain.contract(str(chain.deploy(FILES["plan"], OPEN).contract))
    contract.register_learner(1, ALICE.address, chain.nonce())
    contract.register_learners({2: BOB.address, 4: POOR.address}, chain.nonce())
    contract.set_global_weight(FILES["global 0"], chain.nonce())
    learner = Chain(rpc, ALICE)
    Contract(learner, contract.address).set_local_weight(1, FILES["local 1"], learner.nonce())
    contract.set_global_weight(FILES["global 1"], chain.nonce())
    chain.transfer(MALLORY.address, 10**18)
    learner.send_noop()

    actions = [action for view in views(chain, start + 1, contract.address) for action in view.actions]

    assert [action.kind for action in actions] == [
        "deploy",
        "register",
        "register",
        "global",
        "local",
        "global",
        "transfer",
        "noop",
    ]
    address, short = state.short(contract.address), {name: state.short(file) for name, file in FILES.items()}
    assert [action.text for action in actions] == [
        f"header deployed the contract {address} for plan {short['plan']}",
        f"header registered {state.short(ALICE.address)} as learner 1",
        "header registered learners 2, 4",
        f"header published the initial weights {short['global 0']}",
        f"learner 1 set local weights {short['local 1']} in round 0",
        f"header published global weights 1, {short['global 1']}",
        f"header sent 1 ether to {state.short(MALLORY.address)}",
        "learner 1 sent a no-op transaction",
    ]
    assert [action.cid for action in actions[3:6]] == [FILES["global 0"], FILES["local 1"], FILES["global 1"]]
    assert all(action.gas and action.ok for action in actions)


def test_what_belongs_to_another_run_is_told_apart(rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    start = chain.block_number()
    contract = chain.contract(str(chain.deploy(FILES["plan"], OPEN).contract))
    contract.set_global_weight(FILES["global 0"], chain.nonce())
    (_, last) = views(chain, start + 1, MALLORY.address)
    assert "another run" in last.actions[0].text


def views(chain: Chain, first: int, contract: str) -> list[BlockView]:
    blocks = []
    for number in range(first, chain.block_number() + 1):
        block, receipts = chain.ask(
            ("eth_getBlockByNumber", [hex(number), True]), ("eth_getBlockReceipts", [hex(number)])
        )
        blocks.append(state.block_view(block, receipts, contract, NAMES))
    return blocks


def transaction(data: bytes, to: str | None) -> dict[str, str | None]:
    return {"from": MALLORY.address, "to": to, "hash": "0x1", "input": "0x" + data.hex(), "value": "0x0"}


SELECTORS = [bytes.fromhex(text) for text in ("", "00000000")] + list(state._calls())


@given(st.sampled_from(SELECTORS), st.binary(max_size=100), st.sampled_from([None, BOB.address]))
def test_whatever_a_transaction_holds_there_are_words_for_it(selector: bytes, rest: bytes, to: str | None) -> None:
    described = state.action(transaction(selector + rest, to), None, BOB.address, NAMES)
    assert isinstance(described, Action)
    assert described.text.startswith(state.short(MALLORY.address))


def test_a_block_that_is_none_is_refused() -> None:
    with pytest.raises(ChainError, match="invalid block"):
        state.block_view({"number": "0x1"}, [], None, {})


def test_a_block_without_a_signature_has_no_sealer(rpc: str) -> None:
    (view,) = views(Chain(rpc), Chain(rpc).block_number(), BOB.address)
    assert view.sealer is None


# Rounds


def test_a_round_shows_what_its_files_say_of_themselves() -> None:
    files = {FILES["local 1"]: local(1, 0.9), FILES["local 2"]: local(2, 0.8)}
    first, second = state.rounds(ONE_ROUND, files, {FILES["global 1"]: 0.95}, "sync")
    assert {node_id: file.accuracy for node_id, file in first.local.items()} == {1: 0.9, 2: 0.8}
    assert first.result is not None
    assert first.result.accuracy == 0.95
    assert (second.round, second.result, second.local) == (1, None, {})


def test_a_file_that_was_not_read_yet_is_shown_as_coming() -> None:
    (first, _) = state.rounds(ONE_ROUND, {}, {}, "sync")
    assert first.local[1].state == "coming"
    assert first.local[1].accuracy is None


def test_a_round_shows_whom_its_global_file_rejected_or_missed() -> None:
    meta = GlobalMeta(
        *(FILES["plan"], 1, FILES["global 0"], "fedavg"),
        inputs=(Input(1, FILES["local 1"], 10, 1.0),),
        refused=(Rejection(2, FILES["local 2"], "NaN"),),
        absent=(3,),
    )
    (first, _) = state.rounds(ONE_ROUND, {FILES["global 1"]: FileFacts("read", meta)}, {}, "sync")
    assert first.rejected == {2: "NaN"}
    assert first.missing_learners == (3,)


def test_an_asynchronous_round_has_the_updates_that_were_taken_in_it() -> None:
    past = publish(
        [
            ("GlobalWeightSet", 0, None, "global 0"),
            ("LocalWeightSet", 0, 1, "local 1"),
            ("LocalWeightSet", 0, 2, "local 2"),
            ("GlobalWeightSet", 1, None, "global 1"),
            ("GlobalWeightSet", 2, None, "other"),
        ]
    )
    meta = GlobalMeta(
        *(FILES["plan"], 2, FILES["global 1"], "fedasync"), inputs=(Input(2, FILES["local 2"], 10, 1.0, 0),)
    )
    rounds = state.rounds(past, {FILES["other"]: FileFacts("read", meta)}, {}, "async")
    assert list(rounds[1].local) == [2]
    assert rounds[1].local[2].block == 5  # where it was published, a round before


# What nodes wait for


def test_before_the_first_weights_the_header_has_to_publish_them() -> None:
    assert "initial weights" in state.waits(publish([]), PLAN)["header"]


def test_who_has_published_waits_and_the_header_waits_for_the_rest() -> None:
    past = publish([("GlobalWeightSet", 0, None, "global 0"), ("LocalWeightSet", 0, 2, "local 2")])
    assert state.waits(past, PLAN) == {
        "header": "waits for learner 1",
        "learner-1": "should publish in round 0",
        "learner-2": "waits for round 0 to close",
    }


def test_when_all_have_published_the_header_has_to_close_the_round() -> None:
    past = publish(
        [
            ("GlobalWeightSet", 0, None, "global 0"),
            ("LocalWeightSet", 0, 1, "local 1"),
            ("LocalWeightSet", 0, 2, "local 2"),
        ]
    )
    assert state.waits(past, PLAN)["header"] == "should publish global weights 1"


def test_a_learner_that_was_never_registered_is_waited_for() -> None:
    past = publish(
        [
            ("GlobalWeightSet", 0, None, "global 0"),
            ("LocalWeightSet", 0, 1, "local 1"),
            ("LocalWeightSet", 0, 2, "local 2"),
        ]
    )
    three = Plan.model_validate(PLAN.model_dump() | {"learners": 3})
    assert state.waits(past, three)["header"] == "waits for 1 more to register"


def test_nobody_waits_once_the_run_has_ended() -> None:
    finished = Plan.model_validate(PLAN.model_dump() | {"rounds": 1})
    assert set(state.waits(ONE_ROUND, finished).values()) == {"finished"}
    assert set(state.waits(ONE_ROUND, PLAN, budget_over=True).values()) == {"finished"}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_learner_that_has_spent_its_privacy_budget_is_not_waited_for(mode: str) -> None:
    dp = {"noise_multiplier": 1.0, "epsilon_max": 1e-3}
    settings = {"mode": "async", "aggregation": {"rule": "fedasync"}} if mode == "async" else {}
    plan = Plan.model_validate(PLAN.model_dump() | {"privacy": {"dp": dp}} | settings)
    past = publish([("GlobalWeightSet", 0, None, "global 0")])
    waits = state.waits(past, plan)
    assert {waits["learner-1"], waits["learner-2"]} == {"has spent its privacy budget"}
    assert awaited(plan, past) == ()
    assert awaited(PLAN, past) == (1, 2)
    assert state.taken(past, {}) is None
    assert state.taken(past, {FILES["global 0"]: FileFacts("read", GlobalMeta("", 0, None, "fedasync"))}) == {}


MASKED = Plan.model_validate(
    PLAN.model_dump()
    | {
        "learners": 3,
        "aggregation": {"rule": "fedavg", "arithmetic": "fixed"},
        "privacy": {"secure_aggregation": True},
    }
)


ALL_PUBLISHED = [
    ("GlobalWeightSet", 0, None, "global 0"),
    ("LocalWeightSet", 0, 1, "local 1"),
    ("LocalWeightSet", 0, 2, "local 2"),
    ("LocalWeightSet", 0, 3, "other"),
]
CLOSED = [*ALL_PUBLISHED, ("RoundClosed", 0, None, "other")]


def test_with_masks_those_who_have_to_announce_a_key_or_to_open_a_round_are_named() -> None:
    past = publish([("KeyAnnounced", 0, 1, "other")])
    waits = state.waits(past, MASKED)
    assert awaited(MASKED, past) == (2, 3)
    assert waits["header"] == "waits for learners 2, 3 to announce a key"
    assert waits["learner-2"] == "should announce a key for its masks"
    assert waits["learner-1"] != waits["learner-2"]
    closed = [*CLOSED, ("MasksOpened", 0, 1, "other")]
    past = publish(closed)
    waits = state.waits(past, MASKED)
    assert awaited(MASKED, past) == (2, 3)
    assert waits["header"] == "waits for learners 2, 3 to open round 0"
    assert waits["learner-2"] == "should open round 0"
    assert waits["learner-1"] == "waits for round 0 to end"
    past = publish([*closed, ("MasksOpened", 0, 2, "other"), ("MasksOpened", 0, 3, "other")])
    assert state.waits(past, MASKED)["header"] == "should publish global weights 1"


def test_a_closed_round_with_masks_waits_for_the_file_that_is_missing_and_for_nobody_else() -> None:
    past = publish(CLOSED)
    assert awaited(MASKED, past) == (1, 2, 3)
    assert awaited(MASKED, past, {2}) == (2,)
    coming = {FILES["local 2"]: FileFacts("coming")}
    assert state.waits(past, MASKED, coming) == state.waits(past, MASKED)
    waits = state.waits(past, MASKED, {FILES["local 2"]: FileFacts("missing")})
    assert waits["learner-2"] == "should provide its file of round 0"
    assert {waits[name] for name in ("header", "learner-1", "learner-3")} == {"waits for the file of learner 2"}


def test_a_round_with_masks_that_can_never_end_is_told_with_the_reason() -> None:
    past = publish(ALL_PUBLISHED)
    bad = {FILES["other"]: FileFacts("bad", problem="no model")}
    assert state.stuck(past, MASKED, bad) == ""
    past = publish(CLOSED)
    assert "no model" in state.stuck(past, MASKED, bad)
    assert state.stuck(past, MASKED, {}) == state.stuck(past, PLAN, bad) == ""


def test_what_nodes_published_last_is_counted() -> None:
    last = state.last_publications(ONE_ROUND)
    assert (last["header"][0], last["header"][1].round) == (2, 1)
    assert last["learner-2"] == (1, state.LastPublication(0, FILES["local 2"], 5))
