"""Public functions with three or more arguments describe each of them; ruff's DOC501 checks ``Raises``."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_node.cli.app import ATTACK_COMMANDS, COMMANDS, NODE_CONFIG_COMMANDS, PLAN_COMMANDS
from tests.helpers.checkout import ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef

MODULES = [path.relative_to(ROOT) for path in sorted((ROOT / "fl_node").rglob("*.py"))]
HELP = {
    (command.__module__, command.__name__)
    for commands in (*COMMANDS.values(), PLAN_COMMANDS, ATTACK_COMMANDS, NODE_CONFIG_COMMANDS)
    for command in commands.values()
}
"""Functions whose parameters the help of the command line describes."""


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@functools.cache
def classes() -> dict[str, ast.ClassDef]:
    nodes = (node for path in MODULES for node in ast.walk(parsed(path)))
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def public(node: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Yield functions and methods, but not methods that a base class describes."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from (method for method in public(child) if not inherits(child, method.name))
        elif isinstance(child, Function) and not child.name.startswith("_"):
            yield child


def inherits(owner: ast.ClassDef, method: str) -> bool:
    names = (ast.unparse(base).partition("[")[0] for base in owner.bases)
    return any(
        any(isinstance(child, Function) and child.name == method for child in classes()[name].body)
        or inherits(classes()[name], method)
        for name in names
        if name in classes()
    )


def arguments(function: Function) -> set[str]:
    given = function.args
    every = (*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg)
    return {argument.arg for argument in every if argument} - {"self", "cls"}


def described(function: Function) -> set[str]:
    """Return the names in the section ``Parameters``."""
    docstring = ast.get_docstring(function) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-|\Z)", docstring, re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^\S.*$", section[1], re.MULTILINE) if section else []
    return {name.strip("* ") for entry in entries for name in entry.partition(" :")[0].split(",")}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_public_functions_with_three_or_more_arguments_describe_each_of_them(path: Path) -> None:
    module = ".".join(path.with_suffix("").parts)
    undescribed = {
        f"{path}:{function.lineno} {function.name}": sorted(missing)
        for function in public(parsed(path))
        if (module, function.name) not in HELP
        and len(arguments(function)) >= 3
        and (missing := arguments(function) - described(function))
    }
    assert not undescribed
