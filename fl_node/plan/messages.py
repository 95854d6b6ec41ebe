"""The messages for an invalid plan: one line for each of pydantic's errors, with the key and the remedy."""

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
"""Examples for settings that are lists; ``[1]`` for all others."""
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
    """Return a line for each error except those of :mod:`fl_node.plan.checks`."""
    errors = error.errors(include_url=False)
    return [_problem(dict(details)) for details in errors if details["type"] != INCONSISTENT]


@dataclass
class _Location:
    """The location of an error in a plan: its key in the file, and the settings to which it belongs."""

    keys: list[str] = field(default_factory=list)
    section: type[Settings] = Plan
    choices: list[Choice] = field(default_factory=list)
    """The choices that determine the class of the section."""
    chosen: str | None = None
    """The value of the last of these choices."""
    undecided: Choice | None = None
    """The choice whose value is invalid, if that is the error."""

    @property
    def key(self) -> str:
        """The key with its sections, such as ``data.train``."""
        return ".".join(self.keys)


def _located(path: tuple[int | str, ...]) -> _Location:
    """Follow pydantic's path of an error: keys, the chosen value after each choice, and indices of lists."""
    location = _Location()
    for part in map(str, path):
        if location.undecided is not None:
            location.choices.append(location.undecided)
            location.chosen, location.section, location.undecided = part, location.undecided.variants[part], None
            continue
        setting = location.section.model_fields.get(part)
        location.undecided = choice_of(setting) if setting is not None else None
        is_flat = location.undecided is not None and location.undecided.flat
        section = section_of(setting, {}) if setting is not None else None
        if not is_flat:
            location.keys.append(part)
        if not is_flat and (section is not None or location.undecided is not None):
            location.choices, location.chosen = [], None
        if location.undecided is None and section is not None:
            location.section = section
    return location


def _problem(error: Mapping[str, Any]) -> str:
    location = _located(error["loc"])
    key, kind, value = location.key, error["type"], error.get("input")
    if kind in {"union_tag_invalid", "union_tag_not_found"} and location.undecided is not None:
        choice = location.undecided
        return f"{_join(key, choice.key)}: should be {_either(choice.variants)} (is {choice.tag(value)!r})"
    if kind == "extra_forbidden":
        return f"{key}: {_unknown(location)}"
    if kind == "missing":
        return f"{key}: missing" if location.chosen is None else f"{key}: missing; {location.chosen} needs it"
    if key == "retention" and kind in {"model_type", "model_attributes_type"}:
        return f'{key}: should be "all" or {{ rounds = 100 }} (is {value!r})'
    if kind in {"model_type", "model_attributes_type"}:
        return f"{key or 'plan'}: should be a section with keys (is {value!r})"
    if kind == "string_pattern_mismatch" and key.endswith("sha256"):
        return f"{key}: should be a SHA-256, 64 hexadecimal digits (is {value!r})"
    if kind == "string_pattern_mismatch" and key == "custom.module":
        return (
            f"{key}: should be a Python file such as my_module.py; the name has up to 63 letters (a to z), digits "
            f"or '_' and does not start with a digit (is {value!r})"
        )
    if key == "custom.module":
        return f"{key}: should be the path of a Python file, relative to the plan, such as tabular.py (is {value!r})"
    if kind == "tuple_type":
        return f"{key}: should be a list such as {LISTS.get(key, '[1]')} (is {value!r})"
    if kind == "string_pattern_mismatch":
        return (
            f"{key}: should be up to 63 lower-case letters, digits, '.', '_' or '-', "
            f"starting with a letter or digit (is {value!r})"
        )
    message = error["msg"].replace("Input should be", "should be").replace("a valid integer", "a whole number")
    return f"{key}: {message} (is {value!r})"


def _join(*keys: str) -> str:
    return ".".join(key for key in keys if key)


def _either(values: Mapping[str, object]) -> str:
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}" if first else last


def _unknown(location: _Location) -> str:
    """Return the message for an unexpected key: the choices that use it, or similar keys."""
    name, section = location.keys[-1], location.section
    choices = [choice for _, choice in section.choices() if choice.flat] + location.choices
    for choice in choices:
        if users := choice.users(name):
            if section is Plan:
                return f"needs {choice.key} = " + " or ".join(f'"{user}"' for user in users)
            return f"only valid for {', '.join(users)}"
    valid = sorted({*section.keys(), *itertools.chain.from_iterable(choice.keys() for choice in location.choices)})
    former = FORMER.get(name)
    similar = [former] if former in valid else difflib.get_close_matches(name, valid, n=1)
    return f"unknown key; did you mean {similar[0]}?" if similar else f"unknown key; valid keys: {', '.join(valid)}"
