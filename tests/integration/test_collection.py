"""The collection, built and installed, as a site uses it: its own inventory, its own ansible.cfg, no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

BIN = Path(sys.executable).parent
PRECEDENCE = (
    "all_plugins_play, all_inventory, groups_inventory, all_plugins_inventory, groups_plugins_inventory, "
    "groups_plugins_play"
)
CONFIGURATION = f"[defaults]\nprecedence = {PRECEDENCE}\nforce_handlers = true\n"
INVENTORY = """
testbed:
  vars: {ansible_port: 1, testbed_connect_timeout: 1}
  children:
    headers:
      hosts:
        big: {ansible_host: 127.0.0.1, testbed_address: 10.20.0.5}
    learners:
      hosts:
        room-1: {ansible_host: 127.0.0.1, testbed_address: 10.20.0.11, node_id: 1}
printers:
  hosts: {printer: {}}
"""
MODULE = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - fl_node.testbed.geth_state: {ipc: /nonexistent/geth.ipc}
"""


class Site:
    """A folder with an inventory, a home that has nothing, and the collection."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.collections = folder / "site", folder / "home", folder / "collections"
        self.folder.mkdir()
        self.home.mkdir()
        script = ROOT / "ansible" / "files" / "collection.py"
        built = subprocess.run(
            [sys.executable, script, "--folder", folder], check=True, capture_output=True, text=True
        )
        (self.folder / "hosts.yml").write_text(INVENTORY)
        (self.folder / "ansible.cfg").write_text(CONFIGURATION)
        self.run("ansible-galaxy", "collection", "install", "--offline", built.stdout.strip(), "-p", self.collections)
        self.content = self.collections / "ansible_collections" / "fl_node" / "testbed"

    def run(self, program: str, *arguments: str | Path) -> tuple[int, str]:
        """Run one of Ansible's programs, and return its exit code and, in one line, what it printed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        kept |= {"HOME": str(self.home), "NO_COLOR": "1", "ANSIBLE_COLLECTIONS_PATH": str(self.collections)}
        done = subprocess.run(
            [BIN / program, *arguments], cwd=self.folder, env=kept, capture_output=True, text=True, check=False
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("collection"))


def test_it_has_every_role_module_and_playbook(site: Site) -> None:
    def names(folder: Path, pattern: str) -> set[str]:
        return {path.name for path in folder.glob(pattern)}

    assert names(site.content, "roles/*") == names(ROOT, "roles/*")
    assert names(site.content, "playbooks/*.yml") == names(ROOT, "ansible/*.yml")
    assert names(site.content, "plugins/modules/*.py") == names(ROOT, "roles/*/library/*.py")
    assert names(site.content, "plugins/action/*.py") == names(ROOT, "roles/*/action_plugins/*.py")
    left_out = ("action_plugins", "library", "__pycache__", ".git")
    assert not [path for path in (site.content / "roles").rglob("*") if path.name in left_out]
    assert not [path for path in site.content.rglob("*") if path.name in left_out[1:]]
    code, said = site.run("ansible-doc", "-t", "role", "-l", "fl_node.testbed")
    assert code == 0
    for role in names(ROOT, "roles/*"):
        assert f"fl_node.testbed.{role}:" in said


def test_no_text_names_what_only_a_checkout_has(site: Site) -> None:
    for folder in ("playbooks", "roles"):
        for path in (site.content / folder).rglob("*"):
            if path.is_file():
                text = path.read_text()
                found = re.search(
                    r"make (bundle|controller|test|lab)|\.venv/|\bansible/\w+\.yml|playbook_dir \| dirname }}/", text
                )
                assert found is None, (path, found)


def test_all_playbooks_are_found_by_their_full_names(site: Site) -> None:
    names = [f"fl_node.testbed.{path.stem}" for path in sorted(ROOT.glob("ansible/*.yml"))]
    code, said = site.run("ansible-playbook", "-i", "hosts.yml", "--syntax-check", *names)
    assert code == 0, said


def test_a_sites_inventory_is_checked_and_its_hosts_are_reached_by_ssh(site: Site) -> None:
    code, said = site.run("ansible-playbook", "-i", "hosts.yml", "fl_node.testbed.site")
    assert code == 2
    for host in ("big", "room-1"):
        # Its timeout and port are the inventory's, not the defaults of the collection.
        assert f"{host} (127.0.0.1) answers, but nothing listens on port 1" in said
    assert "printer" not in said


def test_settings_that_the_playbooks_need_are_named(site: Site) -> None:
    (site.folder / "ansible.cfg").rename(site.folder / "kept.cfg")
    try:
        code, said = site.run("ansible-playbook", "-i", "hosts.yml", "fl_node.testbed.site")
    finally:
        (site.folder / "kept.cfg").rename(site.folder / "ansible.cfg")
    assert code == 2
    assert f"should have in [defaults]: precedence = {PRECEDENCE}" in said
    assert "should have in [defaults]: force_handlers = true" in said


def test_a_module_works_in_a_play_of_the_site(site: Site) -> None:
    (site.folder / "play.yml").write_text(MODULE)
    code, said = site.run("ansible-playbook", "play.yml")
    assert code == 2
    assert "Geth does not answer: [Errno 2] No such file or directory" in said


def test_the_package_for_the_hosts_is_that_of_a_checkout(site: Site, tmp_path: Path) -> None:
    wheels = []
    for root in (site.content, ROOT):
        command = [
            sys.executable,
            "-P",
            "-m",
            "hatchling",
            "build",
            "--target=wheel",
            f"--directory={tmp_path / root.name}",
        ]
        subprocess.run(command, cwd=root, env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}, check=True)
        (wheel,) = (tmp_path / root.name).glob("*.whl")
        wheels.append((wheel.name, wheel.read_bytes()))
    assert wheels[0] == wheels[1]


def test_the_documented_configuration_is_the_one_that_works() -> None:
    for path in ("docs/collection.md", "ansible.cfg"):
        text = (ROOT / path).read_text()
        for line in CONFIGURATION.splitlines():
            assert f"{line}\n" in text
