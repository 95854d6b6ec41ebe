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


def test_a_result_with_the_longest_name_is_written_and_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a" * 251 + ".txt"
    with files.output_file(tmp_path / name, "--output"):
        files.write(tmp_path / name, "content")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert files.create_private(tmp_path / name.replace("txt", "key"), "12")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    where = Path(files.rescued(name, "an hour's work").rpartition(" ")[2])
    assert where.read_text() == "an hour's work"


def test_a_result_that_can_be_kept_nowhere_leaves_no_folders_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def fail(folder: Path) -> Path:
        (folder / "part").write_text("a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert files.elsewhere(fail) == (
        "; the result is lost: it can't be written to the temporary, current or home folder either "
        "(No space left on device)"
    )
    assert not list(tmp_path.iterdir())


def test_files_appear_together_and_replace_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "one").write_text("old")
    (tmp_path / "two").symlink_to(tmp_path / "far" / "two")
    before = os.umask(0o022)
    try:
        with files.together(tmp_path) as new:
            for name in ("one", "two", "three"):
                files.write(new / name, f"new {name}")
            assert (tmp_path / "one").read_text() == "old"
    finally:
        os.umask(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "one", "three", "two"]
    assert [(tmp_path / name).read_text() for name in ("one", "two", "three")] == ["new one", "new two", "new three"]
    assert (tmp_path / "two").is_symlink()
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o644


def test_after_an_error_none_of_several_files_appears(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    with pytest.raises(OSError, match="No space") as caught, files.together(tmp_path) as new:
        files.write(new / "one", "new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new / "two"))
    assert files.described(caught.value) == f"{tmp_path / 'two'}: No space left on device"
    (tmp_path / "two").mkdir()
    with pytest.raises(IsADirectoryError, match="two"), files.together(tmp_path) as new:
        files.write(new / "one", "new")
        files.write(new / "two", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "one").read_text() == "old"
    with pytest.raises(FileNotFoundError) as missing, files.together(tmp_path / "nowhere"):
        pass
    assert files.described(missing.value) == f"{tmp_path / 'nowhere'}: No such file or directory"


@pytest.mark.parametrize("place", ["/proc/nowhere/file", "/dev/null/file", "/", f"/tmp/{'a' * 256}"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(place: str) -> None:
    with pytest.raises(ConfigError, match=f"^--output {place}: "), files.output_file(Path(place), "--output"):
        pass


def test_a_check_makes_the_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("content")
    for path in (tmp_path / "a" / "b.json", tmp_path / "old", Path(os.devnull)):
        with files.output_file(path, "--output"):
            pass
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "old"]
    assert (tmp_path / "old").read_text() == "content"


def test_after_an_error_the_new_folders_of_a_file_are_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.output_file(tmp_path / "a" / "b" / "file", "--output"):
        assert (tmp_path / "a" / "b").is_dir()
        raise KeyboardInterrupt
    with pytest.raises(ConfigError), files.output_file(tmp_path / "a" / ("b" * 256), "--output"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_that_must_be_regular_is_no_device_and_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
        with (
            pytest.raises(ConfigError, match=f"--output {path}: it exists and is not a regular file"),
            files.output_file(path, "--output", regular=True),
        ):
            pass
        with pytest.raises(FileExistsError), files.replacing(path):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


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


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_is_no_file_is_not_copied(tmp_path: Path, kind: str) -> None:
    (tmp_path / "from").mkdir()
    special = tmp_path / "from" / "special"
    special.symlink_to("/dev/zero") if kind == "device" else os.mkfifo(special)
    with pytest.raises(FileExistsError) as caught:
        files.copy_folder(tmp_path / "from", tmp_path / "to")
    assert files.described(caught.value) == f"{special}: it exists and is not a regular file"


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
