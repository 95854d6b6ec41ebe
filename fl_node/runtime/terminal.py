"""What is printed for people: texts as they are, whatever is in them, to whatever encoding and width there is.

Names, paths and reasons come from users, from files and from the chain. None of them is markup, and no control
character in them reaches the terminal.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleDimensions, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table
from rich.text import Text

UNBOUNDED = 1_000_000
"""Columns of what is no terminal: a file or a pipe has no edge at which to wrap or cut a line."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""C0 and C1 without tab and line end, marks that reorder a line (bidi), other line ends, halves of characters."""

_ERRORS = "fl-node"
_ASCII = str.maketrans(
    dict(zip("▁▂▃▄▅▆▇█", ".:-=+*%#", strict=True))
    | {"…": "...", "×": "x", "–": "-", "—": "-", "−": "-", "·": "-", "±": "+/-", "≥": ">=", "≤": "<=", "→": "->"}
    | {"α": "alpha", "’": "'", "‘": "'", "“": '"', "”": '"', "\u202f": " ", "\u00a0": " "}
)


def visible(text: str, *, lines: bool = True) -> str:
    """Return a text in which each character that a terminal would obey is written as an escape.

    Parameters
    ----------
    text
        Any text.
    lines
        Leave line ends as they are.
    """
    if not lines:
        text = text.replace("\n", "\\n")
    return _CONTROLS.sub(lambda control: control[0].encode("unicode_escape").decode(), text)


def styled(text: str, style: str) -> Text:
    """Return a text for a console in a style, such as ``bold`` or ``red``."""
    return Text(visible(text), style)


def prepare() -> None:
    """Let no character make standard output or standard error fail that their encoding does not have."""
    codecs.register_error(_ERRORS, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


class Console(RichConsole):
    """A console that takes no text for markup or emoji, breaks no line, and cuts none that goes to no terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)
        self._given = options.get("width")
        self._width = self._given  # and not COLUMNS, which says nothing of a file

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        """The width and height of the terminal."""
        size = super().size
        if self.is_terminal or self._given is not None:
            return size
        return ConsoleDimensions(UNBOUNDED, size.height)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to be shown."""
        return super().render_str(visible(text), **options)


class Numbers:
    """A table for a console that never cuts a cell.

    Where it is too wide for a terminal it is shown in parts, each with the first column and some of the others.

    Parameters
    ----------
    rows
        The heads, and the rows below them. A head may have several lines.
    title
        Stands above the table.
    total
        A last row, set apart.
    justify
        Of all columns but where a head says otherwise.
    boxed
        Draw lines between the cells.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[str]],
        title: str | None = None,
        *,
        total: Sequence[str] | None = None,
        justify: JustifyMethod = "right",
        boxed: bool = True,
    ) -> None:
        self._heads, *self._rows = [[visible(cell) for cell in row] for row in rows]
        self._total = None if total is None else [visible(cell) for cell in total]
        self._title = title
        self._justify = justify
        self._boxed = boxed
        body = [*self._rows, *([self._total] if self._total else [])]
        self._widths = [
            max(cell_len(line) for row in (self._heads, *body) for line in row[column].split("\n"))
            for column in range(len(self._heads))
        ]

    def __rich_console__(self, _console: RichConsole, options: ConsoleOptions) -> RenderResult:
        """Yield the table, in as many parts as it takes."""
        for number, columns in enumerate(self.parts(options.max_width)):
            yield self._table(columns, titled=number == 0)

    def parts(self, width: int) -> list[list[int]]:
        """Return which columns stand in which part of the table on a terminal of a width."""
        groups = [[0]]
        for column in range(1, len(self._widths)):
            if len(groups[-1]) > 1 and self._width([*groups[-1], column]) > width:
                groups.append([0])
            groups[-1].append(column)
        return groups

    def fits(self, width: int) -> bool:
        """Return whether each part fits into a width."""
        return all(self._width(columns) <= width for columns in self.parts(width))

    def _width(self, columns: Iterable[int]) -> int:
        widths = [self._widths[column] for column in columns]
        return sum(widths) + 3 * len(widths) + 1 if self._boxed else sum(widths) + 2 * len(widths)

    def _table(self, columns: Sequence[int], *, titled: bool) -> Table:
        table = Table(
            title=self._title if titled else None,
            title_justify="left",
            title_style="",
            width=self._width(columns),
            box=box.HEAVY_HEAD if self._boxed else None,
            padding=(0, 1) if self._boxed else (0, 2, 0, 0),
        )
        for column in columns:
            table.add_column(Text(self._heads[column]), justify=self._justify, width=self._widths[column])
        for row in self._rows:
            table.add_row(*(Text(row[column]) for column in columns))
        if self._total is not None:
            table.add_section()
            table.add_row(*(Text(self._total[column]) for column in columns))
        return table
