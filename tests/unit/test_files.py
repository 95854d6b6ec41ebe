"""Files that appear whole or not at all, and results that are not lost."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from fl_node.errors import ConfigError
from fl_node.runtime import files


def test_a_file_appears_whole_with_the_mode_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write(tmp_path / "result.json", "…")
    finally:
        os.umask(before)
    assert (tmp_path / "result.json").read_bytes() == "…".encode()
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o644
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    files.write(tmp_path / "link", "content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "content"
    files.write(Path(os.devnull), b"content")
    assert Path(os.devnull).is_char_device()


def test_an_error_of_writing_has_the_path_and_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        files.write(Path("/dev/full"), "content")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        files.write(tmp_path / "folder" / "not" / "there", "content")
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_error_that_is_only_a_text_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="unable to write") as caught, files.named(tmp_path):
        raise OSError("unable to write")
    assert files.described(caught.value) == f"{tmp_path}: unable to write"


def test_a_result_that_cannot_be_written_is_kept_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ConfigError, match="/dev/full: No space left on device; the result is in ") as caught:
        files.keep(Path("/dev/full"), "an hour's work")
    where = Path(str(caught.value).rpartition(" ")[2])
    assert where.read_text() == "an hour's work"
    assert tmp_path in where.parents


def test_a_result_is_kept_at_home_where_the_temporary_folder_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.chdir("/proc")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path) in files.rescued("result.json", "an hour's work")
    assert next(tmp_path.rglob("result.json")).read_text() == "an hour's work"


@pytest.mark.parametrize("place", ["/proc/nowhere/file", "/dev/null/file", "/"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(place: str) -> None:
    with pytest.raises(ConfigError, match=f"^--output {place}: "):
        files.check(Path(place), "--output")


def test_a_check_makes_the_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    files.check(tmp_path / "a" / "b.json", "--output")
    (tmp_path / "old").write_text("content")
    files.check(tmp_path / "old", "--output")
    files.check(Path(os.devnull), "--output")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "old"]
    assert (tmp_path / "old").read_text() == "content"


def test_a_folder_is_copied_without_locks_into_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "LOCK").write_text("")
    (tmp_path / "from" / "deep" / "one").write_text("1")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "two").write_text("2")
    files.copy_folder(tmp_path / "from", tmp_path / "to")
    copied = {str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*")}
    assert copied == {"deep", "deep/one", "two"}
    with pytest.raises(OSError, match="nowhere"):
        files.copy_folder(tmp_path / "nowhere", tmp_path / "to")


@pytest.mark.parametrize("name", ["file", "link", "loop"])
def test_what_is_no_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=f"--results {tmp_path / name}: it exists and is not a folder"):
        files.check_folder(tmp_path / name, "--results")


def test_after_an_error_no_new_folder_is_left_that_is_empty(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.output_folder(tmp_path / "a" / "b" / "c", "--results"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), files.output_folder(tmp_path / "a" / "b", "--results"):
        (tmp_path / "a" / "result").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "result"]


def test_a_small_file_without_an_end_is_refused() -> None:
    with pytest.raises(OSError, match="/dev/zero") as caught:
        files.read_small(Path("/dev/zero"))
    assert caught.value.errno == errno.EFBIG


def test_a_private_file_is_its_owners_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        assert files.create_private(tmp_path / "key", "12")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert not files.create_private(tmp_path / "key", "34")
    assert (tmp_path / "key").read_text() == "12"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_private_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    if call == "link":  # a file system without hard links
        assert files.create_private(tmp_path / "key", "12")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["12"]
    else:
        with pytest.raises(OSError, match="key"):
            files.create_private(tmp_path / "key", "12")
        assert not list(tmp_path.iterdir())
