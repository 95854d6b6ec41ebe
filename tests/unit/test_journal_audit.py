"""Journals against the chain: what the audit fails for, what it only notes, and what honest sealers do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from eth_account.signers.local import LocalAccount

from fl_node.audit import journals
from fl_node.audit.journals import Evidence, check_journals
from fl_node.audit.result import Audit
from fl_node.chain.contract import Contract, LogEntry
from fl_node.plan.schema import Plan
from fl_node.protocol import journal
from fl_node.protocol.history import History, arrange
from fl_node.protocol.journal import FIRST, Entry
from tests.helpers.accounts import ALICE, BOB, HEADER, MALLORY
from tests.helpers.journals import ADDRESS, PLAN

NOW = 1_800_000_000
LENGTH = 100
"""Blocks of the chain."""
SEALERS = 3


def block_hash(height: int, fork: str = "") -> str:
    return f"0x{height:08x}{fork}"


def weights(round_: int, fork: str = "") -> str:
    return f"Qm{round_}{fork}"


class Chain:
    """A chain of so many blocks."""

    def blocks(self, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        return {number: {"hash": block_hash(number)} for number in numbers if number <= LENGTH}

    def block_number(self) -> int:
        return LENGTH


@pytest.fixture(autouse=True)
def three_sealers(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = frozenset(f"0x{number:040x}" for number in range(SEALERS))
    monkeypatch.setattr(journals.clique, "replay", lambda *_: (accounts, ()))


CONTRACT = cast(Contract, SimpleNamespace(address=ADDRESS, chain=Chain()))


def history(*cids: str, timed_out: Sequence[int] = (), withdrawn: str = "") -> History:
    """A run whose rounds started from these weights; in rounds that timed out two of three learners published."""
    log: list[LogEntry] = []

    def add(name: str, **fields: Any) -> None:
        log.append(LogEntry(10 * len(log), 0, name, f"0x{len(log)}", **fields))

    add("LearnerRegistered", node_id=1, account=ALICE.address)
    add("LearnerRegistered", node_id=2, account=BOB.address)
    for number, name in enumerate(cids):
        if withdrawn and number == 1:
            add("GlobalWeightSet", round=1, cid=withdrawn)
            add("GlobalWeightWithdrawn", round=1, cid=withdrawn)
        add("GlobalWeightSet", round=number, cid=name)
        if number in timed_out:
            for node_id in (1, 2):
                add("LocalWeightSet", round=number, node_id=node_id, cid="Qm")
            add("RoundClosed", round=number, members=3)
    return arrange("QmPlan", HEADER.address, log)


PAST = history(*(weights(number) for number in range(5)))


def entry(round_: int, height: int, *, fork: str = "", block: str | None = None, **fields: Any) -> dict[str, Any]:
    hash_ = block_hash(height, fork) if block is None else block
    common = {"kind": "opened", "sealed": NOW, "seen": NOW - 1000.0, "before": None, "top": height}
    return common | {"round": round_, "cid": weights(round_, fork), "block": hash_, "height": height} | fields


def written(
    path: Path,
    *entries: dict[str, Any],
    account: LocalAccount = ALICE,
    role: str = "learner",
    contract: str = ADDRESS,
) -> Path:
    head, lines = FIRST, []
    for number, fields in enumerate(entries):
        line = Entry(number=number, previous=head, contract=contract, role=role, account=account.address, **fields)
        lines.append(journal.signed(line, account))
        head = journal.digest(lines[-1])
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def audited(*paths: Path, past: History = PAST, plan: Plan = PLAN, newest: int = LENGTH) -> Audit:
    result = Audit()
    evidence = Evidence(tuple(journal.read(path) for path in paths), newest, NOW)
    check_journals(CONTRACT, plan, past, evidence, result)
    return result


def test_a_journal_that_agrees_with_the_chain_is_not_mentioned(tmp_path: Path) -> None:
    path = written(tmp_path / "j", entry(0, 10), entry(0, 15, kind="closed"), entry(1, 20))
    audit = audited(path)
    assert (audit.findings, audit.notes) == ([], [])


def test_weights_that_the_chain_no_longer_has_are_a_finding_that_says_what_is_there_now(tmp_path: Path) -> None:
    path = written(tmp_path / "j", entry(0, 10), entry(1, 20, fork="a"), entry(1, 25, fork="a", kind="closed"))
    (finding,) = audited(path).findings
    assert (finding.round, finding.node, finding.field) == (1, "learner 1", "journal")
    for part in (weights(1, "a"), "block 20", block_hash(20, "a"), weights(1)):
        assert part in finding.message


def test_a_round_that_the_chain_no_longer_has_is_a_finding(tmp_path: Path) -> None:
    (finding,) = audited(written(tmp_path / "j", entry(7, 90))).findings
    assert (finding.round, finding.node, finding.field) == (7, "learner 1", "journal")


@pytest.mark.parametrize(("on_top", "is_honest"), [(0, True), (SEALERS - 1, True), (SEALERS, False), (40, False)])
def test_what_a_role_saw_replaced_is_a_finding_if_too_many_blocks_were_on_top(
    tmp_path: Path, on_top: int, is_honest: bool
) -> None:
    path = written(tmp_path / "j", entry(1, 20, fork="a"), entry(1, 21, top=20 + on_top))
    audit = audited(path)
    assert [finding.round for finding in audit.findings] == ([] if is_honest else [1])
    assert bool(audit.notes) == is_honest


def test_rounds_that_followed_count_as_blocks_on_top(tmp_path: Path) -> None:
    forked = [entry(number, 10 * number, fork="a") for number in (1, 2, 3)]
    # It was restarted before it saw what took their place.
    path = written(tmp_path / "j", *forked, entry(1, 15, top=0))
    audit = audited(path)
    assert [finding.round for finding in audit.findings] == [1, 2]
    assert len(audit.notes) == 1, "of the third nobody can tell how many were on top"


def test_withdrawn_weights_are_on_the_chain(tmp_path: Path) -> None:
    past = history(weights(0), weights(1), withdrawn=weights(1, "lie"))
    path = written(tmp_path / "j", entry(1, 20, cid=weights(1, "lie")), entry(0, 21, kind="closed"), entry(1, 22))
    assert not audited(path, past=past).findings


def test_other_blocks_with_the_same_weights_are_a_note_if_they_are_many(tmp_path: Path) -> None:
    same = {"cid": weights(1), "fork": "a"}
    few = written(tmp_path / "few", entry(1, 20, **same), entry(1, 22, kind="closed", **same), entry(2, 30))
    assert not audited(few).notes
    many = written(tmp_path / "many", entry(1, 20, **same), entry(1, 25, kind="closed", **same), entry(2, 30))
    audit = audited(many)
    assert not audit.findings
    (note,) = audit.notes
    assert "block 20" in note and "5 on top" in note


@pytest.mark.parametrize(
    ("last", "is_behind"),
    [
        (entry(4, 60, seen=NOW - 5.0), True),
        (entry(4, 60, seen=NOW - 500.0), False),
        (entry(4, 40, seen=NOW - 5.0), False),
    ],
)
def test_a_node_that_does_not_have_the_newest_blocks_yet_is_no_liar(
    tmp_path: Path, last: dict[str, Any], is_behind: bool
) -> None:
    path = written(tmp_path / "j", entry(0, 10), last)
    audit = audited(path, past=history(weights(0)), newest=50)
    assert (len(audit.findings), len(audit.notes)) == ((0, 1) if is_behind else (1, 0))


def test_a_node_whose_earlier_blocks_differ_is_not_just_behind(tmp_path: Path) -> None:
    path = written(tmp_path / "j", entry(0, 10, block="0xother"), entry(4, 60, seen=NOW - 5.0))
    assert audited(path, past=history(weights(0)), newest=50).findings


def test_journals_of_strangers_and_of_other_runs_prove_nothing(tmp_path: Path) -> None:
    stranger = written(tmp_path / "a", entry(1, 20, fork="a"), account=MALLORY)
    elsewhere = written(tmp_path / "b", entry(1, 20, fork="a"), contract="0x" + "cd" * 20)
    audit = audited(stranger, elsewhere)
    assert not audit.findings
    assert [note.code for note in audit.notes] == [journals.NO_ROLE, journals.OTHER_RUN]


def test_of_a_damaged_journal_the_part_before_the_damage_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "j", entry(1, 20, fork="a"), entry(2, 30))
    path.write_bytes(path.read_bytes().replace(b'"height":30', b'"height":31'))
    audit = audited(path)
    assert [finding.round for finding in audit.findings] == [1]
    assert [note.code for note in audit.notes] == [journals.DAMAGED]
    assert "line 2" in audit.notes[0]


def test_a_copy_that_was_kept_elsewhere_counts_once_and_proves_what_was_cut_off(tmp_path: Path) -> None:
    entries = [entry(0, 10), entry(1, 20, fork="a")]
    kept, cut = written(tmp_path / "kept", *entries), written(tmp_path / "cut", entries[0])
    assert len(audited(cut, kept, kept).findings) == 1
    rewritten = written(tmp_path / "rewritten", entries[0], entry(1, 20))
    audit = audited(rewritten, kept)
    assert [finding.round for finding in audit.findings] == [1]
    assert audit.notes[0].code == journals.COPIES_DIFFER


def test_a_standby_header_has_a_journal_of_its_own(tmp_path: Path) -> None:
    learner = written(tmp_path / "a", entry(0, 10))
    standby = written(tmp_path / "b", entry(1, 20, fork="a"), role="header")
    header = written(tmp_path / "c", entry(2, 30, fork="a"), role="header", account=HEADER)
    audit = audited(learner, standby, header)
    assert {finding.node for finding in audit.findings} == {"learner 1's standby header", "header"}


def test_a_block_that_is_dated_back_is_named_with_who_saw_it_late(tmp_path: Path) -> None:
    late = entry(1, 20, sealed=NOW - 100, before=NOW - 40.0, seen=NOW - 39.0)
    prompt = entry(0, 10, sealed=NOW - 100, before=NOW - 98.0, seen=NOW - 97.0)
    a = written(tmp_path / "a", prompt, late)
    b = written(tmp_path / "b", late, account=BOB)
    (note,) = audited(a, b).notes
    assert (note.code, note.about) == (journals.BACKDATED, "learner 1, learner 2")
    assert "block 20" in note and "61 s" in note


@pytest.mark.parametrize(
    ("seconds", "timed_out", "is_early"), [(20, True, True), (20, False, False), (57, True, False), (80, True, False)]
)
def test_a_round_that_closed_early_by_the_roles_own_clocks_is_named(
    tmp_path: Path, seconds: int, timed_out: bool, is_early: bool
) -> None:
    opened = entry(1, 20, before=NOW - 100.0, seen=NOW - 99.0)
    closed = entry(1, 25, kind="closed", seen=NOW - 100.0 + seconds)
    past = history(*(weights(number) for number in range(5)), timed_out=[1] if timed_out else [])
    notes = audited(written(tmp_path / "j", opened, closed), past=past).notes
    assert [(note.code, note.round) for note in notes] == [(journals.CLOSED_EARLY, 1)] * is_early
    assert all(f"at most {seconds} s" in note for note in notes)


def test_changes_of_the_sealers_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = (journals.clique.Change(40, "0xabc", True), journals.clique.Change(50, "0xdef", False))
    monkeypatch.setattr(journals.clique, "replay", lambda *_: (frozenset({"0xabc"}), changes))
    notes = audited().notes
    assert [(note.code, note.about) for note in notes] == [
        (journals.SEALERS_CHANGED, "0xabc"),
        (journals.SEALERS_CHANGED, "0xdef"),
    ]
    assert "added" in notes[0] and "block 40" in notes[0]
    assert "removed" in notes[1] and "block 50" in notes[1]


def test_fields_of_an_entry_are_those_that_the_tests_write() -> None:
    names = {field.name for field in dataclasses.fields(Entry)}
    assert names == set(entry(0, 1)) | {"number", "previous", "contract", "role", "account"}
