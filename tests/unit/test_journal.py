"""A role's journal: what is in it is signed and chained, nothing is lost, and clocks are compared."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fl_node import events
from fl_node.artifacts import cid
from fl_node.chain.contract import Contract, State, View
from fl_node.chain.node import Head
from fl_node.errors import ConfigError, StoreUnreachable
from fl_node.protocol import journal
from fl_node.roles.journal import Recorder, append_line
from tests.helpers.accounts import ALICE, BOB
from tests.helpers.clock import FakeClock
from tests.helpers.journals import ADDRESS, PLAN
from tests.helpers.logged import logged

START = 1_800_000_000


def weights(round_: int, what: str = "") -> str:
    return cid.of_bytes(f"global weights {round_} {what}".encode())


def view(
    round_: int, height: int, *, closed: bool = False, what: str = "", fork: str = "", time: int | None = None
) -> View:
    head = Head(f"0x{height:08x}{fork}", height, START if time is None else time)
    return View(head, 0, State(True, round_, weights(round_, what), closed), (1, 2, 3), 1)


class Chain:
    """A contract in whose rounds so many learners publish."""

    address = ADDRESS

    def __init__(self, published: int = 3) -> None:
        self.published = published

    def round_at(self, _round: int) -> Any:
        return SimpleNamespace(published=self.published)


Reported = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> Reported:
    caplog.set_level(logging.INFO, "fl_node")
    return lambda: logged(caplog)


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    clock.now = START
    return clock


@pytest.fixture
def recorder(tmp_path: Path, clock: FakeClock) -> Recorder:
    return start(tmp_path, clock)


def start(folder: Path, clock: FakeClock, published: int = 3, **options: Any) -> Recorder:
    contract = cast(Contract, Chain(published))
    return Recorder(folder, contract, "learner", ALICE, clock=lambda: clock.now, **options)


def test_each_round_is_written_once_when_it_opens_and_once_when_it_closes(recorder: Recorder) -> None:
    for seen in (view(0, 4), view(0, 5), view(0, 6, closed=True), view(0, 6, closed=True), view(1, 7)):
        recorder.see(seen, PLAN)
    kept = journal.read(recorder.path)
    assert [(e.kind, e.round, e.cid, e.height) for e in kept.entries] == [
        ("opened", 0, weights(0), 4),
        ("closed", 0, weights(0), 6),
        ("opened", 1, weights(1), 7),
    ]
    assert [e.top for e in kept.entries] == [0, 5, 6]
    assert (kept.problem, kept.account) == ("", ALICE.address)


def test_nothing_is_written_before_the_initial_weights(recorder: Recorder) -> None:
    recorder.see(View(Head("0x1", 1, START), 0, State(False, 0, None), (), None), PLAN)
    assert not recorder.path.exists()


def test_a_block_that_was_replaced_is_written_again_with_how_many_blocks_were_on_top(recorder: Recorder) -> None:
    for seen in (view(0, 4), view(0, 9), view(0, 6, what="others"), view(1, 7)):
        recorder.see(seen, PLAN)
    replaced, after = journal.read(recorder.path).entries[1:]
    assert (replaced.cid, replaced.height, replaced.top) == (weights(0, "others"), 6, 9)
    assert after.top == 6, "of the chain that took the place of the other"


def test_a_role_that_is_started_again_goes_on_with_its_journal(
    recorder: Recorder, tmp_path: Path, clock: FakeClock
) -> None:
    recorder.see(view(0, 4), PLAN)
    with recorder.path.open("ab") as file:
        file.write(b'{"account": "half a li')  # it was killed while it wrote
    again = start(tmp_path, clock)
    again.see(view(0, 5), PLAN)
    again.see(view(1, 6), PLAN)
    kept = journal.read(recorder.path)
    assert (kept.problem, [e.round for e in kept.entries]) == ("", [0, 1])
    assert kept.entries[1].before == START, "of its own looks alone"


def test_a_full_disk_leaves_whole_lines_and_the_next_look_writes_the_entry(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.see(view(0, 4), PLAN)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space.*journal\.jsonl"):
        patch.setattr("fl_node.roles.journal.os.fsync", full)
        recorder.see(view(1, 5), PLAN)
    assert [e.round for e in journal.read(recorder.path).entries] == [0]
    recorder.see(view(1, 6), PLAN)
    assert [e.round for e in journal.read(recorder.path).entries] == [0, 1]


def test_only_whole_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, b"one")
    path.write_bytes(path.read_bytes() + b"tw")
    append_line(path, b"three")
    assert path.read_bytes() == b"one\nthree\n"


def changed(**changes: Any) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        return [lines[0], journal._canonical(json.loads(lines[1]) | changes), *lines[2:]]

    return change


def resigned(lines: list[bytes]) -> list[bytes]:
    """Let somebody else sign the second line."""
    content = json.loads(lines[1])
    del content["signature"]
    return [lines[0], journal.signed(journal.Entry(**content), BOB), *lines[2:]]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda lines: [lines[0], *lines[2:]], "does not follow the line before"),
        (lambda lines: lines[1:], "does not follow the line before"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "does not follow the line before"),
        (changed(cid=weights(7)), "is signed by"),
        (changed(height=3), "is signed by"),
        (changed(signature="0x" + "00" * 65), "invalid signature"),
        (changed(signature="0x12"), "invalid signature"),
        (changed(height="3"), "height has the wrong type"),
        (changed(seen=1e18), "seen should be"),
        (changed(seen=-1.0), "seen should be"),
        (changed(before=1e300), "before should be"),
        (changed(kind="other"), "kind should be one of"),
        (changed(more=1), "is not an entry"),
        (lambda lines: [lines[0], b"[]", *lines[2:]], "is not an entry"),
        (lambda lines: [lines[0], b"\xff", *lines[2:]], "is not UTF-8"),
        (resigned, "is signed by"),
    ],
)
def test_what_the_role_did_not_write_is_seen(
    recorder: Recorder, damage: Callable[[list[bytes]], list[bytes]], problem: str
) -> None:
    for number in range(3):
        recorder.see(view(number, number + 1), PLAN)
    lines = recorder.path.read_bytes().splitlines()
    recorder.path.write_bytes(b"\n".join(damage(lines)) + b"\n")
    kept = journal.read(recorder.path)
    assert problem in kept.problem
    assert len(kept.entries) < 3


def test_a_journal_that_somebody_changed_is_kept_beside_a_new_one(
    recorder: Recorder, tmp_path: Path, clock: FakeClock, reported: Reported
) -> None:
    recorder.see(view(0, 1), PLAN)
    damaged = recorder.path.read_bytes().replace(b'"height":1', b'"height":2')
    recorder.path.write_bytes(damaged)
    again = start(tmp_path, clock)
    again.see(view(1, 5), PLAN)
    assert [e["event"] for e in reported()] == [events.JournalDamaged.name]
    assert (tmp_path / "damaged-1-journal.jsonl").read_bytes() == damaged
    assert [e.number for e in journal.read(again.path).entries] == [0]


def test_a_journal_that_is_not_there_or_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"journal .*none: no such file"):
        list(journal.find(tmp_path / "none"))
    path = tmp_path / "large"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(journal, "MAX_BYTES", 99)
    with pytest.raises(ConfigError, match="more than the 99 bytes"):
        journal.read(path)


# Clocks


@pytest.mark.parametrize(
    ("seconds", "published", "is_early"),
    [(10, 2, True), (54, 2, True), (56, 2, False), (70, 2, False), (10, 3, False)],
)
def test_a_round_that_is_closed_before_its_timeout_by_the_learners_own_clock_is_reported(
    tmp_path: Path, clock: FakeClock, seconds: int, published: int, is_early: bool, reported: Reported
) -> None:
    recorder = start(tmp_path, clock, published)
    recorder.see(view(0, 1), PLAN)
    recorder.see(view(1, 2), PLAN)
    clock.now += seconds
    recorder.see(view(1, 3, closed=True), PLAN)
    assert [(e["event"], e["round"]) for e in reported()] == [(events.RoundClosedEarly.name, 1)] * is_early


def test_a_learner_that_was_away_when_a_round_opened_does_not_judge_its_closing(
    tmp_path: Path, clock: FakeClock, reported: Reported
) -> None:
    recorder = start(tmp_path, clock, 2)
    recorder.see(view(0, 1), PLAN)
    clock.now += 100  # it trains, and the round ends and the next one begins meanwhile
    recorder.see(view(1, 4, time=START + 90), PLAN)
    clock.now += 10
    recorder.see(view(1, 5, closed=True, time=START + 110), PLAN)
    recorder.see(view(2, 9, closed=True, time=START + 110), PLAN)
    assert not reported()


def test_a_block_that_is_dated_back_is_reported_once(tmp_path: Path, clock: FakeClock, reported: Reported) -> None:
    recorder = start(tmp_path, clock)
    recorder.see(view(0, 1, time=START - 1000), PLAN)  # it was there before
    clock.now += 30
    recorder.see(view(0, 1, time=START - 1000), PLAN)
    recorder.see(view(0, 2, time=START + 26), PLAN)
    assert not reported()
    for height in (3, 4):
        recorder.see(view(0, height, time=START), PLAN)
    recorder.see(view(0, 5, time=START + 30), PLAN)
    recorder.see(view(0, 6, time=START), PLAN)
    assert [(e["event"], e["block"]) for e in reported()] == [
        (events.BlockDatedBack.name, 3),
        (events.BlockDatedBack.name, 6),
    ]


# IPFS


def test_the_journal_is_shared_and_a_store_that_is_away_is_said_once(
    tmp_path: Path, clock: FakeClock, reported: Reported
) -> None:
    shared: list[tuple[bytes, str]] = []
    is_away = True

    def share(path: Path, name: str) -> str:
        if is_away:
            raise StoreUnreachable("IPFS is down")
        shared.append((path.read_bytes(), name))
        return ""

    for number in range(2):
        away = start(tmp_path, clock, share=share)
        away.see(view(number, number), PLAN)
        away.close()
    assert [e["event"] for e in reported()] == [events.JournalNotShared.name] * 2
    is_away = False
    recorder = start(tmp_path, clock, share=share)
    recorder.see(view(2, 5), PLAN)
    recorder.close()
    name = f"{ADDRESS}-learner-{ALICE.address}"
    assert shared == [(recorder.path.read_bytes(), name)]
    assert journal.read(recorder.path).name == name


def test_an_entry_survives_its_own_line() -> None:
    entry = journal.Entry(
        0, journal.FIRST, ADDRESS, "header", ALICE.address, "opened", 0, "Qm", "0x", 1, 2, 3.5, None, 0
    )
    content = json.loads(journal.signed(entry, ALICE))
    del content["signature"]
    assert content == dataclasses.asdict(entry)
