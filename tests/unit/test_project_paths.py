"""Where a path that a person wrote lies: in the working directory, else in the project, whatever PWD says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT, load

paths = load("ansible/filter_plugins/project_paths.py")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", "/")
    return folder


def test_a_path_from_the_project_is_found_from_anywhere(elsewhere: Path) -> None:
    assert paths.project_path("plans/demo.toml") == str(ROOT / "plans" / "demo.toml")


def test_the_working_directory_comes_first(elsewhere: Path) -> None:
    (elsewhere / "plans").mkdir()
    (elsewhere / "plans" / "demo.toml").touch()
    assert paths.project_path("plans/demo.toml") == str(elsewhere / "plans" / "demo.toml")


def test_what_is_nowhere_would_be_in_the_working_directory(elsewhere: Path) -> None:
    assert paths.project_path("none.toml") == str(elsewhere / "none.toml")


def test_a_working_directory_that_is_gone_is_no_error(elsewhere: Path) -> None:
    elsewhere.rmdir()
    assert paths.project_path("plans/demo.toml") == str(ROOT / "plans" / "demo.toml")


@pytest.mark.parametrize("path", ["", "/etc/hosts", "https://mirror.example/geth"])
def test_what_is_no_relative_path_stays(elsewhere: Path, path: str) -> None:
    assert paths.project_path(path) == path


def test_a_home_is_found(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert paths.project_path("~/mine.toml") == "/home/somebody/mine.toml"
