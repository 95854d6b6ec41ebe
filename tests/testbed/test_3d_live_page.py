"""The live page beyond its host: open to the lab when asked to, closed again, and gone where it is not wanted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .conftest import ADDRESSES, Ended, Testbed
from .test_2_hosts import GET

pytestmark = pytest.mark.nightly

UNIT = "/etc/systemd/system/fl-dashboard.service"
URL = f"http://{ADDRESSES['header']}:8090/"


def provision(testbed: Testbed, *settings: str) -> Ended:
    return testbed.play("site", *(part for setting in settings for part in ("-e", setting))).must()


def seen_from_a_learner(testbed: Testbed) -> str:
    """Return the page, or nothing if the port is closed."""
    asked = testbed.host("learner-1").run("timeout 10 python3 -c %s %s", GET, URL)
    return asked.stdout if asked.rc == 0 else ""


@pytest.fixture
def restored(provisioned: Testbed) -> Iterator[Testbed]:
    yield provisioned
    provision(provisioned)
    assert provisioned.host("header").service("fl-dashboard").is_running
    assert not seen_from_a_learner(provisioned)


def test_it_is_open_to_the_lab_when_asked_to_and_gone_when_not_wanted(restored: Testbed) -> None:
    header = restored.host("header")
    assert not seen_from_a_learner(restored)
    provision(restored, "fl_node_dashboard_listen=0.0.0.0")
    assert "<h1" in seen_from_a_learner(restored)
    again = provision(restored, "fl_node_dashboard_listen=0.0.0.0")
    assert all(counts["changed"] == 0 for counts in again.recap.values())
    provision(restored, "fl_node_dashboard=false")
    assert not header.file(UNIT).exists
    assert not header.service("fl-dashboard").is_running
    assert not seen_from_a_learner(restored)
