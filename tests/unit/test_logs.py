"""How events are logged: text for people at a terminal, JSON lines elsewhere."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_node import events
from fl_node.errors import ConfigError
from fl_node.runtime import logs
from fl_node.runtime.logs import emit

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
ROUND = events.RoundStarted(round=3, cid="Qm1")


@dataclass(frozen=True, kw_only=True)
class Sentence(events.Event):
    """An event of any sentence and level."""

    sentence: str
    importance: int = logging.INFO

    def severity(self) -> int:
        return self.importance

    def text(self) -> str:
        return self.sentence


del events.EVENTS[Sentence.name]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The logger as it was."""
    log = logging.getLogger("fl_node")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "text")


def test_on_a_terminal_a_line_has_time_node_and_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    logs.configure("header")
    emit(ROUND)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(TIME + r" header: round 3: started with global weights Qm1\n", err)


def test_elsewhere_a_line_is_a_json_object_with_the_events_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header", as_json=True)
    emit(ROUND)
    out, err = capsys.readouterr()
    assert out == err
    line = json.loads(err)
    assert re.fullmatch(TIME, line.pop("time"))
    assert line == {
        "level": "info",
        "node": "header",
        "event": "round_started",
        "message": "round 3: started with global weights Qm1",
        "round": 3,
        "cid": "Qm1",
    }
    assert logs.parse(out) == json.loads(out)


@pytest.mark.parametrize(("wanted", "is_json"), [("text", False), ("json", True)])
def test_the_format_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: str, is_json: bool
) -> None:
    monkeypatch.setenv(logs.FORMAT, wanted)
    logs.configure("header")
    emit(ROUND)
    assert (logs.parse(capsys.readouterr().err) is not None) == logs.is_json() == is_json


def test_an_unknown_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "xml")
    with pytest.raises(ConfigError, match="FL_NODE_LOG_FORMAT=xml: should be auto, text, json"):
        logs.configure("header")


def test_a_librarys_message_is_logged_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header")
    logging.getLogger("fl_node.other").warning("100 %% of %s", "it")
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"], line["message"]) == ("warning", "message", "100 % of it")


def test_a_warning_is_called_one(text: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("learner")
    emit(events.Waiting(reason="chain_unreachable", detail="no chain"))
    assert "learner: warning: waiting: no chain\n" in capsys.readouterr().err


def test_percent_signs_in_a_message_are_left_alone(text: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header")
    emit(Sentence(sentence="99.46% of %s"))
    assert "header: 99.46% of %s\n" in capsys.readouterr().err


def test_details_are_logged_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    detail = Sentence(sentence="a detail", importance=logging.DEBUG)
    logs.configure("header")
    emit(detail)
    assert capsys.readouterr().err == ""
    logs.configure("header", verbose=True)
    emit(detail)
    assert "a detail" in capsys.readouterr().err


def test_configuring_twice_logs_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("one")
    logs.configure("two", as_json=True)
    logs.configure("two")
    emit(Sentence(sentence="once"))
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_where_an_exception_came_from_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header")
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("fl_node").exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: inside" in json.loads(line)["message"]
    assert "Traceback" in logs.readable(line)


def test_an_error_that_ends_a_role_is_an_event_and_has_no_second_line_for_people(
    text: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("header", as_json=True)
    emit(events.RoleFailed(error="GaveUp", exit_code=7, detail="gave up"))
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["exit_code"] == 7


HOSTILE = "learner 1: a\n2026-01-01T00:00:00.000Z header: forged\x1b[2J\r\u202e\ud800"


def test_a_text_from_outside_forges_no_line_and_reaches_no_terminal(
    text: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("header", as_json=True)
    emit(Sentence(sentence=HOSTILE))
    out, err = capsys.readouterr()
    assert err.count("\n") == out.count("\n") == 1
    assert "learner 1: a\\n2026-01-01T00:00:00.000Z header: forged\\x1b[2J\\r\\u202e\\ud800\n" in err
    assert not set(err) & set("\x1b\r\u202e\ud800")


def test_nor_does_it_when_a_log_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header")
    emit(Sentence(sentence=HOSTILE.rstrip("\ud800")))  # what has a lone surrogate is no event
    shown = logs.readable(capsys.readouterr().err)
    assert "\n" not in shown
    assert not set(shown) & set("\x1b\r\u202e\ud800")


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "7", '"event"', "{}", '{"event": 7}', "[" * 100_000, "Traceback (most recent call last):"]
)
def test_a_line_that_is_no_event_is_shown_as_it_is(line: str) -> None:
    assert logs.parse(line) is None
    assert logs.readable(line + "\n") == line


def test_a_logged_line_is_shown_as_on_a_terminal() -> None:
    event: dict[str, Any] = {"time": "T", "level": "warning", "node": "header", "event": "x", "message": "a\x1b[2Jb"}
    assert logs.readable(json.dumps(event)) == "T header: warning: a\\x1b[2Jb"


@pytest.mark.parametrize(
    ("fields", "unit", "text"),
    [
        ({"MESSAGE": "sealed", "_SYSTEMD_UNIT": "geth.service"}, "geth.service", "sealed"),
        ({"MESSAGE": [111, 107, 255], "_SYSTEMD_UNIT": "ipfs.service"}, "ipfs.service", "ok\ufffd"),
        # systemd's own line about a unit
        (
            {"MESSAGE": "killed", "UNIT": "fl-header.service", "_SYSTEMD_UNIT": "init.scope"},
            "fl-header.service",
            "killed",
        ),
    ],
)
def test_a_line_of_systemds_journal_has_unit_time_and_text(fields: dict[str, Any], unit: str, text: str) -> None:
    line = json.dumps(fields | {"__REALTIME_TIMESTAMP": "1795860000250000"})
    assert logs.parse_systemd(line) == logs.SystemdLine(unit, 1795860000.25, text)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-- No entries --",
        "[]",
        '{"MESSAGE": null}',
        '{"MESSAGE": " "}',
        '{"__REALTIME_TIMESTAMP": "soon"}',
        '{"MESSAGE": [256]}',
        '{"MESSAGE": ["x"]}',
        '{"MESSAGE": "x", "__REALTIME_TIMESTAMP": "' + "9" * 400 + '"}',
    ],
)
def test_a_line_of_systemds_journal_without_text_is_none(line: str) -> None:
    assert logs.parse_systemd(line) is None


def test_bytes_that_are_no_text_end_neither_a_log_file_nor_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b'library: caf\xe9\n{"event": "a", "message": "caf\xe9"}\n{"event": "b", "message": "end"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "header.log").write_bytes(lines)
    for source in ("-", str(tmp_path)):
        assert [event["message"] for event in logs.read(source)] == ["caf\N{REPLACEMENT CHARACTER}", "end"]
