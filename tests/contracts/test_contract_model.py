"""Any sequence of calls by anyone leaves the contract as a few lines of Python say."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from deployment import ACCOUNTS, HEADER, PLAN, ZERO_ADDRESS, ZERO_HASH, Deployment, Event, Refusal, sha
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from web3 import Web3

# Thousands of blocks say no more on Geth than on py-evm, whose blocks are quicker.
pytestmark = pytest.mark.parametrize("w3", ["py-evm"], indirect=True)

ADDRESSES = [account.address for account in ACCOUNTS.values()]
NODES = [0, 1, 2, 2**256 - 1]
HASHES = [ZERO_HASH, *(sha(f"weights {number}") for number in range(6)), b"\xff" * 32]

# Good calls are more likely than each bad one, or few sequences would get anywhere.
callers = st.sampled_from(["header", "header", *ACCOUNTS])
accounts = st.sampled_from([*ADDRESSES, *ADDRESSES, ZERO_ADDRESS])
nodes = st.sampled_from([*NODES[1:], *NODES])
hashes = st.sampled_from([*HASHES[1:], *HASHES])


class Refused(Exception):
    """The model refuses a call."""

    def __init__(self, error: str, *args: object) -> None:
        self.refusal = Refusal(error, args)


@dataclass
class Model:
    """The contract as it should be."""

    header: str
    accounts: dict[int, str] = field(default_factory=dict)
    global_weights: list[bytes] = field(default_factory=list)
    local_weights: dict[tuple[int, int], bytes] = field(default_factory=dict)
    latest: dict[int, bytes] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def round(self) -> int:
        return max(0, len(self.global_weights) - 1)

    def register(self, caller: str, node: int, account: str) -> None:
        if caller != self.header:
            raise Refused("NotHeader", caller)
        if node == 0:
            raise Refused("InvalidNodeId")
        if account in (ZERO_ADDRESS, self.header):
            raise Refused("InvalidAccount", account)
        if node in self.accounts or account in self.accounts.values():
            raise Refused("AlreadyRegistered", node, account)
        self.accounts[node] = account
        self.events.append(Event("LearnerRegistered", (node, account)))

    def set_local(self, caller: str, node: int, weights: bytes) -> None:
        if self.accounts.get(node) != caller:
            raise Refused("NotLearner", node, caller)
        if weights == ZERO_HASH:
            raise Refused("EmptyHash")
        if not self.global_weights:
            raise Refused("NotStarted")
        self.local_weights[self.round, node] = self.latest[node] = weights
        self.events.append(Event("LocalWeightSet", (self.round, node, weights)))

    def set_global(self, caller: str, weights: bytes) -> None:
        if caller != self.header:
            raise Refused("NotHeader", caller)
        if weights == ZERO_HASH:
            raise Refused("EmptyHash")
        self.global_weights.append(weights)
        self.events.append(Event("GlobalWeightSet", (self.round, weights)))


class Calls(RuleBasedStateMachine):
    """Sends the same calls to a contract and to the model."""

    def __init__(self, w3: Web3) -> None:
        super().__init__()
        self.run = Deployment(w3)
        self.model = Model(HEADER.address)

    def both(self, caller: str, name: str, apply: Callable[..., None], *args: object) -> None:
        account = ACCOUNTS[caller]
        already = len(self.model.events)
        try:
            apply(account.address, *args)
        except Refused as refused:
            assert self.run.refused(account, name, *args) == refused.refusal
        else:
            receipt = self.run.write(account, name, *args)
            assert self.run.events(receipt["logs"]) == self.model.events[already:]

    @initialize(learners=st.sampled_from([2, 2, 1, 0]), started=st.sampled_from([True, True, False]))
    def begin(self, learners: int, started: bool) -> None:
        for node, name in list({1: "alice", 2: "bob"}.items())[:learners]:
            self.register("header", node, ACCOUNTS[name].address)
        if started:
            self.set_global("header", HASHES[1])

    @rule(caller=callers, node=nodes, account=accounts)
    def register(self, caller: str, node: int, account: str) -> None:
        self.both(caller, "registerLearner", self.model.register, node, account)

    @rule(caller=callers, weights=hashes)
    def set_global(self, caller: str, weights: bytes) -> None:
        self.both(caller, "setGlobalWeight", self.model.set_global, weights)

    @rule(caller=callers, node=nodes, weights=hashes)
    def set_local(self, caller: str, node: int, weights: bytes) -> None:
        self.both(caller, "setLocalWeight", self.model.set_local, node, weights)

    @precondition(lambda self: self.model.accounts)
    @rule(choice=st.integers(0, 10), weights=hashes)
    def set_local_as_registered(self, choice: int, weights: bytes) -> None:
        node, address = list(self.model.accounts.items())[choice % len(self.model.accounts)]
        caller = next(name for name, account in ACCOUNTS.items() if account.address == address)
        self.both(caller, "setLocalWeight", self.model.set_local, node, weights)

    @invariant()
    def every_getter_agrees(self) -> None:
        read, model = self.run.read, self.model
        published = [*model.global_weights, ZERO_HASH]
        assert read("header") == model.header
        assert read("plan") == PLAN
        assert read("round") == model.round
        assert read("learners") == list(model.accounts)
        assert read("getGlobalWeight") == (model.global_weights or [ZERO_HASH])[-1]
        assert [read("globalWeightAt", number) for number in range(len(published))] == published
        for address in [*ADDRESSES, ZERO_ADDRESS]:
            node = next((node for node, account in model.accounts.items() if account == address), 0)
            assert read("nodeIdOf", address) == node
        for node in NODES:
            assert read("accountOf", node) == model.accounts.get(node, ZERO_ADDRESS)
            assert read("getLocalWeight", node) == model.latest.get(node, ZERO_HASH)
            for number in range(len(published) if node else 1):
                expected = model.local_weights.get((number, node), ZERO_HASH)
                assert read("localWeightAt", number, node) == expected

    def teardown(self) -> None:
        assert self.run.history() == self.model.events


def test_any_sequence_of_calls_by_anyone_leaves_what_the_model_says(w3: Web3) -> None:
    run_state_machine_as_test(
        lambda: Calls(w3),
        settings=settings(
            max_examples=12,
            stateful_step_count=12,
            deadline=None,
            # To shrink a failure would take minutes on a chain; a dozen calls can be read as they are.
            phases=[Phase.reuse, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
