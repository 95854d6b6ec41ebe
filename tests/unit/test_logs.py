"""What a role says: lines for people, JSON for scripts."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from fl_node import logs
from fl_node.logs import say

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The logger as it was."""
    log = logging.getLogger("fl_node")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


def test_a_line_says_when_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("learner")
    say("training", "round 3: training 5 epochs", round=3, epochs=5)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(TIME + r" learner: round 3: training 5 epochs\n", err)


def test_a_warning_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("learner")
    say("waiting", "no chain", level=logging.WARNING)
    assert "learner: warning: no chain\n" in capsys.readouterr().err


def test_for_scripts_each_event_is_a_json_object_with_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header", as_json=True)
    say("took", "round 1: took learner 2's file\n(of two lines)", round=1, learner=2, accuracy=0.5, cid=None)
    logging.getLogger("fl_node.other").warning("100 %% of %s", "it")
    out, err = capsys.readouterr()
    first, second = (json.loads(line) for line in out.splitlines())
    assert re.fullmatch(TIME, first.pop("time"))
    assert first == {
        "level": "info",
        "node": "header",
        "event": "took",
        "message": "round 1: took learner 2's file\n(of two lines)",
        "round": 1,
        "learner": 2,
        "accuracy": 0.5,
        "cid": None,
    }
    assert (second["level"], second["event"], second["message"]) == ("warning", "message", "100 % of it")
    assert "took learner 2's file" in err


def test_percent_signs_in_a_message_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header")
    say("evaluated", "99.46% of %s", round=1)
    assert "header: 99.46% of %s\n" in capsys.readouterr().err


def test_details_are_said_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header")
    say("detail", "a detail", level=logging.DEBUG)
    assert capsys.readouterr().err == ""
    logs.configure("header", verbose=True)
    say("detail", "a detail", level=logging.DEBUG)
    assert "a detail" in capsys.readouterr().err


def test_configuring_twice_does_not_say_things_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("one")
    logs.configure("two", as_json=True)
    logs.configure("two")
    say("event", "once")
    out, err = capsys.readouterr()
    assert (out, err.count("once")) == ("", 1)


def test_where_an_exception_came_from_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header", as_json=True)
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("fl_node").exception("it failed")
    out, err = capsys.readouterr()
    assert "ValueError: inside" in json.loads(out)["message"]
    assert "Traceback" in err


def test_a_text_from_outside_forges_no_line_and_reaches_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("header", as_json=True)
    say("refused", "learner 1: a\n2026-01-01T00:00:00.000Z header: took\x1b[2J\r\u202e\ud800")
    out, err = capsys.readouterr()
    assert err.count("\n") == out.count("\n") == 1
    assert "learner 1: a\\n2026-01-01T00:00:00.000Z header: took\\x1b[2J\\r\\u202e\\ud800\n" in err
    assert not set(err) & set("\x1b\r\u202e\ud800")
