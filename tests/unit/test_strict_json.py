"""The reader of JSON from outside: what it takes can be printed, encoded and computed with; nothing crashes it."""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fl_node
from fl_node.errors import JsonError
from fl_node.runtime import strict_json

DEEP = strict_json.MAX_DEPTH
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**79), 10**79)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
KEYS = st.text(max_size=10).filter(str.isprintable)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)


def refusal(content: bytes | str, **bounds: int) -> str:
    with pytest.raises(JsonError) as caught:
        strict_json.loads(content, **bounds)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 200
    return message


@given(value=VALUES, indent=st.none() | st.just(2), ascii_=st.booleans())
def test_what_json_writes_is_read_as_json_reads_it(value: Any, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    assert strict_json.loads(text) == strict_json.loads(text.encode()) == json.loads(text)


@settings(max_examples=300)
@given(
    st.text(st.sampled_from('[]{}",:\\ u0d8eE+-.1natrulfsI\u00e9\ud800\x00'), max_size=60) | st.binary(max_size=40)
)
@example('"\\')
@example('["\\ud83d\\ude00"]')
@example("][")
def test_any_content_is_read_as_json_reads_it_or_refused(content: str | bytes) -> None:
    try:
        value = strict_json.loads(content)
    except JsonError:
        return
    assert value == json.loads(content)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_the_deepest_that_is_taken(brackets: str) -> None:
    opening = '{"a":' if brackets == "{}" else "["
    inside = lambda depth: opening * depth + "1" + brackets[1] * depth  # noqa: E731
    strict_json.loads(inside(DEEP))
    strict_json.loads(f"[{', '.join([inside(DEEP - 1)] * 50)}]")
    assert refusal(inside(DEEP + 1)) == f"is nested more than {DEEP} levels deep"


def test_brackets_in_texts_do_not_count() -> None:
    texts = ["[" * 1000, '"[' * 1000, "\\" * 999 + "[" * 999, "]" * 1000]
    assert strict_json.loads(json.dumps(texts)) == texts


DEEP_TEXTS = {
    "open lists": "[" * 65_536,
    "closed lists": "[" * 70_000 + "]" * 70_000,
    "objects": '{"a":' * 70_000,
    "closed objects": '{"a":' * 70_000 + "1" + "}" * 70_000,
    "both": '[{"a":' * 50_000,
    "hidden by texts that close": '["]]]]]]",' * 70_000,
    "hidden behind quotes": '["\\"]",' * 70_000,
    "hidden by brackets that don't match": "[}" * 70_000 + "[" * 70_000,
    "hidden by closing brackets before": "]" * 70_000 + "[" * 70_000,
    "behind spaces": " " * 100_000 + "[" * 70_000,
}


@pytest.mark.parametrize("kind", DEEP_TEXTS)
def test_what_is_nested_deeply_is_refused_before_it_is_parsed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json.json, "loads", lambda *_, **__: pytest.fail("was parsed"))
    assert "nested" in refusal(DEEP_TEXTS[kind])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("][", "is not JSON"),
        ("[1,]", "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ('"two\nlines"', "is not JSON"),
        ("[" * 3 + "]" * DEEP * 2, "is not JSON"),
        (b'"\xff"', "is not UTF-8: byte 1"),
        (b"\xef\xbb\xbf[]", "is not JSON"),
        ("[]".encode("utf-16"), "is not"),
        ("[]".encode("utf-32"), "is not"),
        ("NaN", "has NaN, which is not JSON"),
        ("[-Infinity]", "has -Infinity"),
        ("1e999", "the number '1e999', which is too large"),
        ("-1E+400", "too large"),
        ("0." + "1" * 500, "too large or too long"),
        ("1" * 5000, "has a number of 5000 digits"),
        ("-" + "1" * 81, "has a number of 81 digits"),
        ('{"a": 1, "b": 2, "a": 1}', "has the key 'a' twice"),
        ('[{"a": {"x": 1, "x": 1}}]', "has the key 'x' twice"),
        ('{"\\u001b[2J": 1}', "has the key '\\x1b[2J'"),
        ('{"\\ud800": 1}', "has the key '\\ud800'"),
        ('{"' + "k" * 1025 + '": 1}', "at most 1024 printable characters"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('"\\uDC00"', "half of a surrogate pair"),
        ('["a", {"b": ["\\udfff\\ud800"]}]', "half of a surrogate pair"),
        ('"\ud800"', "half of a surrogate pair"),
        ('"' + "x" * (strict_json.MAX_TEXT + 1) + '"', "has a text of 65537 characters"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_what_is_wrong(content: str | bytes, what: str) -> None:
    assert what in refusal(content)


def test_the_largest_that_is_taken() -> None:
    assert strict_json.loads("9" * 80) == 10**80 - 1
    assert math.isfinite(float(strict_json.loads("9" * 80)))
    assert strict_json.loads('"\\ud83d\\ude00"') == "\U0001f600"
    assert len(strict_json.loads('"' + "x" * strict_json.MAX_TEXT + '"')) == strict_json.MAX_TEXT
    assert strict_json.loads("[1, 2]", max_bytes=6) == [1, 2]
    assert refusal("[1, 2]", max_bytes=5) == "has 6 bytes, more than the 5 allowed"


def test_a_large_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    with pytest.raises(JsonError, match=r"report\.json has more than the 268435456 bytes allowed"):
        strict_json.read(path)
    with pytest.raises(JsonError, match="zero has more than the 1000 bytes allowed"):
        strict_json.read(Path("/dev/zero"), max_bytes=1000)


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"a": [1')
    with pytest.raises(JsonError, match=r"report\.json is not JSON"):
        strict_json.read(path)
    path.write_text('{"a": [1]}')
    assert strict_json.read(path) == {"a": [1]}
    with pytest.raises(FileNotFoundError):
        strict_json.read(tmp_path / "nowhere")


def test_values_that_were_decoded_otherwise_are_checked_too() -> None:
    nested: Any = 1
    for _ in range(100_000):
        nested = {"a": nested}
    for value, what in (
        (nested, "nested"),
        ({"a": 16**5000}, "a number of more than 80 digits"),
        ([("\ud800",)], "surrogate"),
        ({"a\nb": 1}, "has the key 'a\\nb'"),
        ({5: 1}, "has the key 5"),
    ):
        with pytest.raises(JsonError, match=what.replace("\\", r"\\")):
            strict_json.check(value)
    while isinstance(nested, dict):  # or it would be freed level by level
        nested = nested.pop("a")
    strict_json.check({"a": [1, 2.5, None, True, "x", (1, 2)]})


# The whole package


SOURCES = sorted(Path(fl_node.__file__).parent.rglob("*.py"))
RAISING = {"eth", "eth_account", "eth_tester", "py_ecc", "web3"}
"""Libraries that raise the recursion limit when they are imported."""
OWN_FILES = {
    ("abi.py", "artifact"),  # the compiled contract
    ("configuration.py", "settings"),  # the template of a configuration
    ("collect.py", "paper"),  # the paper's figures
    ("strict_json.py", "loads"),
    ("loading.py", "_toml"),
}
"""Where a parser is called: on files of this package, or after a check."""


def test_nothing_from_outside_is_parsed_by_another_reader() -> None:
    own_functions = set()
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                        name = f"{node.value.id}.{node.attr}"
                        if name in {"json.load", "json.loads", "json.JSONDecoder", "tomllib.load", "tomllib.loads"}:
                            own_functions.add((path.name, function.name))
    assert own_functions == OWN_FILES


def imported(node: ast.AST) -> set[str]:
    """Return the packages that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()


def scopes(path: Path) -> Iterator[list[ast.AST]]:
    """Yield the statements of a module and of each of its functions, each without those of functions in it."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        nodes, inner = list(ast.iter_child_nodes(todo.pop())), []
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                todo.append(node)
            elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
                inner.append(node)
                nodes += ast.iter_child_nodes(node)
        yield inner


def test_whatever_imports_a_library_that_raises_the_recursion_limit_puts_it_back() -> None:
    importing = 0
    for path in SOURCES:
        for nodes in scopes(path):
            if any(imported(node) & RAISING for node in nodes):
                importing += 1
                calls = {ast.unparse(node) for node in nodes if isinstance(node, ast.Call)}
                assert "recursion.restore()" in calls, path.name
    assert importing


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe") as raised:
        strict_json.read(tmp_path / "pipe")
    assert raised.value.filename == str(tmp_path / "pipe")
