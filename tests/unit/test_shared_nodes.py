"""Which role uses which node of a lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_node.errors import ConfigError
from fl_node.nodes.backends import ProcessBackend, shared, to_read

ROLES = ["header", "learner-1", "learner-2", "learner-3", "learner-4"]


@pytest.mark.parametrize(
    ("nodes", "users"),
    [
        (1, ["header"] * 5),
        (2, ["header", *["learner-1"] * 4]),
        (3, ["header", "learner-1", "learner-2", "learner-1", "learner-2"]),
        (5, ROLES),
    ],
)
def test_learners_share_the_nodes_beside_the_headers_in_turn(nodes: int, users: list[str]) -> None:
    assert shared(ROLES, nodes) == dict(zip(ROLES, users, strict=True))


@pytest.mark.parametrize("kept", [[], ["learner-1", "learner-2"], ["header", "learner-2"]])
def test_a_run_whose_nodes_are_not_all_there_can_not_be_read(tmp_path: Path, kept: list[str]) -> None:
    for node in kept:
        (tmp_path / "run" / node / "geth" / "geth" / "chaindata").mkdir(parents=True)
    accounts = dict.fromkeys(ROLES[:3], "0x" + 40 * "1")
    missing = next(node for node in accounts if node not in kept)
    with pytest.raises(ConfigError, match=rf"/run/{missing}/geth: No such file or directory$"):
        to_read("processes", tmp_path / "run", tmp_path / "copy", accounts, print)


def test_a_run_can_be_read_from_the_nodes_of_the_header_and_the_first_learners(tmp_path: Path) -> None:
    for node in ROLES[:2]:
        (tmp_path / "run" / node / "geth" / "geth" / "chaindata").mkdir(parents=True)
    backend = to_read("processes", tmp_path / "run", tmp_path / "copy", dict.fromkeys(ROLES, "0x" + 40 * "1"), print)
    assert isinstance(backend, ProcessBackend)
    assert list(backend.geth) == ROLES[:2]
