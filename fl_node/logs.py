"""What a role says: one line an event, as text for people and journald, or as JSON for scripts."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from fl_node import files
from fl_node.terminal import visible

if TYPE_CHECKING:
    from fl_node.chain import Receipt

_log = logging.getLogger("fl_node")


def configure(node: str, *, as_json: bool = False, verbose: bool = False) -> None:
    """Send what the role of this process says to standard error, for people.

    Parameters
    ----------
    node
        Who speaks, such as ``header`` or ``learner``.
    as_json
        Also write one JSON object a line to standard output, for scripts, with ``time``, ``level``, ``node``,
        ``event``, ``message`` and what belongs to the event, such as ``round`` and ``cid``.
    verbose
        Also what helps to find a fault.
    """
    handlers = [_handler(sys.stderr, _TextFormatter(node))]
    if as_json:
        handlers.append(_handler(sys.stdout, _JsonFormatter(node)))
    _log.handlers[:] = handlers
    _log.setLevel(logging.DEBUG if verbose else logging.INFO)
    _log.propagate = False


class _Handler(logging.StreamHandler[TextIO]):
    """Says once that a stream can't be written to; what it should have had is lost, and the role goes on."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            print(f"fl-node: {files.described(error)}; events are lost, the role goes on", file=sys.stderr)


def _handler(stream: TextIO, formatter: logging.Formatter) -> logging.Handler:
    handler = _Handler(stream)
    handler.setFormatter(formatter)
    return handler


def say(event: str, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event: its name for programs, a sentence for people, and values that belong to it."""
    _log.log(level, message, extra={"event": event, "fields": fields})


def say_sealed(event: str, message: str, receipt: Receipt, **fields: Any) -> None:
    """Log what a transaction did: also in which block it is, and what it cost."""
    sealed = f"{message} in block {receipt.block} ({receipt.gas} gas)"
    say(event, sealed, **fields, block=receipt.block, gas=receipt.gas)


class _TextFormatter(logging.Formatter):
    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        # One event, one line: a text from outside can't forge another.
        message = visible(record.getMessage(), lines=False)
        return f"{_time(record)} {self._node}: {level}{message}{visible(_trace(self, record))}"


class _JsonFormatter(logging.Formatter):
    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": _time(record),
                "level": record.levelname.lower(),
                "node": self._node,
                "event": getattr(record, "event", "message"),
                "message": record.getMessage() + _trace(self, record),
                **getattr(record, "fields", {}),
            }
        )


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return "\n" + formatter.formatException(record.exc_info) if record.exc_info else ""
