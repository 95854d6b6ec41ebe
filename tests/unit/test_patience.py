"""Timeouts that grow with the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_node.artifacts import ipfs_api
from fl_node.artifacts.ipfs_api import IpfsApi
from fl_node.chain.contract import LOCAL_WEIGHT_SET
from fl_node.plan.schema import Plan
from fl_node.protocol import patience
from fl_node.protocol.committee import committee_of
from fl_node.protocol.names import learner_name
from tests.helpers.network import Network
from tests.helpers.stub import StubTrainer

PLAN = Plan.model_validate({"name": "patient", "learners": 2, "rounds": 2, "verification": "all"})
VALUES = 16


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    network = Network(tmp_path, PLAN)
    yield network
    network.close()


def test_a_header_has_the_time_that_the_files_of_a_round_need() -> None:
    assert patience.header_timeout(PLAN, {}) == PLAN.header_timeout
    large = {"a": (1000, 1000), "b": (249, 1_000_000)}
    assert patience.header_timeout(PLAN, large) == PLAN.header_timeout + 3 * 1e9 / patience.SLOWEST


def test_a_committee_has_the_same_time_and_in_a_round_with_a_timeout_half_of_that_at_most() -> None:
    large = {"a": (250, 1_000_000)}
    seconds = PLAN.header_timeout + 3 * 1e9 / patience.SLOWEST
    assert patience.committee_timeout(PLAN, {}) == PLAN.header_timeout
    assert patience.committee_timeout(PLAN, large) == seconds
    for round_timeout, expected in ((100.0, 50.0), (10 * seconds, seconds)):
        timed = PLAN.model_copy(update={"round_timeout": round_timeout})
        assert patience.committee_timeout(timed, large) == expected


def test_a_learner_verifies_when_a_committee_has_had_that_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SLOWEST", 4 * 4 * VALUES / 1000)
    plan = Plan.model_validate(
        {"name": "patient", "learners": 3, "rounds": 1, "verification": "committee", "committee": 1}
    )
    network = Network(tmp_path, plan)
    contract = network.as_node("header")
    (silent,) = committee_of(contract, 0, str(contract.global_weight_at(0)), range(1, 4), 1).members
    other = next(node for node in network.learners if node != learner_name(silent))
    published = []
    try:
        for seconds in (0, 0, plan.header_timeout + 1, 900, 100):
            network.clock.sleep(seconds)
            for _ in range(4):  # also to read the files, in the background
                network.step(other)
                network.role(other)._verifier._worker.submit(lambda: None).result()  # type: ignore[union-attr]
            published.append(sum(entry.name == LOCAL_WEIGHT_SET for entry in network.log()))
    finally:
        network.close()
    assert published == [0, 0, 0, 0, 1]


def test_learners_vote_when_a_header_has_had_that_time(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(values.size for values in StubTrainer(PLAN).initial().values()) == VALUES
    monkeypatch.setattr(patience, "SLOWEST", 3 * 4 * VALUES / 1000)
    assert network.let_learners_close_the_round()
    votes = []
    for seconds in (PLAN.header_timeout + 1, 900, 100):
        for node in network.learners * 3:  # also to read the files, in the background
            network.step(node)
        network.clock.sleep(seconds)
        for node in network.learners:
            network.role(node)._verifier._worker.submit(lambda: None).result()  # type: ignore[union-attr]
            network.step(node)
        votes.append(sum(entry.name == "HeaderVoted" for entry in network.log()))
    assert votes[:2] == [0, 0]
    assert votes[2] > 0


def test_a_daemon_has_the_time_that_a_file_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float] = []

    def call(_name: str, _options: object, timeout: float, body: Iterator[bytes], _headers: object) -> Any:
        timeouts.append(timeout)
        list(body)
        raise ipfs_api.Refused("enough")

    api, path = IpfsApi("http://127.0.0.1:1/api/v0/", 30.0), tmp_path / "file"
    monkeypatch.setattr(api, "call", call)
    for size in (0, 2 * ipfs_api.SLOWEST_ADD):
        with path.open("wb") as file:
            file.truncate(size)
        with pytest.raises(ipfs_api.Refused):
            api.add(path, {})
    assert timeouts == [30.0, 32.0]
