"""A command that checks what the user gave before any option is converted."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from typing import Any

from typer.core import TyperCommand

from fl_node.errors import ConfigError
from fl_node.runtime import numerals

_MAY_BE_EMPTY = {"--attacks"}
"""A sweep without attacks has an empty list of them."""
_NUMBERS: dict[type, tuple[Callable[[str], float], str]] = {
    int: (numerals.whole, f"a whole number of at most {numerals.MOST_DIGITS} digits, such as 3"),
    float: (numerals.real, "a number, such as 0.5"),
}


class Command(TyperCommand):
    """A command that refuses empty values, and numbers that only Python would take for numbers.

    An empty path would be the current folder, and Python reads ``1_0``, ``nan`` and digits of other scripts.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the arguments and parse them.

        Raises
        ------
        ConfigError
            A value is empty or not a number.
        """
        if not ctx.resilient_parsing and (args or not self.no_args_is_help):
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            types = typing.get_type_hints(self.callback)
            for parameter in self.get_params(ctx):
                for text in _texts(given.get(str(parameter.name))):
                    _check(_name(parameter), text, types.get(str(parameter.name)))
        return super().parse_args(ctx, args)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in what the parser gave for a parameter."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _name(parameter: Any) -> str:
    """Return the name of a parameter as its user knows it."""
    if parameter.param_type_name == "option":
        return "/".join(max(names, key=len) for names in (parameter.opts, parameter.secondary_opts) if names)
    return str(parameter.metavar or parameter.name).rstrip(".")


def _check(name: str, text: str, type_: Any) -> None:
    if not text.strip() and name not in _MAY_BE_EMPTY:
        raise ConfigError(f"{name} is empty; give a value or leave it out")
    if "\0" in text:
        raise ConfigError(f"{name} {text!r}: a NUL character is not allowed")
    for kind, (read, example) in _NUMBERS.items():
        if kind in (type_, *typing.get_args(type_)):
            try:
                read(text)
            except ValueError as error:
                raise ConfigError(f"{name} {text[:60]}: should be {example}") from error
