"""``fl-node`` in the process of a test, where the process is not the point."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from fl_node.cli import app


@dataclass(frozen=True)
class Ended:
    """How the command line ended."""

    code: int
    out: str
    err: str


FlNode = Callable[..., Ended]


@contextmanager
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[FlNode]:
    """Yield a function that runs ``fl-node`` in this process and returns how it ended."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["fl-node", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app.main()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
