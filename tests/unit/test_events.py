"""The events that roles log: their names, fields and sentences."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from fl_node import events

EXAMPLES = {
    str: "text",
    int: 3,
    float: 0.5,
    int | None: 3,
    float | None: 0.5,
    tuple[int, ...]: (1, 2),
    tuple[int, ...] | None: (1, 2),
    tuple[str, ...]: ("a", "b"),
    dict[str, float] | None: {"1": 0.5},
    events.Wait: "updates",
}


def example(kind: type[events.Event]) -> events.Event:
    types = typing.get_type_hints(kind)
    return kind(**{field.name: EXAMPLES[types[field.name]] for field in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", events.EVENTS.values(), ids=events.EVENTS)
def test_an_event_has_a_name_a_sentence_and_fields_that_json_holds(kind: type[events.Event]) -> None:
    assert kind.name.replace("_", "").isalpha()
    event = example(kind)
    assert event.text()
    assert "\n" not in event.text()
    fields = event.fields()
    assert not set(fields) & set(events.RESERVED)
    assert json.loads(json.dumps(fields)).keys() == fields.keys()


def test_what_is_not_set_is_no_field() -> None:
    waiting = events.Waiting(reason="block", detail="a block")
    assert waiting.fields() == {"reason": "block", "detail": "a block"}


def test_names_are_unique_and_follow_from_the_classes() -> None:
    assert events.EVENTS["update_accepted"] is events.UpdateAccepted
    assert len(set(events.EVENTS.values())) == len(events.EVENTS)


def test_problems_are_warnings() -> None:
    assert set(events.PROBLEMS) <= set(typing.get_args(events.Wait))


def test_events_are_matched_by_their_values() -> None:
    event = {"event": "round_started", "round": 1, "message": "x"}
    assert events.matches(event, {"event": "round_started", "round": 1})
    assert not events.matches(event, {"event": "round_started", "round": 2})
    assert not events.matches(event, {"learner": 1})
