"""Replaces every sentence that a role logs by "x": with this folder in PYTHONPATH, in each process of Python.

So what still works there depends on names and fields of events alone.
"""

from fl_node import events

_fields = events.Event.fields


def _wordless(self):  # type: ignore[no-untyped-def]
    return {name: "x" if name == "detail" else value for name, value in _fields(self).items()}


for _kind in events.EVENTS.values():
    _kind.text = lambda _self: "x"  # type: ignore[method-assign]
events.Event.fields = _wordless  # type: ignore[method-assign]
