"""Puts Python's recursion limit back after libraries have raised it.

``py_ecc`` (imported by ``eth_account`` and ``web3``) and ``eth`` (py-evm) raise it to 100,000 when they are imported.
With such a limit, recursion in C code, such as that of ``json`` or ``repr``, crashes the process before it can raise
a ``RecursionError``. Every module that imports one of these libraries calls :func:`restore` afterwards.
"""

from __future__ import annotations

import sys

LIMIT = 1000
"""Python's default."""


def restore() -> None:
    """Lower the limit to Python's default if a library has raised it."""
    if sys.getrecursionlimit() > LIMIT:
        sys.setrecursionlimit(LIMIT)
