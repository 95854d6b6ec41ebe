"""Where Python looks for modules: in its libraries first, and not in the working directory.

``python -m`` looks in the working directory before anywhere else, and so does an empty entry of ``PYTHONPATH``: a
file ``random.py`` that lies there would run in place of the library's.

What Python itself imports before this module runs is out of reach: an ``importlib.py`` in the directory in which a
person says ``python -m fl_node`` (``fl-node`` and ``python -P -m fl_node`` ignore it), and a ``sitecustomize.py`` in
a folder of ``PYTHONPATH`` or in the root of an editable checkout, which each Python of its ``.venv`` has on its path.
The root comes last there, so of its modules only those are found that no library has.
"""

from __future__ import annotations

import os
import sys

# os.path and not pathlib: this runs before it is known whose files an import would find.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def apply() -> None:
    """Order ``sys.path`` so that nothing hides a library, here and in child processes.

    The folders that ``PYTHONPATH`` names come last. The working directory and the script's own folder are left out,
    unless this package itself is there; then it follows the libraries. Calling this twice changes nothing.
    """
    given = os.environ.get("PYTHONPATH", "")
    named = [os.path.abspath(entry) for entry in given.split(os.pathsep)] if given else []  # noqa: PTH100
    named = [entry for entry in dict.fromkeys(named) if not _is_library(entry)]
    try:
        here = os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        here = ""
    unsafe = {"", here, *named}
    if not sys.flags.safe_path and not _is_library(sys.path[0]):
        unsafe.add(sys.path[0])
    safe = [entry for entry in sys.path if entry not in unsafe]
    libraries = [entry for entry in safe if _is_library(entry)]
    package = [_ROOT] if _ROOT in unsafe and _ROOT in (*sys.path, here) else []
    others = [entry for entry in safe if entry not in libraries]
    last = [entry for entry in named if entry not in (here, _ROOT)]
    sys.path[:] = [*libraries, *package, *others, *last]
    os.environ["PYTHONSAFEPATH"] = "1"
    if package or last:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    else:
        os.environ.pop("PYTHONPATH", None)


def _is_library(entry: str) -> bool:
    """Return whether a folder belongs to this Python: of its standard library or of what is installed in it."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    return any(entry.startswith(prefix) and f"{os.sep}lib" in entry[len(prefix) :] for prefix in prefixes)
