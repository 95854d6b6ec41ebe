"""The Ruby code of the Vagrantfile has tests in Ruby, which need no Vagrant."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

RUBY = shutil.which("ruby")


@pytest.mark.skipif(RUBY is None, reason="Ruby is not installed; Debian's package vagrant brings it")
@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "vagrant").glob("*_test.rb")), ids=lambda path: path.stem)
def test_the_vagrantaftercode_passes_its_own_tests(path: Path) -> None:
    assert RUBY is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FL_TESTBED_")}
    ended = subprocess.run([RUBY, "-W0", path], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 failures, 0 errors, 0 skips" in ended.stdout


GENERIC = {
    "etc/systemd/resolved.conf": "[Resolve]\nDNS=4.2.2.1 208.67.220.220\nFallbackDNS=4.2.2.1\nDNSSEC=yes\n",
    "run/systemd/network/10-netplan-eth0.network": "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nDNS=4.2.2.1\n",
    "run/systemd/network/10-netplan-eth1.network": "[Match]\nName=eth1\n[Network]\nAddress=192.168.56.10/24\n",
}
"""What a box with public DNS servers has."""
PLAIN = {
    "etc/systemd/resolved.conf": "[Resolve]\n#DNS=\n#DNSSEC=no\n",
    "run/systemd/network/10-netplan-eth0.network": "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n",
}


def resolver(root: Path, files: dict[str, str]) -> dict[str, str]:
    """Return the files that the script wrote into a box with these files."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    subprocess.run([ROOT / "vagrant" / "resolver.sh", root], check=True)
    after = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in after.items() if files.get(name) != content}


def test_public_dns_servers_and_dnssec_of_a_box_are_reset(tmp_path: Path) -> None:
    assert resolver(tmp_path, GENERIC) == {
        "etc/systemd/resolved.conf.d/fl-testbed.conf": "[Resolve]\nDNS=\nFallbackDNS=\nDNSSEC=no\n",
        "etc/systemd/network/10-netplan-eth0.network.d/fl-testbed.conf": "[Network]\nDNS=\n",
    }


def test_a_box_that_uses_its_networks_dns_servers_is_left_alone(tmp_path: Path) -> None:
    assert resolver(tmp_path, PLAIN) == {}
