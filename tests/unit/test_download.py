"""Files that arrive in the background: taken when they are whole, and gone when nobody wants them any more."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from fl_node import events
from fl_node.artifacts import download
from fl_node.artifacts.download import Arrival, Download, Downloads, Meter, ShownStore
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.store import Progress, silent
from fl_node.errors import FileMissing

HANG = 600.0


class Line(FolderStore):
    """A store whose files have come by half, and the rest when it is let through."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.through = threading.Event()
        self.asked = 0

    def fetch(self, name: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        self.asked += 1
        progress(50, 100)
        assert self.through.wait(HANG)
        super().fetch(name, path, max_bytes, timeout, progress)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path / "store")


@pytest.fixture
def name(tmp_path: Path, line: Line) -> str:
    (tmp_path / "file").write_bytes(bytes(100))
    return line.add(tmp_path / "file")


def started(downloads: Downloads[int], key: int, name: str, folder: Path) -> Download:
    folder.mkdir(exist_ok=True)
    return downloads.start(key, name, folder / f"{key}", 100, 0.0)


def test_a_file_is_in_its_place_when_it_is_whole_and_says_before_how_much_is_here(
    tmp_path: Path, line: Line, name: str
) -> None:
    downloads: Downloads[int] = Downloads(line)
    download = started(downloads, 1, name, tmp_path / "work")
    downloads.wait([1], 0.0)
    assert downloads.take(1) is None
    line.through.set()
    assert download.ended.wait(HANG)
    assert not (tmp_path / "work" / "1").exists()
    taken = downloads.take(1)
    assert taken is download
    assert download.share == 1.0
    download.finish()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["1"]
    assert downloads.get(1) is None


def test_one_that_nobody_wants_any_more_leaves_nothing_and_holds_up_no_other(
    tmp_path: Path, line: Line, name: str
) -> None:
    downloads: Downloads[int] = Downloads(line)
    many = [started(downloads, key, name, tmp_path / "work") for key in range(2 * download.MAX_CONCURRENT)]
    downloads.keep([0])
    line.through.set()
    assert all(each.ended.wait(HANG) for each in many)
    assert downloads.get(1) is None
    kept = downloads.take(0)
    assert kept is not None
    kept.finish()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["0"]


def test_what_went_wrong_is_raised_where_the_file_is_taken(tmp_path: Path, line: Line) -> None:
    line.through.set()
    download = started(Downloads(line), 1, "QmUjkPFQrqeRLakWf7C9Gdf4dFgU2MFK5UMtF9vm37K2cs", tmp_path / "work")
    assert download.ended.wait(HANG)
    with pytest.raises(FileMissing, match="is not in the store folder"):
        download.finish()


def test_a_file_is_missing_when_nothing_of_it_arrived_for_the_time_allowed(tmp_path: Path, line: Line) -> None:
    download = Download(line, "Qm", tmp_path / "file", 100, 0.0)
    arrival = Arrival(download.began - 100)
    arrival.failed(download)
    assert arrival.is_missing(99)
    assert not arrival.is_due()
    download.received = 1  # more than before
    arrival.failed(download)
    assert not arrival.is_missing(99)
    download.arrived -= 100
    arrival.failed(download)  # the same once more
    assert not arrival.is_missing(99)
    away = Arrival(download.began - 100)
    away.failed(download, counts=False)
    assert not away.is_missing(99)


def test_a_meter_tells_bytes_and_rate_and_nothing_of_what_comes_at_once() -> None:
    told: list[tuple[int, int | None]] = []
    Meter(lambda received, length, _rate: told.append((received, length)))(5, 10)
    assert told == []
    Meter(lambda received, length, _rate: told.append((received, length)), interval=0.0)(5, 10)
    assert told == [(5, 10)]
    assert events.size(12_000_000, 930_100_000, 3.4e6) == "12.0 of 930.1 MB, 3.4 MB/s"
    assert events.size(12_000_000, None, 3.4e6) == "12.0 MB, 3.4 MB/s"


def test_a_terminal_shows_how_far_a_large_file_is(tmp_path: Path, line: Line, name: str) -> None:
    screen = io.StringIO()
    line.through.set()
    shown = ShownStore(line, Console(file=screen, force_terminal=True, width=120), interval=0.0)
    assert shown.address == line.address
    shown.fetch(name, tmp_path / "got", 100, 0.0)
    assert (tmp_path / "got").read_bytes() == bytes(100)
    assert f"fetching {name}" in screen.getvalue()
