"""The built wheel alone, with the packages that it declares: in an empty folder, with an empty home."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fl_node.artifacts import cid
from fl_node.plan import examples
from fl_node.plan import loading as plans
from tests.helpers.checkout import ROOT

QUICK = ("--set", "data.train=600", "--set", "data.test=100", "--set", "rounds=1")
NO_MNIST = {"FL_NODE_MNIST_URL": "http://127.0.0.1:1/"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-P", "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("fl_node-*.whl")
    return built


class Installed:
    """An environment that has the wheel and what it requires, a home and a folder that have nothing."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.home, self.folder, environment = folder / "home", folder / "empty", folder / "venv"
        self.home.mkdir()
        self.folder.mkdir()
        subprocess.run([sys.executable, "-P", "-m", "venv", "--without-pip", environment], check=True)
        (packages,) = environment.glob("lib/python3*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
            info = metadata.PathDistribution(packages / f"{'-'.join(wheel.name.split('-')[:2])}.dist-info")
        link(closure(info), packages)
        self.python = environment / "bin" / "python"

    def fl_node(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, "-m", "fl_node", *arguments]
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.home), "COLUMNS": "120", **environment}
        return subprocess.run(command, cwd=self.folder, env=kept, capture_output=True, text=True, check=False)


def closure(package: metadata.Distribution) -> set[str]:
    """Return the names of all packages that a package requires, without those of extras that it does not name."""
    found: set[tuple[str, str]] = set()
    left = [(package, "")]
    while left:
        one, extra = left.pop()
        for line in one.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                for wanted in ("", *needed.extras):
                    if (key := (canonicalize_name(needed.name), wanted)) not in found:
                        found.add(key)
                        left.append((metadata.distribution(needed.name), wanted))
    return {name for name, _ in found}


def link(names: set[str], packages: Path) -> None:
    """Link what installed packages consist of into another environment."""
    owners: dict[Path, set[str]] = {}
    for one in metadata.distributions():
        for top in {file.parts[0] for file in one.files or []} - {"..", "__pycache__"}:
            owners.setdefault(Path(str(one.locate_file(top))), set()).add(canonicalize_name(one.name))
    for path, who in owners.items():
        if who & names:
            assert who <= names, f"{path} is also of {who - names}"
            (packages / path.name).symlink_to(path.resolve())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_has_the_files_that_the_repository_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    listed = subprocess.run(
        ["git", "ls-files", "-z", "plans/*.toml", "examples"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    tracked = [name for name in listed.stdout.split("\0") if name]
    assert len(tracked) >= len(examples.names())
    for name in tracked:
        assert packed[f"fl_node/examples/{name}"] == (ROOT / name).read_bytes(), name
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [one for one in declared["dependencies"] if "extra ==" in one]
    assert "optional-dependencies" not in declared


def test_the_demo_runs_from_the_wheel_in_an_empty_folder_with_an_empty_home(installed: Installed) -> None:
    done = installed.fl_node("demo", *QUICK, **NO_MNIST)
    assert done.returncode == 0, done.stderr
    assert "using scikit-learn's digits" in done.stderr
    assert re.search(r"Audit passed: \d+ files fetched", done.stdout)
    run = installed.folder / "runs" / "demo"
    assert (run / "report.html").is_file()
    assert (run / "final.keras").is_file()
    assert [path.name for path in installed.folder.iterdir()] == ["runs"]
    content = {
        **plans.load(ROOT / "plans" / "demo.toml", ["rounds=1"]).model_dump(),
        "data": {"name": "digits", "train": 0, "test": 0},
    }
    plan = plans.validate(content, "the demo with digits")
    assert json.loads((run / "run.json").read_text())["plan"] == cid.of_bytes(plan.to_bytes())


def test_every_module_finds_what_it_imports_when_it_is_called(installed: Installed) -> None:
    script = """
import importlib, pkgutil
import fl_node, matplotlib.pyplot
for module in pkgutil.walk_packages(fl_node.__path__, "fl_node."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    subprocess.run([installed.python, "-c", script], cwd=installed.folder, check=True)


def test_plans_come_from_the_wheel(installed: Installed) -> None:
    done = installed.fl_node("plan", "new", "new/mine.toml", "--from", "tabular")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["new/mine.toml", "new/tabular.py"]
    assert installed.fl_node("plan", "check", "new/mine.toml").returncode == 0
