"""Hosts from a laptop with Vagrant and a provider alone, without make, Python and Ansible."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_node.nodes.binaries import cache_folder

from .conftest import NAMES, NETWORK, SMALL, Ended, Testbed, copy_checkout, docker

pytestmark = pytest.mark.nightly

OTHER_NETWORK = "192.168.60"
ABSENT = re.compile(r"(g?make|python.*|pip.*|ansible.*|uvx?)$")


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with every program of this machine except those that such a laptop lacks."""
    folder = tmp_path_factory.mktemp("bin")
    for source in os.environ["PATH"].split(os.pathsep):
        for program in Path(source).glob("*") if source else []:
            target = folder / program.name
            if not ABSENT.match(program.name) and os.access(program, os.X_OK) and not target.is_symlink():
                target.symlink_to(program)
    return folder


class Laptop(Testbed):
    """A checkout without an environment."""

    __test__ = False
    path: Path

    def vagrant(self, *arguments: str, **environment: str) -> Ended:
        return super().run("vagrant", *arguments, PATH=str(self.path), **environment)

    def on_header(self, command: str) -> Ended:
        return self.vagrant("ssh", "header", "-c", command)


def seed_cache(laptop: Laptop) -> None:
    """Give the header what it would take a quarter of an hour to build and download."""
    header = docker("ps", "--quiet", "--filter", f"name={container_prefix(laptop)}_header_").strip()
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    docker("exec", header, "mkdir", "-p", "/home/vagrant/.cache/fl-node", "/home/vagrant/.cache/fl-testbed")
    for source, target in ((cache_folder() / "bin", "fl-node"), (home / "fl-testbed" / "wheels", "fl-testbed")):
        if source.exists():
            docker("cp", "--quiet", str(source), f"{header}:/home/vagrant/.cache/{target}")
    docker("exec", header, "chown", "-R", "vagrant:", "/home/vagrant/.cache")


def container_prefix(laptop: Laptop) -> str:
    """Return how Vagrant begins the names of a folder's containers."""
    return re.sub(r"[^-a-z0-9_]", "", laptop.root.name.lower())


@pytest.fixture(scope="module")
def laptop(engine: None, bare_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """Hosts of a checkout in a folder with a space, brought up by Vagrant alone."""
    root = tmp_path_factory.mktemp("lab") / "a laptop"
    root.mkdir()
    copy_checkout(root)
    (root / ".venv").unlink()
    inventory = root / "inventory" / "hosts.yml"
    inventory.write_text(inventory.read_text().replace(f"{NETWORK}.", f"{OTHER_NETWORK}."))
    laptop = Laptop(root)
    laptop.path = bare_path
    try:
        laptop.vagrant("up", "--provider=docker", "--no-provision").must()
        seed_cache(laptop)
        laptop.up = laptop.vagrant("provision")
        yield laptop
    finally:
        laptop.vagrant("destroy", "--force").must()


def test_vagrant_alone_brings_up_the_hosts_and_prints_the_same_summary(laptop: Laptop) -> None:
    assert shutil.which("make", path=str(laptop.path)) is None
    assert shutil.which("python3", path=str(laptop.path)) is None
    assert laptop.up is not None
    laptop.up.must()
    assert set(laptop.up.recap) == {*NAMES, "localhost"}
    output = re.sub(r"\s+", " ", laptop.up.output)
    assert "The controller is header (make, Python 3.11, 3.12 or 3.13 not found" in output
    assert f"learner-2 {OTHER_NETWORK}.12 learner 2" in output
    assert "One chain of 3 sealers" in output
    assert "System: " in output
    assert 'vagrant ssh header -c "testbed train"' in output
    assert not (laptop.root / ".venv").exists()


def test_a_run_is_started_from_the_laptop_and_its_report_comes_back(laptop: Laptop) -> None:
    settings = json.dumps({"fl_settings": SMALL})
    ended = laptop.on_header(f"testbed train -e fl_run=guest -e fl_data=digits -e '{settings}'").must()
    assert "Fetched from header: runs/guest" in ended.output
    report = json.loads((laptop.root / "runs" / "guest" / "report.json").read_text())
    assert report["ended"] is True
    assert (laptop.root / "runs" / "guest" / "report.html").stat().st_size > 10_000
    laptop.on_header("testbed audit").must()
    assert "learner-2" in laptop.on_header("testbed status").must().output


def test_what_changes_in_the_checkout_is_on_the_header_before_the_command_runs(laptop: Laptop) -> None:
    (laptop.root / "plans" / "mine.toml").write_text("name = 'mine'\n")
    assert "name = 'mine'" in laptop.on_header("cat testbed/plans/mine.toml").must().output
    (laptop.root / "plans" / "mine.toml").unlink()
    assert laptop.on_header("cat testbed/plans/mine.toml").code != 0


def test_a_command_that_fails_on_the_header_fails_on_the_laptop(laptop: Laptop) -> None:
    ended = laptop.on_header("testbed train -e plan=plans/demo.toml")
    assert ended.code != 0
    assert "should it be fl_plan?" in re.sub(r"\s+", " ", ended.output)


def test_the_controller_needs_no_root_on_the_header(laptop: Laptop) -> None:
    lines = laptop.on_header("find ~/testbed ~/.cache ! -user vagrant").must().output.splitlines()
    assert [line for line in lines if not line.startswith("==> ")] == []  # Vagrant's own
