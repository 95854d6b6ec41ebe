"""The units of a host's roles: as ever for one role, one for each of several learners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles" / "fl_node"
HARDENING = "ProtectSystem=strict"


def unit(service: str, **variables: Any) -> str:
    """Return a unit as Ansible writes it."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters["bool"] = bool
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    known = defaults | {"base_hardening": HARDENING, "fl_node_service": service, "fl_node_is_shared": False}
    known |= {"fl_node_has_trainer": False, "fl_node_trainer_socket": "/run/fl-node/trainer.sock"}
    template = f"{'trainer' if service == 'trainer' else 'role'}.service.j2"
    return environment.from_string((ROLE / "templates" / template).read_text()).render(known | variables)


def lines(text: str, *keys: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(keys)]


def test_the_only_learner_of_a_host_has_the_hosts_account() -> None:
    text = unit("learner")
    assert lines(text, "ExecStart", "Description", "Wants=fl", "MemoryMax") == [
        "Description=Federated learning, learner",
        "Wants=fl-standby.service",
        "ExecStart=/opt/fl-node/venv/bin/fl-node learner",
    ]
    assert "%i" not in text
    assert lines(unit("header"), "ExecStart", "Description", "Wants=fl") == [
        "Description=Federated learning, header",
        "ExecStart=/opt/fl-node/venv/bin/fl-node header",
    ]
    assert lines(unit("standby"), "ExecStart", "PartOf") == [
        "PartOf=fl-learner.service",
        "ExecStart=/opt/fl-node/venv/bin/fl-node header --standby --no-evaluate --folder /var/lib/fl-node/standby",
    ]


def test_each_of_several_learners_has_key_folder_and_limits_of_its_own() -> None:
    text = unit("learner", fl_node_is_shared=True, fl_node_memory_max="700M", fl_node_cpu_quota="50%")
    assert lines(text, "ExecStart", "Description", "Wants=fl", "MemoryMax", "CPUQuota") == [
        "Description=Federated learning, learner %i",
        "Wants=fl-standby@%i.service",
        "ExecStart=/opt/fl-node/venv/bin/fl-node learner --key /var/lib/fl-node/learners/%i/role.key "
        "--folder /var/lib/fl-node/learners/%i/work",
        "CPUQuota=50%",
        "MemoryMax=700M",
    ]
    assert lines(unit("standby", fl_node_is_shared=True), "ExecStart", "PartOf") == [
        "PartOf=fl-learner@%i.service",
        "ExecStart=/opt/fl-node/venv/bin/fl-node header --standby --no-evaluate "
        "--key /var/lib/fl-node/learners/%i/role.key --folder /var/lib/fl-node/learners/%i/standby",
    ]


def test_one_process_trains_for_several_learners() -> None:
    text = unit("learner", fl_node_is_shared=True, fl_node_has_trainer=True)
    assert lines(text, "Wants=fl-t", "After=fl-t", "Environment=FL") == [
        "Wants=fl-trainer.service",
        "After=fl-trainer.service",
        "Environment=FL_NODE_TRAINER=/run/fl-node/trainer.sock",
    ]
    assert "fl-trainer" not in unit("standby", fl_node_is_shared=True, fl_node_has_trainer=True)
    assert "TRAINER" not in unit("learner", fl_node_is_shared=True)
    assert lines(unit("trainer", fl_node_memory_max="2G"), "ExecStart", "RuntimeDirectory", "MemoryMax") == [
        "RuntimeDirectory=fl-node",
        "RuntimeDirectoryMode=0700",
        "ExecStart=/opt/fl-node/venv/bin/fl-node trainer --socket /run/fl-node/trainer.sock",
        "MemoryMax=2G",
    ]


@pytest.mark.parametrize("service", ["learner", "header"])
def test_a_role_starts_after_a_reboot(service: str) -> None:
    assert unit(service).endswith("[Install]\nWantedBy=multi-user.target\n")
    assert "[Install]" not in unit("standby")
