"""What is checked of every option and argument before it is converted."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer

from fl_node.cli import app
from fl_node.cli.command import Command
from fl_node.errors import ConfigError


def parsed(*arguments: str) -> dict[str, Any]:
    """Return what a command with options of every kind gets for these arguments."""
    got: dict[str, Any] = {}

    def work(
        plan: Annotated[list[str], typer.Argument(metavar="PLAN...")],
        count: Annotated[int | None, typer.Option("--count", "-c", min=-5)] = None,
        share: Annotated[float, typer.Option("--share")] = 0.0,
        output: Annotated[str, typer.Option("--output")] = "here",
        each: Annotated[list[str] | None, typer.Option("--each")] = None,
        on: Annotated[bool | None, typer.Option("--on/--off")] = None,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        got.update(plan=plan, count=count, share=share, output=output, each=each, on=on, as_json=as_json)

    built = typer.Typer()
    built.command(cls=Command)(work)
    typer.main.get_command(built).main(list(arguments), standalone_mode=False)
    return got


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["p", "--output", ""], "--output"),
        (["p", "--output="], "--output"),
        (["p", "--output", " "], "--output"),
        (["p", "--each", "a", "--each", ""], "--each"),
        (["p", ""], "PLAN"),
        (["p", "--count", ""], "--count"),
        (["p", "--count", " 3"], "--count"),
        (["p", "--count", "1_0"], "--count"),
        (["p", "--count", "3.0"], "--count"),
        (["p", "-c", "\u0663"], "--count"),
        (["p", "--count", "9" * 16], "--count"),
        (["p", "--count", "9" * 5000], "--count"),
        (["p", "--share", "nan"], "--share"),
        (["p", "--share", "inf"], "--share"),
        (["p", "--share", "1e400"], "--share"),
        (["p", "--share", "0x1"], "--share"),
        (["p", "--share", "1_0.0"], "--share"),
        (["p", "--share", "0.5\n"], "--share"),
    ],
)
def test_a_value_that_only_the_parser_would_understand_is_named(arguments: list[str], name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(*arguments)
    assert str(raised.value).startswith(f"{name} ")


def test_what_is_right_arrives() -> None:
    got = parsed(
        "p", "q", "-c", "1", "-c", "-3", "--share", "1e-3", "--each", "a", "--each", "a", "--off", "--json", "--json"
    )
    assert got == {
        "plan": ["p", "q"],
        "count": -3,
        "share": 0.001,
        "output": "here",
        "each": ["a", "a"],
        "on": False,
        "as_json": True,
    }


def test_every_command_checks_its_arguments() -> None:
    def leaves(command: Any) -> list[Any]:
        return [leaf for below in getattr(command, "commands", {}).values() for leaf in leaves(below)] or [command]

    for command in leaves(app.command_line()):
        assert isinstance(command, Command), command.name
