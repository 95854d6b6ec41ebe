"""Hosts of three releases side by side, provisioned by the oldest and the newest supported ansible-core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import newest_ansible

from .conftest import (
    NAMES,
    NETWORK,
    ROOT,
    SMALL,
    Ended,
    Testbed,
    choice,
    copy_checkout,
    left,
    remove_leftovers,
    report,
)

pytestmark = pytest.mark.nightly

OTHER_NETWORK = "192.168.61"
RELEASES = {"header": "bookworm", "learner-1": "bullseye", "learner-2": "trixie"}
"""Bullseye has glibc 2.31, as Ubuntu 20.04 has, and systemd 247, close to its 245."""
PYTHON = "3.11"
"""What the controller brings to hosts whose own is older: bullseye has 3.9."""


@pytest.fixture(scope="module")
def bases(engine: None) -> dict[str, str]:
    """The codename of each host's release; a host whose release can't be had here is left with the image of all."""
    remove_leftovers(OTHER_NETWORK)
    found = {}
    for host, codename in RELEASES.items():
        script = [ROOT / "vagrant" / "image", f"fl-testbed:debian-{codename}", f"debian:{codename}"]
        made = subprocess.run(script, capture_output=True, text=True, check=False)
        if made.returncode == 0:
            found[host] = codename
        else:
            warnings.warn(f"{host} is not on {codename}: {made.stderr.strip()}", stacklevel=1)
    if len(found) < len(RELEASES) - 1:
        pytest.skip(f"neither a registry nor this machine's mirror has Debian's releases, except {found}")
    return found


@pytest.fixture(scope="module")
def python(bases: dict[str, str]) -> Iterator[None]:
    """Python for bullseye: as uv fetches it, or else built from Debian's source, once."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("FL_TESTBED_CACHE") or home / "fl-testbed")
    platform = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    archive = cache / "python" / f"linux-{platform}-{PYTHON}.tar"
    fetch = ["bash", ROOT / "roles/controller/files/python.sh", Path(sys.executable).parent / "uv", platform, PYTHON]
    if "bullseye" not in bases.values() or subprocess.run([*fetch, archive.parent], check=False).returncode == 0:
        yield
        return
    built = cache / "tests" / archive.name
    if not built.exists():
        script = ROOT / "tests" / "testbed" / "python_from_source.sh"
        subprocess.run([script, "fl-testbed:debian-bullseye", built], check=True)
    shutil.copy(built, archive)
    yield
    archive.unlink()


@pytest.fixture(scope="module")
def lab(bases: dict[str, str], python: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """Three hosts, each on its release, on a network of their own."""
    root = tmp_path_factory.mktemp("releases")
    copy_checkout(root)
    inventory = root / "inventory" / "hosts.yml"
    text = inventory.read_text().replace(f"{NETWORK}.", f"{OTHER_NETWORK}.")
    for host, codename in bases.items():
        own = f'vm_base: "debian:{codename}", base_python: "{PYTHON}"'
        text = text.replace(f"{host}: {{", f"{host}: {{{own}, ")
    inventory.write_text(text)
    lab = Testbed(root)
    try:
        lab.up = lab.vagrant("up", "--provider=docker")
        yield lab
    finally:
        lab.vagrant("destroy", "--force").must()
    assert left(root)["containers"] == []


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program ansible-playbook of the newest ansible-core."""
    try:
        return newest_ansible.create(tmp_path_factory.mktemp("newest") / "venv") / "ansible-playbook"
    except newest_ansible.NoPython as error:
        pytest.skip(str(error))


def address(lab: Testbed, name: str) -> str:
    return f"{OTHER_NETWORK}.{10 + NAMES.index(name)}"


def changes(ended: Ended) -> set[int]:
    """Return how many tasks changed something, of all hosts."""
    assert set(ended.recap) == {*NAMES, "localhost"}
    assert all(counts["failed"] == counts["unreachable"] == 0 for counts in ended.recap.values())
    return {counts["changed"] for counts in ended.recap.values()}


def test_three_releases_are_one_testbed(lab: Testbed, bases: dict[str, str]) -> None:
    assert lab.up is not None
    assert max(changes(lab.up.must())) > 0
    for name, codename in bases.items():
        assert lab.host(name, address(lab, name)).system_info.codename == codename
    assert "One chain of 3 sealers" in " ".join(lab.up.output.split())


def test_a_second_time_changes_nothing(lab: Testbed) -> None:
    assert changes(lab.play("site").must()) == {0}


def train(lab: Testbed, program: str | Path, name: str, data_set: str) -> None:
    """Train a small model, and audit it on a learner."""
    settings = ["-e", f"fl_run={name}", "-e", json.dumps({"fl_settings": SMALL}), *choice(data_set)]
    lab.run(program, "ansible/train.yml", *settings).must()
    assert report(lab, name)["ended"] is True
    assert "audit passed" in lab.run(program, "ansible/audit.yml").must().output


def test_it_trains_and_audits(lab: Testbed, data_set: str) -> None:
    train(lab, "ansible-playbook", "locked", data_set)


def test_the_newest_ansible_changes_nothing_and_trains(lab: Testbed, newest: Path, data_set: str) -> None:
    again = lab.run(newest, "ansible/site.yml").must()
    assert changes(again) == {0}
    assert "DEPRECATION" not in again.output
    assert all(name in lab.run(newest, "ansible/status.yml").must().output for name in NAMES)
    train(lab, newest, "newest", data_set)


def test_an_empty_chain_is_started_again(lab: Testbed) -> None:
    lab.play("reset", "-e", "fl_confirm=yes").must()
    status = " ".join(lab.play("status").must().output.split())
    assert all(name in status for name in NAMES)
    assert "firewall not complete" not in status
