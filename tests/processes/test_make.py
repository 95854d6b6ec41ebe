"""`make` makes its environment anew when it is incomplete, and says what is missing when it can't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

GOOD = f"""#!/bin/bash
[ "$2" = venv ] || exec {sys.executable} "$@"
{sys.executable} -m venv --without-pip "$3"
site=$(echo "$3"/lib/python*/site-packages)
mkdir "$site/pip" && touch "$site/pip/__init__.py" "$site/pip/__main__.py"
"""
"""A Python whose venv has a pip; an empty one, since it is not used here."""
BAD = f"""#!/bin/bash
[ "$2" = venv ] || exec {sys.executable} "$@"
{sys.executable} -m venv --without-pip "$3"
echo "The virtual environment was not created successfully because ensurepip is not available."
exit 1
"""
"""Debian's without python3-venv: it leaves a .venv without pip behind."""

OLD = f"""#!/bin/bash
if [ "$2" = venv ]; then
	mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
else
	exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 13, 'final', 0); exec(sys.argv[-1])" "$2"
fi
"""
"""One that is too old, as its environments are."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "with space"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    for name, content in (("python3", GOOD), ("python3.12", BAD), ("python3.10", OLD)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    return folder


def make(project: Path, python: str = "./python3") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", f"PYTHON={python}", ".venv/bin/python"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def has_pip(project: Path) -> bool:
    command = [project / ".venv" / "bin" / "python", "-c", "import pip"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_what_to_install_is_said_and_the_next_call_recovers(project: Path) -> None:
    failed = make(project, "./python3.12")
    assert failed.returncode != 0
    assert "apt-get install python3.12-venv" in failed.stdout
    assert not (project / ".venv").exists()
    assert make(project).returncode == 0
    assert has_pip(project)
    assert "up to date" in make(project).stdout


def test_an_environment_without_pip_is_made_anew(project: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    assert make(project).returncode == 0
    assert has_pip(project)


def test_an_environment_of_a_python_that_was_removed_is_made_anew(project: Path) -> None:
    assert make(project).returncode == 0
    python = project / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(project / "removed" / "python3")
    assert make(project).returncode == 0
    assert has_pip(project)


def test_a_python_that_is_too_old_makes_no_environment(project: Path) -> None:
    failed = make(project, "./python3.10")
    assert failed.returncode != 0
    assert "./python3.10 is not Python 3.11, 3.12 or 3.13" in failed.stdout
    assert not (project / ".venv").exists()
    assert make(project).returncode == 0


def test_an_environment_of_a_python_that_is_too_old_is_made_anew(project: Path) -> None:
    subprocess.run([project / "python3.10", "-m", "venv", project / ".venv"], check=True)
    assert (project / ".venv" / "bin" / "python").read_text() == OLD
    assert make(project).returncode == 0
    assert (project / ".venv" / "bin" / "python").resolve() == Path(sys.executable).resolve()
    assert "up to date" in make(project).stdout


def test_an_environment_that_is_a_link_is_not_emptied(project: Path) -> None:
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    (project / ".venv").symlink_to(elsewhere)
    assert make(project).returncode == 0
    assert (elsewhere / "mine").exists()


def test_on_a_mac_with_an_intel_processor_it_says_what_works_before_it_builds_anything(project: Path) -> None:
    (project / "uname").write_text("#!/bin/sh\necho Darwin x86_64\n")
    (project / "uname").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment["PATH"] = f"{project}:{environment['PATH']}"
    ended = subprocess.run(
        ["make", "PYTHON=./python3", ".venv/bin/python"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "vagrant up works" in ended.stdout
    assert 'docker run --rm --volume "$PWD:/src:ro"' in ended.stdout
    assert not (project / ".venv").exists()
