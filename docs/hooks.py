"""What the site has beyond the pages in this folder: the repository's own pages, and references made at each build.

The site is laid out as the repository is: ``docs/modes.md`` is ``docs/modes.html`` there, ``README.md`` its index.
So MkDocs itself checks a link from ``docs/`` to a file elsewhere, and one that is right here is right on GitHub.
"""

from __future__ import annotations

import ast
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
from pydantic import BaseModel

from fl_node.events import EVENTS, Event, Wait
from fl_node.plan.schema import LATER, REQUIRED, Plan
from fl_node.runtime import logs

ROOT = Path(__file__).parents[1]
BESIDE = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"),
    *("vagrant/README.md", "roles/*/README.md"),
    *("contracts/FederatedLearning.sol", "inventory/*.yml", "plans/*.toml", "examples/**/*.*"),
)
"""Files outside ``docs/`` that pages may link to; those that are no pages are copied as they are."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the pages where they are in the repository, and add what is generated."""

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
    """Give the theme's search a name for those who can't see it."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def is_ours(file: File) -> bool:
    """Return whether a file is from ``docs/``, and not from the theme."""
    return file.src_dir is not None and Path(file.src_dir) == ROOT / "docs"


def commands() -> str:
    """Return the reference of all commands, by Typer's own generator."""
    command = [sys.executable, "-m", "typer", "fl_node.cli.app", "utils", "docs", "--name", "fl-node"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PluginError(f"the reference of commands can't be made: {done.stderr}")
    # Typer converts markup everywhere but in the lines at the end of a help text, and cuts its list of commands.
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
    """Return the reference of a plan's settings: what the source says of each, with its type, limits and default."""
    return "\n".join(_plan())


def _plan() -> Iterator[str]:
    yield "# Plan\n"
    yield "A run's settings, in a TOML file such as [plans/demo.toml](../plans/demo.toml)."
    yield "`--set section.setting=value` changes one; `fl-node plan check` says whether a plan is right,"
    yield "and all that it implies.\n"
    sections = {key: section for key, field in Plan.model_fields.items() if (section := _section(field.annotation))}
    for key, section in {"": Plan, **sections}.items():
        if key:
            yield f"## [{key}]\n\n{inspect.getdoc(section)}\n"
        yield "| setting | value | if not said | what it is |\n|---|---|---|---|"
        said = _docstrings(section)
        for name, setting in section.model_json_schema()["properties"].items():
            if section is Plan and name in sections:
                continue
            if name not in said:
                raise PluginError(f"the plan's setting {key}.{name} has no docstring")
            yield f"| `{name}` | {_value(setting)} | {_default(section, name)} | {said[name]} |"
        yield ""


def _section(annotation: object) -> type[BaseModel] | None:
    """Return which section of a plan a setting is, if it is one."""
    some = (one for one in (annotation, *get_args(annotation)) if isinstance(one, type))
    return next((one for one in some if issubclass(one, BaseModel)), None)


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """Return what stands below each setting in the source."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for one, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr):
            found[one.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


def _value(setting: Mapping[str, Any]) -> str:
    """Return a setting's type and limits in words."""
    one = next((part for part in setting.get("anyOf", ()) if part.get("type") != "null"), setting)
    if "enum" in one:
        return ", ".join(f"`{choice}`" for choice in one["enum"])
    if one["type"] == "array":
        return f"a list: {_value(one['items'])}"
    if one["type"] == "string":
        return "a SHA-256" if "64" in one["pattern"] else "a text"
    limits = [
        f"{word} {one[key] if isinstance(one[key], int) else format(one[key], '.15g')}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in one
    ]
    return " ".join([{"integer": "whole number", "number": "number"}[one["type"]], *limits])


def _default(section: type[BaseModel], name: str) -> str:
    """Return what counts if a setting is not given, with the choices that it belongs to."""
    field = section.model_fields[name]
    texts = []
    if field.is_required():
        texts.append("must be said")
    elif field.default is not None:
        texts.append(f"`{_toml(field.default)}`")
    users: dict[str, list[str]] = {}
    for choices in getattr(section, "CHOICES", {}).values():
        for choice, settings in choices.items():
            if name in settings:
                given = settings[name]
                text = "filled in" if given is LATER else "must be said" if given is REQUIRED else f"`{_toml(given)}`"
                users.setdefault(text, []).append(f"`{choice}`")
    texts += [f"{text} ({', '.join(some)})" for text, some in users.items() if text not in texts]
    return "; ".join(texts) or "–"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def events() -> str:
    """Return the page of the events that header and learners log."""
    parts = [
        "# Events",
        "Header and learners log an event for each step. On a terminal an event is a line of text; elsewhere it is a "
        "JSON object on a line of its own: in a lab's `logs/`, and on a host in the journal. Each object has `time`, "
        "`level`, `node`, `event` (its name), `message` (the text) and the fields below. Programs should match names "
        "and fields: `message` and `detail` are for people and may change.",
        "`fl-node logs RUN` shows the events of a run as text, `--event NAME` only some of them. "
        f"`{logs.FORMAT}=text` or `json` overrides the choice of the format.",
        "| Event | Fields | When |\n| --- | --- | --- |\n" + "\n".join(map(_event_row, EVENTS.values())),
        "Why a role waits (`reason` of `waiting`): " + ", ".join(f"`{one}`" for one in get_args(Wait)) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _event_row(kind: type[Event]) -> str:
    fields = ", ".join(f"`{one.name}`" for one in dataclasses.fields(kind))
    return f"| `{kind.name}` | {fields} | {inspect.getdoc(kind)} |"


def contract() -> str:
    """Return the reference of the contract: what its NatSpec says, as the compiler left it in the artifact."""
    artifact = json.loads((ROOT / "contracts" / "FederatedLearning.json").read_text())
    return "\n".join(_contract(artifact["abi"], artifact["userdoc"], artifact["devdoc"]))


def _contract(abi: list[dict[str, Any]], user: dict[str, Any], dev: dict[str, Any]) -> Iterator[str]:
    yield "# Contract\n"
    yield "[`FederatedLearning.sol`](../contracts/FederatedLearning.sol), in the words of its source.\n"
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

    def said(docs: dict[str, Any]) -> dict[str, Any]:
        found = docs[kind].get(key, {})
        # The compiler keeps a list for an error, whose name another contract may have too.
        return dict(found[0] if isinstance(found, list) else found)

    notice, details = said(user).get("notice"), said(dev)
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
