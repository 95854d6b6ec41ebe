"""How a header waits for local files that arrive, do not arrive, or are no longer wanted."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from fl_node.artifacts import model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import LocalMeta
from fl_node.artifacts.store import Progress, TooLarge, silent
from fl_node.errors import FileMissing, StoreUnreachable
from fl_node.plan.schema import Plan
from fl_node.protocol.reader import Reader
from fl_node.roles.arrivals import Arrivals
from fl_node.runtime.waiting import wait_until
from tests.helpers.logged import logged

PLAN = Plan.model_validate({"name": "test", "data": {"name": "digits"}})
CID = "QmPZ9gcCEpqKTo6aq61g2nXGUhM4iCL3ewB6LDXZCtioEB"
KEY = (1, CID)


class Odd(FolderStore):
    """A store whose fetches end with this error, or wait for this event."""

    error: Exception | None = None
    may_go_on: threading.Event | None = None

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        if self.error is not None:
            raise self.error
        if self.may_go_on is not None:
            progress(50, 100)
            assert self.may_go_on.wait(30)
        super().fetch(file_cid, path, max_bytes, timeout, progress)


@pytest.fixture
def store(tmp_path: Path) -> Odd:
    return Odd(tmp_path / "store")


def arrivals(store: Odd, tmp_path: Path, timeout: float = 0.0) -> Arrivals:
    return Arrivals(store, Reader(store, tmp_path, PLAN, {"a": (3,)}), timeout)


def stored(store: Odd, tmp_path: Path, size: int = 3) -> str:
    path = tmp_path / "written"
    model_file.write(path, LocalMeta(CID, 1, 0, CID, 5, 0.5, 0.5), {"a": np.zeros(size, np.float32)})
    return store.add(path)


def test_a_file_that_has_arrived_is_in_its_place(store: Odd, tmp_path: Path) -> None:
    name, path = stored(store, tmp_path), tmp_path / "updates" / "file"
    incoming, key = arrivals(store, tmp_path), (1, name)
    incoming.fetch(key, name, path)
    incoming.wait([key])
    assert incoming.is_here(key, name, 0)
    assert model_file.read(path, {"a": (3,)}).cid == name
    assert incoming.ended == 1


def test_a_file_on_its_way_is_not_missing_and_says_how_much_is_here(store: Odd, tmp_path: Path) -> None:
    name, store.may_go_on = stored(store, tmp_path), threading.Event()
    incoming, key = arrivals(store, tmp_path), (1, name)
    incoming.fetch(key, name, tmp_path / "file")
    try:
        assert wait_until(lambda: incoming.share(key) > 0, 30)
        assert (incoming.share(key), incoming.is_here(key, name, 0), incoming.is_missing(key)) == (0.5, False, False)
    finally:
        store.may_go_on.set()


def test_a_file_that_nobody_has_is_missing_and_that_is_logged_once(
    store: Odd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store.error = FileMissing("nobody has it")
    incoming = arrivals(store, tmp_path)
    for _ in range(2):
        incoming.fetch(KEY, CID, tmp_path / "file")
        incoming.wait([KEY])
        assert not incoming.is_here(KEY, CID, 7)
    assert incoming.is_missing(KEY)
    (event,) = (entry for entry in logged(caplog) if entry["event"] == "update_missing")
    assert (event["round"], event["learner"], event["cid"]) == (7, 1, CID)
    incoming.forget(incoming.asked())
    assert not incoming.is_missing(KEY)  # it was not asked for since


def test_a_file_is_not_missing_before_its_time_is_up(store: Odd, tmp_path: Path) -> None:
    store.error = FileMissing("nobody has it")
    incoming = arrivals(store, tmp_path, timeout=3600.0)
    incoming.fetch(KEY, CID, tmp_path / "file")
    incoming.wait([KEY])
    assert not incoming.is_here(KEY, CID, 0)
    assert not incoming.is_missing(KEY)


@pytest.mark.parametrize("error", [StoreUnreachable("away"), TooLarge("too large")])
def test_what_is_no_absence_of_the_file_is_raised(store: Odd, tmp_path: Path, error: Exception) -> None:
    store.error = error
    incoming = arrivals(store, tmp_path)
    incoming.fetch(KEY, CID, tmp_path / "file")
    incoming.wait([KEY])
    with pytest.raises(type(error)):
        incoming.is_here(KEY, CID, 0)


def test_no_more_is_fetched_than_the_model_can_have(store: Odd, tmp_path: Path) -> None:
    name = stored(store, tmp_path, 2**20)
    incoming, key = arrivals(store, tmp_path), (1, name)
    incoming.fetch(key, name, tmp_path / "file")
    incoming.wait([key])
    with pytest.raises(TooLarge):
        incoming.is_here(key, name, 0)
