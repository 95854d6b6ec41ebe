"""The compose file: its nodes are those that the nodes expect, and nobody else reaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "container"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_each_service_is_a_node_at_the_address_that_the_others_expect() -> None:
    addresses = {name: service["networks"]["testbed"]["ipv4_address"] for name, service in SERVICES.items()}
    for name, service in SERVICES.items():
        assert service["environment"]["NODE"] == name
        assert service["environment"]["NODES"] == ",".join(f"{node}={address}" for node, address in addresses.items())
    assert next(iter(SERVICES)) == "header"


def test_each_node_has_its_own_volume_of_keys_and_all_share_one() -> None:
    for name, service in SERVICES.items():
        volumes = dict(volume.rsplit(":", 2)[:2] for volume in service["volumes"] if "/data" not in volume)
        assert volumes == {name: "/var/lib/fl-node", "shared": "/shared"}
    assert COMPOSE["volumes"].keys() == {*SERVICES, "shared"}


def test_no_port_is_published_and_no_capability_is_left() -> None:
    assert COMPOSE["networks"]["testbed"]["internal"] is True
    for service in SERVICES.values():
        assert "ports" not in service
        assert service["cap_drop"] == ["ALL"]


def test_the_image_runs_as_a_user_without_rights() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert lines.index("USER fl-node") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
