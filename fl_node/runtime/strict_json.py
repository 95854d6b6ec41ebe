"""The one reader for JSON that comes from outside: from the store, the chain, a socket, or a file of somebody else.

``json.loads`` alone is not safe: Python's recursion limit may have been raised by a library, and then a deeply nested
text overflows the C stack and kills the process. Here size and nesting are checked before anything is parsed. Numbers
and texts are bounded so that whatever is returned can be printed, encoded as UTF-8, and converted to a float.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from fl_node.errors import JsonError

MAX_DEPTH = 32
"""Levels of lists and objects; what ``fl-node`` writes has fewer than ten."""
MAX_DIGITS = 80
"""Of a whole number; the largest of Ethereum has 78."""
MAX_FLOAT_CHARACTERS = 400
MAX_TEXT = 64 * 1024
"""Characters of one text."""
MAX_KEY = 1024
"""Characters of one key of an object."""
MAX_FILE_BYTES = 256 * 1024**2
"""Enough for the report of a long run with many learners."""

# Possessive, and an open text ends where the content ends: never more than one look at each byte.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def loads(
    content: bytes | str, *, max_bytes: int = MAX_FILE_BYTES, max_depth: int = MAX_DEPTH, max_text: int = MAX_TEXT
) -> Any:
    """Parse JSON.

    Parameters
    ----------
    content
        The text, or UTF-8 without a byte-order mark.
    max_bytes
        The largest size, in bytes.
    max_depth
        The deepest nesting.
    max_text
        The longest string, in characters.

    Raises
    ------
    JsonError
        The content is not JSON (NaN and Infinity are not), goes beyond a bound, names a key twice in one object, or
        has a text that UTF-8 can't encode. The message continues a sentence such as "plan.json: …".
    """
    try:
        encoded = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise JsonError("has half of a surrogate pair, which is no character") from error
    if len(encoded) > max_bytes:
        raise JsonError(f"has {len(encoded)} bytes, more than the {max_bytes} allowed")
    deep = _is_deeper(encoded, max_depth)
    try:
        value = json.loads(
            encoded.decode(), object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant
        )
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8: byte {error.start} is wrong") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON: {error}") from error
    if deep:
        _too_deep(max_depth)
    if len(encoded) > max_text or _SURROGATE.search(encoded):
        check(value, max_depth=max_depth, max_text=max_text)
    return value


def read(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Parse a JSON file; of one that is too large nothing is read.

    Raises
    ------
    JsonError
        As :func:`loads` does; the message names the file.
    OSError
        The file can't be read.
    """
    try:
        return loads(read_bytes(path, max_bytes), max_bytes=max_bytes)
    except JsonError as error:
        raise JsonError(f"{path} {error}") from error


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value was a number in the text; for Python ``true`` and ``false`` are numbers, too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_bytes(path: Path, max_bytes: int, *, pipes: bool = False) -> bytes:
    """Return the content of a file; of one that is too large nothing is read.

    Parameters
    ----------
    path
        The file.
    max_bytes
        The largest size, in bytes.
    pipes
        Whether it may be a pipe, which is waited for until somebody writes to it.

    Raises
    ------
    JsonError
        It has more bytes than allowed.
    OSError
        The file can't be read.
    """
    if not pipes and path.is_fifo():
        raise OSError(errno.EINVAL, "should be a file, not a pipe", str(path))
    with path.open("rb") as file:
        # A pipe or a device has no size; of these no more is read than allowed.
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > max_bytes else file.read(max_bytes + 1)
    if max(size, len(content)) > max_bytes:
        raise JsonError(f"has more than the {max_bytes} bytes allowed")
    return content


def check(value: object, *, max_depth: int = MAX_DEPTH, max_text: int = MAX_TEXT) -> None:
    """Check the depth, the strings and the integers of a decoded value.

    Parameters
    ----------
    value
        The value, from JSON or another format.
    max_depth
        The deepest nesting.
    max_text
        The longest string, in characters.

    Raises
    ------
    JsonError
        The value exceeds a bound.
    """
    level: list[object] = [value]
    for _ in range(max_depth + 1):
        following: list[object] = []
        for value in level:
            if isinstance(value, dict):
                for key in value:
                    _check_key(key)
                following += value.values()
            elif isinstance(value, list | tuple):
                following += value
            elif isinstance(value, str):
                _check_text(value, max_text)
            elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
                raise JsonError(f"has a number of more than {MAX_DIGITS} digits")
        if not following:
            return
        level = following
    _too_deep(max_depth)


def _is_deeper(content: bytes, most: int) -> bool:
    """Return whether brackets are nested deeper; if so, or if they don't match, raise unless it is safe to parse."""
    if content.count(b"[") + content.count(b"{") <= most:
        return False
    brackets = _STRING.sub(b"", content).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(most):
        brackets = brackets.replace(b"[]", b"")  # takes the innermost level away
        if not brackets:
            return False
    if brackets.count(b"[") > most:
        _too_deep(most)
    return True


def _too_deep(most: int) -> NoReturn:
    raise JsonError(f"is nested more than {most} levels deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    for key in unique:
        _check_key(key)
    if len(unique) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in unique if names.count(key) > 1)
        raise JsonError(f"has the key {_short(twice)} twice in one object")
    return unique


def _check_key(key: object) -> None:
    if not isinstance(key, str) or len(key) > MAX_KEY or not key.isprintable():
        raise JsonError(f"has the key {_short(key)}; a key should be at most {MAX_KEY} printable characters")


def _check_text(text: str, most: int) -> None:
    if len(text) > most:
        raise JsonError(f"has a text of {len(text)} characters, more than the {most} allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise JsonError("has half of a surrogate pair, which is no character") from error


def _int(text: str) -> int:
    digits = len(text.removeprefix("-"))
    if digits > MAX_DIGITS:
        raise JsonError(f"has a number of {digits} digits, more than the {MAX_DIGITS} allowed")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= MAX_FLOAT_CHARACTERS else math.inf
    if not math.isfinite(value):
        raise JsonError(f"has the number {_short(text)}, which is too large or too long")
    return value


def _constant(text: str) -> NoReturn:
    raise JsonError(f"has {text}, which is not JSON")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
