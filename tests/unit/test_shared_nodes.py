"""Which role uses which node of a lab."""

from __future__ import annotations

import pytest

from fl_node.nodes.backends import shared

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
