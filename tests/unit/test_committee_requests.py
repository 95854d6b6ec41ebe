"""How many requests a learner makes to its node in a round that a committee verifies."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fl_node.artifacts import cid
from fl_node.chain.contract import Contract, View
from fl_node.chain.rpc import NodeProvider
from fl_node.plan.schema import Plan
from fl_node.roles import learner, loop
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Done, Waiting
from tests.helpers.network import Network

ROUNDS = 2
SIZE = 2
MOST_TURNS = 60
MOST_REQUESTS = 18.0
"""The mean of a learner's round: about four looks, the draw of the committee, the waits for it and for the end, and a
transaction of four requests. A member of the committee does not wait for it, but reads the round before."""


class Counted:
    """Roles that take turns: in each, a role does what its loop does when its node reports a block."""

    def __init__(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By node and round."""
        self._network = network
        self._contract = network.as_node("header")
        self.said: list[Waiting] = []
        """All waits of learners."""
        self._waits: dict[str, Waiting] = {}
        self._now: tuple[str, int] | None = None
        post = NodeProvider._post

        def counted(provider: NodeProvider, body: bytes) -> bytes:
            if self._now is not None:
                self.requests[self._now] += 1
            return post(provider, body)

        monkeypatch.setattr(NodeProvider, "_post", counted)

    def play(self) -> None:
        """Play until all roles have ended."""
        playing = list(self._network.nodes)
        for _ in range(MOST_TURNS):
            playing = [node for node in playing if not self._turn(node)]
            if not playing:
                return
        raise AssertionError(f"{playing} have not ended")

    def _turn(self, node: str) -> bool:
        """Let a role act until it waits for others; return whether it has ended."""
        role, round_ = self._network.role(node), self._contract.round()
        while True:
            role._site.chain.newest()  # as its node reports by itself, so it is not counted
            self._now = node, round_
            try:
                if (waiting := self._waits.get(node)) is not None and _goes_on(waiting):
                    return False
                new = role.step()
                if isinstance(role, Learner) and role._verifier is not None:
                    role._verifier._worker.submit(lambda: None).result()
            except Done:
                self._network.kill(node)
                return True
            finally:
                self._now = None
            if new is None:
                self._waits.pop(node, None)
            else:
                self._waits[node] = new
                if isinstance(role, Learner):
                    self.said.append(new)
                if new.watch is None:
                    return False


def _goes_on(waiting: Waiting) -> bool:
    return waiting.watch is not None and waiting.watch() == waiting.seen


def committee_plan(learners: int) -> Plan:
    return plan(learners, verification="committee", committee=SIZE)


def plan(learners: int, **settings: object) -> Plan:
    return Plan.model_validate({"name": "counted", "learners": learners, "rounds": ROUNDS, **settings})


@pytest.mark.parametrize("learners", [3, 8])
def test_a_round_takes_few_requests_however_many_learners_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learners: int
) -> None:
    network = Network(tmp_path, committee_plan(learners))
    try:
        counted = Counted(network, monkeypatch)
        counted.play()
    finally:
        network.close()
    requests = [counted.requests[node, 1] for node in network.learners]
    assert min(requests) > 0
    assert sum(requests) / learners <= MOST_REQUESTS


@pytest.mark.parametrize("settings", [{"verification": "none"}, {"verification": "committee", "committee": SIZE}])
def test_of_many_learners_each_says_how_many_must_act_and_asks_for_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    monkeypatch.setattr(learner, "NAMED", 4)
    asked = []
    read = Contract.local_weights

    def local_weights(contract: Contract, *arguments: Any) -> dict[int, str]:
        asked.append(contract.chain.account)
        return read(contract, *arguments)

    monkeypatch.setattr(Contract, "local_weights", local_weights)
    network = Network(tmp_path, plan(5, **settings))
    try:
        counted = Counted(network, monkeypatch)
        counted.play()
        accounts = {network.as_node(node).chain.address: node for node in network.learners}
    finally:
        network.close()
    assert counted.requests["learner-5", 1] > 0
    assert not [account for account in asked if account is not None and account.address in accounts]
    waits = [waiting for waiting in counted.said if waiting.reason == "round_end" and waiting.round == 1]
    assert {waiting.learners for waiting in waits} <= {None, ()}
    assert any(re.search(r"\b[1-4] of 5 learners", waiting.detail) for waiting in waits)


def test_of_many_learners_each_looks_less_often_while_it_waits_for_the_committee_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FEW", 2)
    network = Network(tmp_path, committee_plan(5))
    try:
        counted = Counted(network, monkeypatch)
        counted.play()
    finally:
        network.close()
    factors = {(waiting.reason, waiting.look_again_factor) for waiting in counted.said}
    assert {("attestation", 3), ("round_end", 3)} <= factors
    assert {("attestation", 1), ("round_end", 1)}.isdisjoint(factors)


def test_a_view_takes_one_request_and_another_where_a_block_came_or_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(tmp_path, committee_plan(3))
    requests = 0
    post = NodeProvider._post

    def counted(provider: NodeProvider, body: bytes) -> bytes:
        nonlocal requests
        requests += provider is contract.chain._provider
        return post(provider, body)

    def view() -> View:
        """Return a view, compared with that of a process which knows nothing from before."""
        seen = contract.view(contract.chain.address, (1, 2))
        assert seen == network.as_node("learner-1").view(contract.chain.address, (1, 2))
        return seen

    try:
        contract, name = network.as_node("learner-1"), cid.of_bytes(b"local")
        monkeypatch.setattr(NodeProvider, "_post", counted)
        first = view()
        assert (first.node_id, first.published, first.record.published) == (1, None, 0)
        assert first.attested == {1: False, 2: False}
        requests = 0
        assert view() == first
        assert requests == 1
        assert contract.set_local_weight(1, name, first.nonce) is not None
        requests = 0
        after = view()
        assert requests == 2
        assert (after.published, after.record.published, after.nonce) == (name, 1, first.nonce + 1)
        assert after.attested == {1: True, 2: False}
        # The node that it asks no longer has the block of which it asks first.
        network.lose_blocks(1)
        assert view() == first
        assert contract.set_local_weight(1, name, first.nonce) is not None
        assert network.let_learners_close_the_round()
        network.lie()
        following = view()
        assert (following.state.round, following.published) == (1, None)
        requests = 0
        assert view() == following
        assert requests == 1
    finally:
        network.close()
