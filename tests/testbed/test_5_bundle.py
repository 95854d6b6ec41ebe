"""Bare hosts: check mode, then a bring-up from a bundle, their way out closed. Last, for all hosts are made anew."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import NAMES, Testbed

pytestmark = pytest.mark.nightly

CLOSED = {
    "PIP_NO_INDEX": "1",
    "GOPROXY": "off",
    "http_proxy": "http://127.0.0.1:1",
    "https_proxy": "http://127.0.0.1:1",
    "FL_NODE_DATA_DIR": "",
}
"""What the controller could otherwise fetch from goes nowhere."""


@pytest.fixture(scope="module")
def bundle(provisioned: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The archive, made from hosts that are up; more than a gigabyte, so it is not kept."""
    folder = tmp_path_factory.mktemp("bundle")
    provisioned.play("bundle", "-e", f"fl_bundle={folder}/lab.tar").must()
    yield folder / "lab.tar"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def bundled(bundle: Path) -> list[str]:
    """The variables that name the archive and its digest."""
    with bundle.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ["-e", f"testbed_bundle={bundle}", "-e", f"testbed_bundle_sha256={digest}"]


@pytest.fixture(scope="module")
def bare(provisioned: Testbed, bundle: Path) -> Testbed:
    """The three hosts, made anew and not provisioned."""
    provisioned.vagrant("destroy", "--force").must()
    inventory = provisioned.root / "inventory" / "hosts.yml"
    lines = inventory.read_text().splitlines(keepends=True)
    inventory.write_text("".join(line for line in lines if "learner-3:" not in line))
    provisioned.vagrant("up", "--provider=docker", FL_TESTBED_PROVISION="0").must()
    for name in NAMES:
        provisioned.forget(name)
    return provisioned


def test_check_mode_on_new_hosts_says_that_they_are_new_and_changes_nothing(bare: Testbed) -> None:
    for name in NAMES:
        bare.host(name).check_output("touch /tmp/before")
    check = bare.play("site", "--check", "--diff").must()
    assert set(check.recap) == {*NAMES, "localhost"}
    assert all(counts["changed"] == counts["failed"] == 0 for counts in check.recap.values())
    assert re.sub(r"\s+", " ", check.output).count("is new and passes all checks") == len(NAMES)
    for name in NAMES:
        assert bare.host(name).check_output("find /etc /opt /usr -newer /tmp/before -type f") == ""


def test_check_mode_names_what_a_new_host_lacks(bare: Testbed) -> None:
    check = bare.play("site", "--check", "-e", "base_minimum_memory_mb=99999999")
    assert check.code != 0
    assert "99999999 MB are needed (base_minimum_memory_mb)" in " ".join(check.output.split())


def test_a_host_that_is_not_provisioned_is_called_so(bare: Testbed) -> None:
    for playbook, host in (("train", "header"), ("audit", "learner-2")):
        ended = bare.play(playbook, "-e", "fl_data=digits")
        assert ended.code != 0
        assert f"{host} is not provisioned: vagrant provision" in " ".join(ended.output.split())


def test_a_bring_up_needs_nothing_but_the_bundle(bare: Testbed, bundle: Path, bundled: list[str]) -> None:
    provisioned = bare
    for name in NAMES:
        host = provisioned.host(name)
        # What the hosts' system would have to be asked for must come from the bundle too.
        host.check_output("DEBIAN_FRONTEND=noninteractive apt-get purge --yes nftables")
        host.check_output("ip route delete default")
        assert host.run("ip route get 192.0.2.1").rc != 0
    nothing = bundle.parent / "nothing"
    closed = CLOSED | {"FL_TESTBED_CACHE": str(nothing), "XDG_CACHE_HOME": str(nothing)}
    check = provisioned.play("site", "--check", *bundled, **closed).must()
    assert all(counts["changed"] == counts["failed"] == 0 for counts in check.recap.values())
    first = provisioned.play("site", *bundled, **closed).must()
    assert all(counts["failed"] == 0 for counts in first.recap.values())
    assert not nothing.exists()
    again = provisioned.play("site", *bundled, **closed).must()
    assert all(counts["changed"] == 0 for counts in again.recap.values())
    data = ["-e", "fl_data=digits"] if not list((bundle.parent / "lab" / "mnist").glob("*")) else []
    trained = provisioned.play("train", "-e", "fl_run=offline", *data, **closed).must()
    assert "audit passed: 3 rounds, 11 files" in trained.output


def test_a_damaged_bundle_is_refused_before_a_host_is_touched(
    provisioned: Testbed, bundle: Path, bundled: list[str]
) -> None:
    with tarfile.open(bundle) as tar:
        member = next(entry for entry in tar if entry.name.startswith("bin/"))

    def flip_a_bit() -> None:
        with bundle.open("r+b") as file:
            file.seek(member.offset_data + 1000)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))

    flip_a_bit()
    ended = provisioned.play("site", *bundled, **CLOSED)
    assert ended.code != 0
    assert f"testbed_bundle {bundle} is rejected: " in " ".join(ended.output.split())
    assert set(ended.recap) == {"localhost"}
    # A whole one of the same name is taken, so the hosts are looked at.
    flip_a_bit()
    ended = provisioned.play("site", *bundled, "-e", "base_minimum_memory_mb=99999999", **CLOSED)
    assert "99999999 MB are needed" in " ".join(ended.output.split())


def test_a_bundle_without_its_digest_is_refused(provisioned: Testbed, bundle: Path) -> None:
    ended = provisioned.play("site", "-e", f"testbed_bundle={bundle}", **CLOSED)
    assert ended.code != 0
    assert "needs its digest" in " ".join(ended.output.split())
    assert set(ended.recap) == {"localhost"}


def test_a_bundle_that_is_not_there_is_named(provisioned: Testbed, tmp_path: Path) -> None:
    ended = provisioned.play("site", "-e", f"testbed_bundle={tmp_path}/none.tar")
    assert ended.code != 0
    assert f"testbed_bundle {tmp_path}/none.tar: there is no such file" in " ".join(ended.output.split())
