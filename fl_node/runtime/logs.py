"""How a role logs its events: text for people at a terminal, JSON lines for log files, the journal and scripts."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from fl_node.errors import ConfigError, JsonError
from fl_node.events import Event, RoleFailed
from fl_node.runtime import files, strict_json
from fl_node.runtime.terminal import visible

FORMATS = ("auto", "text", "json")
FORMAT = "FL_NODE_LOG_FORMAT"
"""The environment variable that names the format on standard error."""

_log = logging.getLogger("fl_node")


def configure(node: str, *, as_json: bool = False, verbose: bool = False) -> None:
    """Log this process's events to standard error: as text on a terminal, as JSON lines elsewhere.

    Each JSON object has ``time``, ``level``, ``node``, ``event``, ``message`` and the fields of its event in
    :mod:`fl_node.events`. ``FL_NODE_LOG_FORMAT`` (``text`` or ``json``) overrides the choice.

    Parameters
    ----------
    node
        Which node this is, such as ``header`` or ``learner``.
    as_json
        Also write the JSON lines to standard output.
    verbose
        Also log messages for debugging.

    Raises
    ------
    ConfigError
        ``FL_NODE_LOG_FORMAT`` is unknown.
    """
    wanted = os.environ.get(FORMAT) or "auto"
    if wanted not in FORMATS:
        raise ConfigError(f"{FORMAT}={wanted}: should be {', '.join(FORMATS)}")
    is_text = wanted == "text" or (wanted == "auto" and sys.stderr.isatty())
    handlers = [_handler(sys.stderr, (_TextFormatter if is_text else _JsonFormatter)(node))]
    if as_json:
        handlers.append(_handler(sys.stdout, _JsonFormatter(node)))
    _log.handlers[:] = handlers
    _log.setLevel(logging.DEBUG if verbose else logging.INFO)
    _log.propagate = False


def is_json() -> bool:
    """Return whether this process logs JSON lines to standard error."""
    return any(
        isinstance(handler, _Handler)
        and handler.stream is sys.stderr
        and isinstance(handler.formatter, _JsonFormatter)
        for handler in _log.handlers
    )


def parse(line: str | bytes) -> dict[str, Any] | None:
    """Return the event that a line of a log holds, or None if it is another program's or a library's line."""
    try:
        event = strict_json.loads(line)
    except JsonError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event


@dataclass(frozen=True)
class SystemdLine:
    """A line of systemd's journal."""

    unit: str
    time: float
    """Seconds since 1970."""
    text: str


def parse_systemd(line: str) -> SystemdLine | None:
    """Return what a line of ``journalctl --output=json`` holds, or None if it has no text."""
    try:
        entry = strict_json.loads(line)
        message = entry.get("MESSAGE")
        time = int(entry.get("__REALTIME_TIMESTAMP", 0)) / 1e6
        if isinstance(message, list):  # bytes that are no UTF-8
            message = bytes(message).decode(errors="replace")
    except (JsonError, ValueError, TypeError, AttributeError, OverflowError):
        return None
    if not isinstance(message, str) or not message.strip():
        return None
    # What systemd says of a unit has its name in another field.
    return SystemdLine(str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT")), time, message)


def sentence(event: Mapping[str, Any]) -> str:
    """Return an event as one line for people, as on a terminal; a text from outside can't forge another line."""
    level = str(event.get("level", "info"))
    prefix = "" if level in {"debug", "info"} else f"{level}: "
    text = f"{event.get('time', '')} {event.get('node', '')}: {prefix}{event.get('message', '')}"
    return visible(text, lines=False)


def readable(line: str) -> str:
    """Return a line of a log as text for people."""
    event = parse(line)
    return visible(line.rstrip("\n"), lines=False) if event is None else sentence(event)


def read(source: str, nodes: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the events of a run's log files in order of time, or those of standard input as they come.

    Parameters
    ----------
    source
        The run's folder, or ``-`` for standard input.
    nodes
        Only the events of these, or of all if empty. In a run's folder a node has the name of its log file.

    Raises
    ------
    ConfigError
        There are no logs, or none of a node.
    """
    if source == "-":
        for line in sys.stdin.buffer:  # its bytes, for libraries print what is not UTF-8
            event = parse(line.decode(errors="replace"))
            if event is not None and (not nodes or event.get("node") in nodes):
                yield event
        return
    paths = {path.stem: path for path in sorted(Path(source, "logs").glob("*.log"))}
    if not paths:
        raise ConfigError(f"{source} has no logs; should be a run folder, such as runs/demo")
    if missing := sorted(set(nodes) - set(paths)):
        raise ConfigError(f"--node {missing[0]}: should be one of {', '.join(paths)}")
    logged = []
    for name in nodes or paths:
        with paths[name].open(encoding="utf-8", errors="replace") as file:
            logged += [event | {"node": name} for event in filter(None, map(parse, file))]
    yield from sorted(logged, key=lambda event: str(event.get("time", "")))


class _Handler(logging.StreamHandler[TextIO]):
    """Says once that a stream can't be written to; what it should have had is lost, and the role goes on."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            print(f"fl-node: {files.described(error)}; events are lost, the role continues", file=sys.stderr)


def _handler(stream: TextIO, formatter: logging.Formatter) -> logging.Handler:
    handler = _Handler(stream)
    if isinstance(formatter, _TextFormatter):
        # The command line prints its own line of an error.
        handler.addFilter(lambda record: getattr(record, "event", "") != RoleFailed.name)
    handler.setFormatter(formatter)
    return handler


def emit(event: Event) -> None:
    """Log one event."""
    _log.log(event.severity(), event.text(), extra={"event": event.name, "fields": event.fields()})


class _Formatter(logging.Formatter):
    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def _content(self, record: logging.LogRecord) -> dict[str, Any]:
        return {
            "time": _time(record),
            "level": record.levelname.lower(),
            "node": self._node,
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
        }

    def _trace(self, record: logging.LogRecord) -> str:
        return "\n" + self.formatException(record.exc_info) if record.exc_info else ""


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return sentence(self._content(record)) + visible(self._trace(record))


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content = self._content(record)
        content["message"] += self._trace(record)
        return json.dumps(content | getattr(record, "fields", {}))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
