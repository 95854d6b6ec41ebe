"""Adds to the site the pages outside this folder, and references that are generated at each build.

The site has the layout of the repository: ``docs/modes.md`` becomes ``docs/modes.html``, ``README.md`` the index.
MkDocs therefore checks links from ``docs/`` to other files, and a link that works in the site works on GitHub.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from fl_node.events import EVENTS, Event, Wait
from fl_node.plan.json_schema import choice_properties, filled_in, section_schema
from fl_node.plan.schema import Plan
from fl_node.runtime import logs
from fl_node.runtime.settings import Choice, Settings, choice_of, section_of

ROOT = Path(__file__).parents[1]
BESIDE = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"),
    *("vagrant/README.md", "roles/*/README.md"),
    *("contracts/FederatedLearning.sol", "inventory/*.yml", "plans/*.toml", "examples/**/*.*"),
)
"""Files outside ``docs/`` that pages may link to; files that are not pages are copied unchanged."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Place the pages as in the repository, and add the generated pages."""

    def file(path: str) -> File:
        return File(path, str(ROOT), config.site_dir, config.use_directory_urls)

    from_here = [file(f"docs/{one.src_uri}") if is_ours(one) else one for one in files]
    beside = [
        file(path.relative_to(ROOT).as_posix())
        for pattern in BESIDE
        for path in sorted(ROOT.glob(pattern))
        if path.is_file()
    ]
    generated = {
        "reference/commands.md": commands(),
        "reference/plan.md": plan(),
        "reference/contract.md": contract(),
        "reference/events.md": events(),
    }
    made = [File.generated(config, name, content=content) for name, content in generated.items()]
    return Files([*from_here, *beside, *made])


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Label the theme's search for screen readers."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def is_ours(file: File) -> bool:
    """Return whether a file is from ``docs/``, and not from the theme."""
    return file.src_dir is not None and Path(file.src_dir) == ROOT / "docs"


def commands() -> str:
    """Return the reference of all commands, from Typer's generator."""
    command = [sys.executable, "-m", "typer", "fl_node.cli.app", "utils", "docs", "--name", "fl-node"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PluginError(f"can't generate the reference of commands: {done.stderr}")
    # Typer does not convert markup in the last lines of a help text, and truncates its list of commands.
    text = re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", done.stdout)
    first_lines = dict(re.findall(r"^##+ `fl-node ([^`]+)`\n\n(.+?)\n\n", text, re.MULTILINE | re.DOTALL))
    group = ""

    def whole(match: re.Match[str]) -> str:
        name = f"{group} {match[1]}".strip()
        return f"* [`{match[1]}`](#fl-node-{name.replace(' ', '-')}): {' '.join(first_lines[name].split())}"

    lines = []
    for line in text.splitlines():
        heading = re.fullmatch(r"##+ `fl-node ([^`]+)`", line)
        group = heading[1] if heading else group
        lines.append(re.sub(r"^\* `([a-z][a-z-]*)`: .*", whole, line))
    return "\n".join(lines).replace("# `fl-node`", "# Commands", 1)


def plan() -> str:
    """Return the reference of a plan's settings: description, type, limits and default of each."""
    return "\n".join(_plan())


def _plan() -> Iterator[str]:
    yield "# Plan\n"
    yield "The settings of a run, in a TOML file such as [plans/demo.toml](../plans/demo.toml)."
    yield "`--set section.setting=value` changes a setting. `fl-node plan check` checks a plan and prints its implied"
    yield "settings. `fl-node plan schema` prints the JSON schema of plans, for editors.\n"
    yield from _table(_rows(Plan))
    yield from _sections_of(Plan)


def _sections_of(settings: type[Settings], prefix: str = "") -> Iterator[str]:
    """Yield a heading and a table for each section among the settings, and for the sections in it."""
    for key, field in sorted(_sections(settings), key=lambda named: named[0]):
        choice = choice_of(field)
        section = choice.classes[0] if choice else section_of(field, {})
        assert section is not None
        yield f"## [{prefix}{key}]\n\n{field.description or inspect.getdoc(section)}\n"
        yield from _table(_choice_rows(choice) if choice else _rows(section))
        if choice is None:
            yield from _sections_of(section, f"{prefix}{key}.")


def _sections(section: type[Settings]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the sections among the settings, those of flat choices included."""
    for name, field in section.model_fields.items():
        choice = choice_of(field)
        if choice is not None and choice.flat:
            for variant in choice.classes:
                yield from _sections(variant)
        elif _is_section(field):
            yield name, field


def _is_section(field: FieldInfo) -> bool:
    """Return whether a setting is a section of its own in a file."""
    choice = choice_of(field)
    return section_of(field, {}) is not None if choice is None else not choice.flat


def _table(rows: Iterator[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "| setting | value | default | meaning |\n|---|---|---|---|"
    for name, value, default, text in rows:
        yield f"| `{name}` | {value} | {default} | {text} |"
    yield ""


def _rows(section: type[Settings]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each setting of a section, without its subsections."""
    for name, field in section.model_fields.items():
        choice = choice_of(field)
        if choice is not None and choice.flat:
            yield from _choice_rows(choice)
        elif not _is_section(field):
            yield (name, *_row(section, name))


def _choice_rows(choice: Choice) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for the key of a choice, and for each setting of its variants, with the variants that use it."""
    key = choice_properties(choice)[choice.key]
    default = f"`{_toml(choice.default)}`" if choice.default else "–"
    yield choice.key, ", ".join(f"`{value}`" for value in choice.variants), default, key["description"]
    users: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    inner: dict[str, Choice] = {}
    for value, variant in choice.variants.items():
        for name, field in variant.model_fields.items():
            nested = choice_of(field)
            if nested is not None and nested.flat:
                inner[nested.key] = nested
            elif name != choice.key and not _is_section(field):
                kind, given, text = _row(variant, name)
                users.setdefault((name, kind, text), {}).setdefault(given, []).append(f"`{value}`")
    for (name, kind, text), defaults in users.items():
        yield name, kind, "; ".join(f"{given} ({', '.join(some)})" for given, some in defaults.items()), text
    for nested in inner.values():
        yield from _choice_rows(nested)


def _row(section: type[Settings], name: str) -> tuple[str, str, str]:
    """Return a setting's value, default and description."""
    field, setting = section.model_fields[name], section_schema(section)["properties"][name]
    if "description" not in setting:
        raise PluginError(f"the setting {name} of {section.__name__} has no description")
    default = "required" if field.is_required() else f"`{_toml(field.default)}`"
    return _value(setting), "filled in" if filled_in(field) else default, setting["description"]


def _value(setting: Mapping[str, Any]) -> str:
    """Return a setting's type and limits in words."""
    if choices := setting.get("enum", [setting["const"]] if "const" in setting else []):
        return ", ".join(f"`{choice}`" for choice in choices)
    if setting["type"] == "boolean":
        return "`true`, `false`"
    if setting["type"] == "array":
        return f"a list: {_value(setting['items'])}"
    if setting["type"] == "string":
        return "a SHA-256" if "64" in setting["pattern"] else "a text"
    limits = [
        f"{word} {setting[key] if isinstance(setting[key], int) else format(setting[key], '.15g')}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in setting
    ]
    return " ".join([{"integer": "whole number", "number": "number"}[setting["type"]], *limits])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def events() -> str:
    """Return the page of the events that header and learners log."""
    parts = [
        "# Events",
        "Header and learners log an event for each step. On a terminal an event is a line of text; elsewhere it is a "
        "line with a JSON object: in a lab's `logs/`, and on a host in the journal. Each object has `time`, "
        "`level`, `node`, `event` (its name), `message` (the text) and the fields below. Programs should match names "
        "and fields: `message` and `detail` are for people and may change.",
        "`fl-node logs RUN` shows the events of a run as text, with `--event NAME` only those events. "
        f"`{logs.FORMAT}=text` or `json` overrides the choice of the format.",
        "| Event | Fields | When |\n| --- | --- | --- |\n" + "\n".join(map(_event_row, EVENTS.values())),
        "Reasons to wait (`reason` of `waiting`): " + ", ".join(f"`{one}`" for one in get_args(Wait)) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _event_row(kind: type[Event]) -> str:
    fields = ", ".join(f"`{one.name}`" for one in dataclasses.fields(kind))
    return f"| `{kind.name}` | {fields} | {inspect.getdoc(kind)} |"


def contract() -> str:
    """Return the reference of the contract, from the NatSpec in the compiled artifact."""
    artifact = json.loads((ROOT / "contracts" / "FederatedLearning.json").read_text())
    return "\n".join(_contract(artifact["abi"], artifact["userdoc"], artifact["devdoc"]))


def _contract(abi: list[dict[str, Any]], user: dict[str, Any], dev: dict[str, Any]) -> Iterator[str]:
    yield "# Contract\n"
    yield "[`FederatedLearning.sol`](../contracts/FederatedLearning.sol), from the comments in its source.\n"
    yield user["notice"] + "\n"
    yield dev["details"] + "\n"
    calls = [one for one in abi if one["type"] == "function"]
    groups = {
        "Constructor": [one for one in abi if one["type"] == "constructor"],
        "Functions that write": [one for one in calls if one["stateMutability"] != "view"],
        "Functions that read": [one for one in calls if one["stateMutability"] == "view"],
        "Events": [one for one in abi if one["type"] == "event"],
        "Errors": [one for one in abi if one["type"] == "error"],
    }
    for title, entries in groups.items():
        yield f"## {title}\n"
        for entry in entries:
            yield from _entry(entry, user, dev)


def _entry(entry: dict[str, Any], user: dict[str, Any], dev: dict[str, Any]) -> Iterator[str]:
    name = entry.get("name", "constructor")
    types = ",".join(one["type"] for one in entry["inputs"])
    kind = {"event": "events", "error": "errors"}.get(entry["type"], "methods")
    key = name if name == "constructor" else f"{name}({types})"

    def text_of(docs: dict[str, Any]) -> dict[str, Any]:
        found = docs[kind].get(key, {})
        # For an error the compiler writes a list, because other contracts may define the same name.
        return dict(found[0] if isinstance(found, list) else found)

    notice, details = text_of(user).get("notice"), text_of(dev)
    if notice is None:
        raise PluginError(f"the contract's {key} has no @notice")
    yield f"### {name}\n"
    gives = ", ".join(one["type"] for one in entry.get("outputs", []))
    yield f"`{name}({', '.join(_typed(one) for one in entry['inputs'])}){f' → {gives}' if gives else ''}`\n"
    yield notice + "\n"
    texts = details.get("params", {}) | {f"→ {name}": text for name, text in details.get("returns", {}).items()}
    if texts:
        yield from (f"- `{name}`: {text}" for name, text in texts.items())
        yield ""


def _typed(value: dict[str, Any]) -> str:
    return " ".join([value["type"], *(["indexed"] if value.get("indexed") else []), value["name"]]).strip()
