"""Texts in Markdown (GitHub's, https://github.github.com/gfm/): whatever is in them, they stand there as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fl_node.runtime.terminal import visible

_SPACES = re.compile(r"[ \t\n]+")
_SIGNS = re.compile(r"[\\`*_\[\]<>#|~$]|&(?=#?\w+;)|:(?=//)|(?<=www)\.(?=\w)", re.IGNORECASE)
"""What has a meaning anywhere in a line: emphasis, code, links, markup, entities, cells, formulas, addresses."""
_PLAIN = re.compile(r"[A-Za-z0-9]+")
_LIST = re.compile(r"^( ?)(?:(\d+)([.)])(?= |$)|([-+=])(?=[-+= ]|$))")
"""What begins a list, a heading or a line where a text begins."""


class Markdown(str):
    """A text that is Markdown already."""

    __slots__ = ()


def escape(value: object) -> Markdown:
    """Return a value as Markdown that shows it, in one line."""
    if isinstance(value, Markdown):
        return value
    text = _SIGNS.sub(r"\\\g<0>", _SPACES.sub(" ", visible(str(value))))
    return Markdown(_LIST.sub(lambda m: f"{m[1]}{m[2]}\\{m[3]}" if m[2] else f"{m[1]}\\{m[4]}", text))


def code(value: object) -> Markdown:
    """Return a hash, an address or the like as code; any other text is escaped."""
    text = str(value)
    return Markdown(f"`{text}`") if _PLAIN.fullmatch(text) else escape(text)


def block(text: str, language: str) -> Markdown:
    """Return lines as a block of code."""
    fence = "`" * max([2, *map(len, re.findall("`+", text))]) + "`"
    return Markdown(f"{fence}{language}\n{visible(text)}\n{fence}")


def grid(rows: Sequence[Sequence[object]], left: Sequence[int] = ()) -> Markdown:
    """Return a table; the first row is its head, and some columns have their texts at the left."""
    texts = [f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows]
    sides = ("---|" if column in left else "---:|" for column in range(len(rows[0])))
    return Markdown("\n".join([texts[0], "|" + "".join(sides), *texts[1:]]))
