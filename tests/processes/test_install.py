"""A host's environment is made beside the one in use and takes its place whole; what runs keeps its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

SCRIPT = ROOT / "roles" / "fl_node" / "files" / "install.sh"
UV = Path(sys.executable).with_name("uv")


def wheel(folder: Path, name: str, version: str, content: str) -> Path:
    """Write a wheel of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


class Machine:
    """What install.sh sees of a host: its folder, and what was copied to it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "opt"
        self.downloads = folder / "cache"
        self.sources = folder / "sources"
        for each in (self.root, self.downloads, self.sources):
            each.mkdir()

    def copy_wheels(self, version: str) -> None:
        folder = self.sources / version
        library = wheel(folder, "library", version, f"VERSION = {version!r}\n")
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        (folder / "requirements.txt").write_text(f"library=={version} --hash=sha256:{digest}\n")
        with zipfile.ZipFile(folder / "uv-1-py3-none-any.whl", "w") as archive:
            archive.writestr("uv-1.data/scripts/uv", f'#!/bin/sh\nexec {UV} "$@"\n')
        with tarfile.open(self.downloads / "wheels.tar", "w") as archive:
            for path in folder.iterdir():
                archive.add(path, path.name)

    def install(
        self, archive: str, package: Path, try_: str = "import library, fl"
    ) -> subprocess.CompletedProcess[str]:
        settings = {"FL_NODE_ROOT": str(self.root), "FL_NODE_DOWNLOADS": str(self.downloads), "FL_NODE_TRY": try_}
        command = ["bash", str(SCRIPT), archive, f"python3.{sys.version_info.minor}", str(package)]
        path = f"{Path(sys.base_prefix, 'bin')}:{os.environ['PATH']}"
        return subprocess.run(
            command, env=os.environ | settings | {"PATH": path}, capture_output=True, text=True, check=False
        )

    def says(self) -> str:
        done = subprocess.run(
            [self.root / "venv" / "bin" / "python", "-c", "import fl, library; print(fl.VERSION, library.VERSION)"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if not UV.exists() or not Path("/usr/bin/python3").exists() or shutil.which("bash") is None:
        pytest.fail("uv, /usr/bin/python3 and bash are needed: make test installs the first")
    return Machine(tmp_path)


def test_what_runs_keeps_its_environment_until_it_has_ended(machine: Machine, tmp_path: Path) -> None:
    first = wheel(tmp_path / "packages", "fl", "1", "VERSION = '1'\n")
    second = wheel(tmp_path / "packages", "fl", "2", "VERSION = '2'\n")
    machine.copy_wheels("1")
    done = machine.install("linux-1.tar", first)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["installed linux-1.tar", f"installed {first.name}"]
    assert machine.says() == "1 1"
    assert not (machine.root / "cache").exists()
    assert machine.install("linux-1.tar", first).stdout == ""

    # As by its unit, whose script's first line names the environment that the link leads to.
    python = machine.root.joinpath("venv").resolve() / "bin" / "python"
    role = subprocess.Popen(
        [python, "-c", "print('begun', flush=True); input(); import fl, library; print(fl.VERSION, library.VERSION)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert role.stdout is not None
    assert role.stdout.readline() == "begun\n"
    try:
        machine.copy_wheels("2")
        done = machine.install("linux-2.tar", second)
        assert done.returncode == 0, done.stderr
        assert machine.says() == "2 2"
        assert role.communicate("go on\n", timeout=600)[0].strip() == "1 1"
    finally:
        role.kill()
        role.wait()
    assert machine.install("linux-2.tar", first).returncode == 0
    assert machine.says() == "1 2"
    assert not (machine.root / "wheels-linux-1").exists()


def test_a_package_that_does_not_work_leaves_the_old_one_in_use(machine: Machine, tmp_path: Path) -> None:
    machine.copy_wheels("1")
    good = wheel(tmp_path / "packages", "fl", "1", "VERSION = '1'\n")
    bad = wheel(tmp_path / "packages", "fl", "2", "raise SystemExit('this processor lacks AVX')\n")
    assert machine.install("linux-1.tar", good).returncode == 0
    assert machine.install("linux-1.tar", bad).returncode != 0
    assert machine.says() == "1 1"
    assert machine.install("linux-1.tar", good).stdout == ""


def test_the_environment_of_an_earlier_version_is_replaced(machine: Machine, tmp_path: Path) -> None:
    (machine.root / "venv").mkdir()
    (machine.root / "venv" / "wheels").write_text("linux-1.tar\n")
    machine.copy_wheels("1")
    assert machine.install("linux-1.tar", wheel(tmp_path / "packages", "fl", "1", "VERSION = '1'\n")).returncode == 0
    assert machine.says() == "1 1"
    assert sorted(path.name for path in machine.root.iterdir() if path.name.startswith("venv")) == ["venv"]
