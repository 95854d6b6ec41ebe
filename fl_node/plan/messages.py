"""What is wrong with a plan, in words: a line for each of pydantic's errors, with its key and the remedy."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from fl_node.plan.checks import INCONSISTENT
from fl_node.plan.schema import Plan
from fl_node.runtime.settings import Choice, Settings, choice_of, section_of

LISTS = {"data.size": "[28, 28]", "data.samples": "[100, 200]", "model.architectures": '["cnn", "mlp"]'}
"""By the settings that are lists: what one looks like, where it is not ``[1]``."""
FORMER = {
    "second_momentum": "beta_2",
    "adaptivity": "tau",
    "proximal": "proximal_mu",
    "clip": "clipping_norm",
    "byzantine": "num_malicious",
    "shared": "public_set",
    "slow": "stragglers",
    "own": "custom",
}
"""Former names of settings, for hints to users of old plans."""


def problems(error: ValidationError) -> list[str]:
    """Return a line for each error but those that :mod:`fl_node.plan.checks` finds."""
    return [_problem(dict(mistake)) for mistake in error.errors(include_url=False) if mistake["type"] != INCONSISTENT]


@dataclass
class _Place:
    """Where in a plan an error is: its key as a person writes it, and the settings that it belongs to."""

    keys: list[str] = field(default_factory=list)
    section: type[Settings] = Plan
    choices: list[Choice] = field(default_factory=list)
    """Those that decide which class the section has."""
    chosen: str | None = None
    """The value of the last of them."""
    undecided: Choice | None = None
    """The choice that the error is about, if no class has its value."""

    @property
    def key(self) -> str:
        """The key, with those of its sections before it."""
        return ".".join(self.keys)


def _place(location: tuple[int | str, ...]) -> _Place:
    """Follow the location of an error: keys, after each choice the value that is chosen, and indices of lists."""
    place = _Place()
    for part in map(str, location):
        if place.undecided is not None:
            place.choices.append(place.undecided)
            place.chosen, place.section, place.undecided = part, place.undecided.variants[part], None
            continue
        known = place.section.model_fields.get(part)
        place.undecided = choice_of(known) if known is not None else None
        flat = place.undecided is not None and place.undecided.flat
        section = section_of(known, {}) if known is not None else None
        if not flat:
            place.keys.append(part)
        if not flat and (section is not None or place.undecided is not None):
            place.choices, place.chosen = [], None
        if place.undecided is None and section is not None:
            place.section = section
    return place


def _problem(error: Mapping[str, Any]) -> str:
    place = _place(error["loc"])
    key, kind, given = place.key, error["type"], error.get("input")
    if kind in {"union_tag_invalid", "union_tag_not_found"} and place.undecided is not None:
        choice = place.undecided
        return f"{_join(key, choice.key)}: should be {_either(choice.variants)} (is {choice.tag(given)!r})"
    if kind == "extra_forbidden":
        return f"{key}: {_unknown(place)}"
    if kind == "missing":
        return f"{key}: missing" if place.chosen is None else f"{key}: missing; {place.chosen} needs it"
    if kind in {"model_type", "model_attributes_type"}:
        return f"{key or 'plan'}: should be a section with keys (is {given!r})"
    if kind == "string_pattern_mismatch" and key.endswith("sha256"):
        return f"{key}: should be a SHA-256, 64 hexadecimal digits (is {given!r})"
    if kind == "string_pattern_mismatch" and key == "custom.module":
        return (
            f"{key}: should be a Python file such as my_module.py; the name has up to 63 letters (a to z), digits "
            f"or '_' and does not start with a digit (is {given!r})"
        )
    if key == "custom.module":
        return f"{key}: should be the path of a Python file, relative to the plan, such as tabular.py (is {given!r})"
    if kind == "tuple_type":
        return f"{key}: should be a list such as {LISTS.get(key, '[1]')} (is {given!r})"
    if kind == "string_pattern_mismatch":
        return (
            f"{key}: should be up to 63 lower-case letters, digits, '.', '_' or '-', "
            f"starting with a letter or digit (is {given!r})"
        )
    message = error["msg"].replace("Input should be", "should be").replace("a valid integer", "a whole number")
    return f"{key}: {message} (is {given!r})"


def _join(*keys: str) -> str:
    return ".".join(key for key in keys if key)


def _either(values: Mapping[str, object]) -> str:
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}" if others else last


def _unknown(place: _Place) -> str:
    """Say who uses a key, if anybody does, or which key it may have been meant for."""
    name, section = place.keys[-1], place.section
    choices = [choice for _, choice in section.choices() if choice.flat] + place.choices
    for choice in choices:
        if users := choice.users(name):
            if section is Plan:
                return f"needs {choice.key} = " + " or ".join(f'"{user}"' for user in users)
            return f"only valid for {', '.join(users)}"
    known = sorted({*section.keys(), *itertools.chain.from_iterable(choice.keys() for choice in place.choices)})
    former = FORMER.get(name)
    close = [former] if former in known else difflib.get_close_matches(name, known, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; valid keys: {', '.join(known)}"
