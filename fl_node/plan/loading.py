"""Reads plans: TOML files that people write, and the canonical JSON that is published."""

from __future__ import annotations

import codecs
import hashlib
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl_node.errors import JsonError, PlanError
from fl_node.plan import checks, messages
from fl_node.plan.schema import Plan
from fl_node.runtime import files, strict_json

MAX_PLAN_BYTES = 64 * 1024
MAX_FILE_BYTES = 256 * 1024
"""Maximum size of a TOML file, which may contain many comments."""
MAX_BRACKETS = 200
"""Maximum number of opening brackets in a TOML file, including comments; tomllib recurses for each."""
MAX_DOTS = 64
"""Maximum number of dots in a line of a TOML file; tomllib's time is quadratic in the parts of a key."""


def load(path: Path, overrides: Iterable[str] = ()) -> Plan:
    """Read a plan in TOML or JSON.

    Parameters
    ----------
    path
        The TOML file, a JSON file (``.json``), or ``-`` for standard input in either format.
    overrides
        Settings that replace those in the file, each as ``key=value`` in TOML, such as ``training.epochs=1``.

    Raises
    ------
    PlanError
        The file can't be read or the plan is not valid; the message lists all problems.
    """
    return load_with_module(path, overrides)[0]


def load_with_module(path: Path, overrides: Iterable[str] = ()) -> tuple[Plan, Path | None]:
    """Read a plan as :func:`load` does, and return it with the path of its custom module, or None.

    The file is read once, for it may be a pipe.

    Parameters
    ----------
    path, overrides
        As for :func:`load`.

    Raises
    ------
    PlanError
        The file can't be read or the plan is not valid; the message lists all problems.
    """
    content = _read(path, overrides)
    module = _module(path, content)
    return validate(_with_hash(content, module), str(path)), None if str(path) == "-" else module


def module_file(path: Path, overrides: Iterable[str] = ()) -> Path | None:
    """Return the path of the custom module of a TOML plan, or None; arguments as for :func:`load`."""
    return None if str(path) == "-" else _module(path, _read(path, overrides))


def _read(path: Path, overrides: Iterable[str]) -> dict[str, Any]:
    is_piped = str(path) == "-"
    form = "JSON" if path.suffix == ".json" else "TOML"
    try:
        if is_piped:
            raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            raw = strict_json.read_bytes(path, MAX_FILE_BYTES, pipes=True)
        if len(raw) > MAX_FILE_BYTES:
            raise JsonError(f"has more than the {MAX_FILE_BYTES} bytes allowed")
        text = _decoded(raw)
        if is_piped and text.lstrip().startswith("{"):
            form = "JSON"
        content = strict_json.loads(text) if form == "JSON" else _toml(text)
    except OSError as error:
        raise PlanError(f"plan {path}: {error.strerror or error}") from error
    except JsonError as error:
        raise PlanError(f"plan {path} {error}") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan {path} is not valid {form}: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"plan {path} should be a table of settings")
    for override in overrides:
        _override(content, override)
        _check_override(content, override)
    return content


def _decoded(content: bytes) -> str:
    """Decode the text of a plan, with line endings of any system, and with or without a byte-order mark.

    Raises
    ------
    ValueError
        The text is not UTF-8; the message names the line.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise ValueError("UTF-16 or UTF-32; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ValueError(f"line {line} has the byte 0x{byte:02x}, which is not UTF-8; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"line {text[: text.index(chr(0))].count(chr(10)) + 1} has a NUL byte; remove it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _toml(text: str) -> dict[str, Any]:
    """Parse TOML, with the limits for untrusted JSON.

    Raises
    ------
    JsonError
        The text exceeds a limit.
    tomllib.TOMLDecodeError
        The text is not TOML.
    """
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise JsonError(f"has more than {MAX_BRACKETS} opening brackets")
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MAX_DOTS and not line.lstrip().startswith("#"):
            raise JsonError(f"has more than {MAX_DOTS} dots in line {number}")
    content = tomllib.loads(text)
    strict_json.check(content)
    return content


def _check_override(content: dict[str, Any], override: str) -> None:
    try:
        strict_json.check(content)
    except JsonError as error:
        raise PlanError(f"--set {override[:60]!r}: the plan {error}") from error


def _module(path: Path, content: Mapping[str, Any]) -> Path | None:
    """Return the path in `custom.module`, or None if it is only the name of a module."""
    custom = content.get("custom")
    module = custom.get("module") if isinstance(custom, Mapping) else None
    is_path = isinstance(module, str) and module.endswith(".py") and "\0" not in module
    return path.parent / str(module) if is_path else None


def _with_hash(content: dict[str, Any], module: Path | None) -> dict[str, Any]:
    """Replace the path of a module by its name and hash.

    Raises
    ------
    PlanError
        The module can't be read, or does not have the hash in the plan.
    """
    if module is None:
        return content
    try:
        digest = hashlib.sha256(files.read_small(module)).hexdigest()
    except OSError as error:
        raise PlanError(f"custom.module: {module}: {error.strerror or error}") from error
    custom = {"sha256": digest, **content["custom"], "module": module.stem}
    if custom["sha256"] != digest:
        raise PlanError(f"custom.module: {module} has SHA-256 {digest}, but the plan requires {custom['sha256']}")
    return content | {"custom": custom}


def from_bytes(content: bytes, source: str = "published plan") -> Plan:
    """Read a published plan.

    Raises
    ------
    PlanError
        The bytes are not the canonical form of a valid plan.
    """
    if len(content) > MAX_PLAN_BYTES:
        raise PlanError(f"{source}: {len(content)} bytes; a plan may have at most {MAX_PLAN_BYTES}")
    try:
        decoded = strict_json.loads(content)
    except JsonError as error:
        raise PlanError(f"{source} {error}") from error
    plan = validate(decoded, source)
    if plan.to_bytes() != content:
        raise PlanError(f"{source} is not in canonical form (JSON with sorted keys, no spaces, all settings)")
    check_complete(plan, source)
    return plan


def check_complete(plan: Plan, source: str) -> None:
    """Check that a plan has all settings that deployment fills in, so that a run can be audited without its data.

    Raises
    ------
    PlanError
        Settings are missing; the message lists them.
    """
    if plan.unknown:
        raise PlanError(f"{source} lacks settings that deployment fills in: {', '.join(plan.unknown)}")


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise PlanError(f"--set {override}: should be KEY=VALUE, such as training.epochs=1")
    if "\n" in text.strip():
        raise PlanError(f"--set {override[:60]!r}: should be one line, KEY=VALUE")
    try:
        value = _toml(f"value = {text.strip()}")["value"]
    except JsonError as error:
        raise PlanError(f"--set {key.strip()[:60]!r}: the value {error}") from error
    except ValueError:
        value = text.strip()
    for name in path[:-1]:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise PlanError(f"--set {override}: {name} is not a section")
    content[path[-1]] = value


def validate(content: object, source: str) -> Plan:
    """Return the plan in decoded TOML or JSON.

    Raises
    ------
    PlanError
        The plan is not valid; the message names the source and lists all problems, one per line.
    """
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        if isinstance(content, dict):
            problems = messages.problems(error) + checks.problems(Plan.valid_part(content))
            # Some problems show only once what the content leaves out is completed.
            problems = problems or [line for mistake in error.errors() for line in mistake["msg"].splitlines()]
        else:
            problems = ["should be a table of settings"]
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise PlanError(f"{source} is not a valid plan:{lines}") from error
