import re
from datetime import date
from typing import Any

import yaml

from tests.helpers.checkout import ROOT, load

plugin = load("ansible/filter_plugins/system_support.py")

RELEASES: dict[str, Any] = yaml.safe_load((ROOT / "ansible" / "files" / "releases.yml").read_text())


def host(system: str, version: str) -> dict[str, str]:
    return {"id": system, "version": version}


def test_each_system_in_use_is_named_once_with_the_end_of_its_updates() -> None:
    hosts = [host("ubuntu", "24.04"), host("debian", "12"), host("ubuntu", "24.04"), host("ubuntu", "20.04")]
    assert plugin.system_support(hosts, RELEASES, "2026-11-27") == [
        "Debian 12, with security updates until 2028-06-30",
        "Ubuntu 20.04, without security updates since 2025-05-29: for a closed lab only",
        "Ubuntu 24.04, with security updates until 2029-05-31",
    ]


def test_on_its_last_day_a_system_is_still_supported() -> None:
    assert "with security updates until" in plugin.system_support([host("debian", "12")], RELEASES, "2028-06-30")[0]
    assert "without security updates" in plugin.system_support([host("debian", "12")], RELEASES, "2028-07-01")[0]


def test_a_system_that_is_not_listed_is_named_as_such() -> None:
    for unknown in (host("ubuntu", "25.10"), host("fedora", "43")):
        assert "does not list" in plugin.system_support([unknown], RELEASES, "2026-11-27")[0]


def test_the_page_has_the_same_dates() -> None:
    page = (ROOT / "docs" / "support.md").read_text()
    rows = re.findall(r"^\| (Ubuntu|Debian) ([\d.]+) \| (\d{4}-\d\d-\d\d) \|", page, re.MULTILINE)
    listed = {
        (system.capitalize(), version, release["supported_until"])
        for system, versions in RELEASES.items()
        for version, release in versions.items()
    }
    assert set(rows) == listed
    assert all(date.fromisoformat(end) for _, _, end in rows)
