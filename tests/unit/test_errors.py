"""The tree of errors, and that the command line's help lists its exit codes."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import fl_node
from fl_node import errors
from fl_node.cli.app import EXIT_CODES
from fl_node.errors import FLNodeError


def tree(kind: type[FLNodeError]) -> Iterator[type[FLNodeError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from tree(subclass)


def test_every_exit_code_of_an_error_is_in_the_help_and_every_one_of_the_help_is_an_errors() -> None:
    for module in pkgutil.walk_packages(fl_node.__path__, "fl_node."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    listed = {int(code) for code in re.findall(r"(?<!\S)(\d+) [A-Za-z]", EXIT_CODES)}
    assert {kind.exit_code for kind in tree(FLNodeError)} == listed - {0, 130, 141}
    assert {0, 130, 141} < listed


def test_each_kind_of_error_that_is_caught_by_itself_has_a_docstring() -> None:
    assert all(kind.__doc__ for kind in tree(FLNodeError))


def test_what_may_mend_itself_is_told_from_what_does_not() -> None:
    assert issubclass(errors.ChainUnreachable, errors.ChainError)
    assert issubclass(errors.StoreUnreachable, errors.StoreError)
    assert issubclass(errors.FileMissing, errors.StoreError)
    assert not issubclass(errors.FileMissing, errors.StoreUnreachable)
