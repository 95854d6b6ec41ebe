"""The hosts' firewall in network namespaces: who reaches which port, and what is left when rules are broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROLES = Path(__file__).parents[2] / "roles"
SCRIPT = ROLES / "base" / "files" / "fl-firewall"
PROBE = Path(__file__).with_name("firewall_probe.py")
HANG = 600.0
"""Seconds after which a probe has hung."""
USERS = ["root", "geth", "ipfs", "fl-node", "fl-dashboard", "visitor", "nobody"]
SERVICES = {"rpc": "geth", "authrpc": "geth", "metrics": "geth", "api": "ipfs", "page": "fl-dashboard"}
P2P = {"geth": "geth", "ipfs": "ipfs"}

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("nft") is None or shutil.which("unshare") is None,
    reason="firewall rules can be loaded by root alone, with nft and unshare",
)


def variables() -> dict[str, Any]:
    """The roles' defaults, and what follows from an inventory."""
    found: dict[str, Any] = {}
    for role in ("base", "geth", "ipfs", "fl_node"):
        found |= yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    return found | {
        "base_peers": ["10.9.0.1", "10.9.0.2"],
        "base_found": {"ssh_ports": [22]},
        "fl_node_dashboard_users": ["root", "fl-dashboard", "1000"],
        "geth_metrics_users": ["root", "visitor"],
        "fl_node_dashboard_on_loopback": True,
    }


def render(template: Path, values: dict[str, Any]) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template.read_text()).render(values)


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., Any]:
    """Ask the probe something on a host with these rules: `firewall_probe.py` says what."""

    def ask(
        question: str,
        *,
        roles: Sequence[str] = ("geth", "ipfs", "fl_node"),
        more: str = "",
        closed: str = "",
        **changes: Any,
    ) -> Any:
        values = variables() | changes
        folder = tmp_path / "etc" / "fl-testbed"
        (folder / "firewall.d").mkdir(parents=True, exist_ok=True)
        (folder / "closed.nft").write_text(render(ROLES / "base/templates/closed.nft.j2", values) + closed)
        shutil.copy(ROLES / "base/files/firewall.nft", folder)
        for role in roles:
            rules = render(ROLES / role / "templates/firewall.nft.j2", values)
            (folder / "firewall.d" / f"{role}.nft").write_text(rules)
        if more:
            (folder / "firewall.d" / "more.nft").write_text(more)
        lines = [f"{name}:x:{0 if name == 'root' else 995 + n}:0::/:/bin/sh" for n, name in enumerate(USERS)]
        (tmp_path / "etc" / "passwd").write_text("\n".join(lines) + "\n")
        (tmp_path / "etc" / "nsswitch.conf").write_text("passwd: files\n")
        asked = subprocess.run(
            ["unshare", "--net", "--mount", sys.executable, PROBE, question, tmp_path / "etc", SCRIPT],
            stdout=subprocess.PIPE,
            timeout=HANG,
            check=True,
        )
        return json.loads(asked.stdout)

    return ask


def test_each_local_port_answers_its_users_alone(host: Callable[..., Any]) -> None:
    values = variables()
    may = {
        "rpc": set(values["geth_rpc_users"]),
        "authrpc": {"root", "geth"},
        "metrics": set(values["geth_metrics_users"]),
        "api": set(values["ipfs_api_users"]),
        "page": {"root", "fl-dashboard", "visitor"},
        "geth": {"geth"},
        "ipfs": {"ipfs"},
    }
    reached = host("local")
    assert set(reached) == {f"{port} at {where}" for port in may for where in ("127.0.0.1", "::1", "10.9.0.1")}
    for what, users in reached.items():
        assert set(users) == may[what.partition(" ")[0]], what


def test_other_hosts_peer_to_peer_ports_are_reached_by_their_own_service_alone(host: Callable[..., Any]) -> None:
    assert host("remote") == {"geth": ["geth"], "ipfs": ["ipfs"], "other": USERS}


def test_another_user_can_not_answer_in_the_place_of_a_service_that_is_down(host: Callable[..., Any]) -> None:
    assert host("squat") == {name: [] for name in SERVICES}


def test_the_rules_of_a_live_page_for_everybody_and_of_geth_without_metrics_can_be_loaded(
    host: Callable[..., Any],
) -> None:
    assert host("load", fl_node_dashboard_on_loopback=False, geth_metrics_port=0)["check"] == [0, "complete"]


def test_a_host_that_has_no_role_yet_has_a_complete_firewall(host: Callable[..., Any]) -> None:
    found = host("load", roles=())
    assert (found["load"], found["check"]) == (0, [0, "complete"])


def test_every_port_of_sshd_stays_open() -> None:
    rules = render(
        ROLES / "base/templates/closed.nft.j2",
        variables()
        | {"base_ssh_port": 2222, "base_found": {"ssh_ports": [2222, 22022]}, "base_extra_open_ports": [80]},
    )
    assert "tcp dport { 2222, 22022, 80 } accept" in rules


def test_rules_with_an_unknown_user_leave_nothing_but_ssh_open(host: Callable[..., Any]) -> None:
    found = host("load", geth_rpc_users=["root", "stranger"])
    assert found["load"] != 0
    assert found["check"][0] == 1
    assert found["open"] == ["ssh"]


@pytest.mark.parametrize("broken", ["add rule inet fl_testbed output bogus\n", "}{", 'include "/nowhere.nft"\n'])
def test_any_other_mistake_in_the_rules_leaves_nothing_but_ssh_open(host: Callable[..., Any], broken: str) -> None:
    found = host("load", more=broken)
    assert (found["load"] != 0, found["check"][0], found["open"]) == (True, 1, ["ssh"])


def test_rules_that_were_in_force_stay_when_new_ones_can_not_be_loaded(host: Callable[..., Any]) -> None:
    found = host("break")
    assert found["load"] != 0
    assert found["open"] == ["geth", "ipfs", "ssh"]
    assert found["check"] == [1, "not complete: the rules in /etc/fl-testbed were changed after they were loaded"]


def test_whatever_happens_to_the_table_is_noticed_and_mended(host: Callable[..., Any]) -> None:
    for what, (noticed, mended) in host("harm").items():
        assert (noticed, mended) == (1, 0), what


def test_it_is_said_that_the_table_was_unloaded(host: Callable[..., Any]) -> None:
    assert host("unload")["check"] == [1, "not complete: the table inet fl_testbed is missing"]
