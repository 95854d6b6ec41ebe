"""Which files a plan with retention lets go, and the signed results of audits that speak of them afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fl_node.audit.pruned import PRUNED, note_pruned
from fl_node.audit.result import Audit, Deed, PrunedRound
from fl_node.chain.contract import LogEntry
from fl_node.errors import ConfigError, JournalError
from fl_node.plan.schema import Plan
from fl_node.protocol import journal, statement
from fl_node.protocol.history import History, arrange
from fl_node.protocol.retention import first_kept, prunable
from fl_node.protocol.statement import Statement
from tests.helpers.accounts import ALICE, BOB

CONTRACT = "0x" + "ab" * 20


def plan(rounds: int | None) -> Plan:
    settings: dict[str, Any] = {"name": "small", "data": {"name": "digits"}, "learners": 3}
    return Plan.model_validate(settings | ({"retention": {"rounds": rounds}} if rounds else {}))


def run(rounds: int, attesting: Sequence[int] = (1, 2, 3), silent: Sequence[int] = (), again: int = -1) -> History:
    """A run in which so many rounds ended; ``again`` started twice, for its first weights were withdrawn."""
    log: list[LogEntry] = []

    def add(name: str, **fields: Any) -> None:
        log.append(LogEntry(len(log), 0, name, f"0x{len(log)}", **fields))

    for node_id in (1, 2, 3):
        add("LearnerRegistered", node_id=node_id, account=f"0x{node_id}")
    for number in range(rounds + 1):
        if number == again:
            add("GlobalWeightSet", round=number, cid=f"false {number}")
            add("LocalWeightSet", round=number, node_id=1, cid=f"local {number} of 1")
            add("GlobalWeightWithdrawn", round=number, cid=f"false {number}")
        add("GlobalWeightSet", round=number, cid=f"global {number}")
        if number == rounds:
            break
        for node_id in (1, 2, 3):
            add("LocalWeightSet", round=number, node_id=node_id, cid=f"local {number} of {node_id}")
            if node_id in attesting and number not in silent:
                add("GlobalWeightAttested", round=number, node_id=node_id, cid=f"global {number}")
    return arrange("plan", "0xheader", log)


@pytest.mark.parametrize(
    ("kept", "rounds", "first"), [(None, 9, 0), (3, 0, 0), (3, 3, 0), (3, 4, 1), (3, 9, 6), (1, 9, 8), (20, 9, 0)]
)
def test_files_of_the_last_rounds_stay(kept: int | None, rounds: int, first: int) -> None:
    assert first_kept(plan(kept), run(rounds)) == first


def test_files_of_rounds_that_are_not_finalized_stay() -> None:
    assert first_kept(plan(1), run(9, attesting=(1,))) == 0, "one of three is no majority"
    assert first_kept(plan(1), run(9, silent=range(4, 9))) == 3, "of global weights 3 the last attestation speaks"


def test_only_local_files_of_a_learner_go() -> None:
    past = run(4)
    assert list(prunable(past, past.rounds[0], 2)) == ["local 0 of 2"]
    assert list(prunable(past, past.rounds[0])) == [f"local 0 of {n}" for n in (1, 2, 3)]


def test_files_of_withdrawn_rounds_stay_as_evidence() -> None:
    past = run(5, again=2)
    assert list(prunable(past, past.rounds[2])) == ["local 2 of 2", "local 2 of 3"]


def test_a_learner_that_publishes_the_hash_of_a_global_file_does_not_have_it_deleted() -> None:
    log = [LogEntry(n, 0, "LocalWeightSet", f"0x{n}", round=0, node_id=1, cid="global 3") for n in (90,)]
    past = run(4)
    first = past.rounds[0]
    changed = type(first)(first.number, first.started, tuple(log))
    assert list(prunable(past, changed, 1)) == []


def test_what_is_pruned_is_noted_in_groups() -> None:
    result = Audit()
    alice, bob = (lambda t: Deed("learner 1", ALICE.address, t)), (lambda t: Deed("learner 2", BOB.address, t))
    rounds = [PrunedRound(n, (alice(n), bob(n)), (alice(100.0),)) for n in (0, 1, 2)]
    rounds += [PrunedRound(3, (alice(3),)), PrunedRound(5)]
    note_pruned(rounds, 10, result)
    assert [(note.code, note.round) for note in result.notes] == [(PRUNED, 0), (PRUNED, 3), (PRUNED, 5)]
    assert result.passed
    assert all(account in result.notes[0] for account in (ALICE.address, BOB.address))


def made(**changes: Any) -> Statement:
    fields = {"contract": CONTRACT, "plan": "QmPlan", "account": ALICE.address, "time": 1.5, "weights": {3: "Qm3"}}
    return Statement(**fields | changes)


def test_a_signed_result_comes_out_as_it_went_in(tmp_path: Path) -> None:
    path = tmp_path / "one.audit.json"
    path.write_bytes(statement.signed(made(), ALICE))
    assert statement.read(path) == made()
    assert list(statement.find(tmp_path)) == [path]


@pytest.mark.parametrize(
    "change",
    [
        {"account": BOB.address},
        {"weights": {"3": "Qm4"}},
        {"weights": {"4": "Qm3"}},
        {"time": 2.5},
        {"contract": "0x" + "cd" * 20},
        {"plan": "QmOther"},
        {"signature": "0x" + "00" * 65},
        {"signature": "0x12"},
        {"signature": "no number"},
        {"signature": 5},
        {"weights": ["Qm3"]},
        {"weights": {"three": "Qm3"}},
        {"weights": {"-1": "Qm3"}},
        {"weights": {"3": 3}},
        {"time": "yesterday"},
        {"time": 1e30},
        {"more": 1},
    ],
)
def test_a_changed_result_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "one.audit.json"
    path.write_text(json.dumps(json.loads(statement.signed(made(), ALICE)) | change))
    with pytest.raises(JournalError):
        statement.read(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b"{" * 1000])
def test_junk_is_no_signed_result(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "one.audit.json"
    path.write_bytes(content)
    with pytest.raises(JournalError):
        statement.read(path)


def test_a_pipe_in_the_place_of_a_result_or_a_journal_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (statement.read, journal.read):
        with pytest.raises(ConfigError, match=str(tmp_path / "pipe")):
            read(tmp_path / "pipe")


def test_a_result_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        statement.read(tmp_path / "none.audit.json")


def test_somebody_elses_signature_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.audit.json"
    path.write_bytes(statement.signed(made(), BOB))
    with pytest.raises(JournalError):
        statement.read(path)
