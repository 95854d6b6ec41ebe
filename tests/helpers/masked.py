"""What tests of runs with masks share: plans, and steps until something has come about."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fl_node.plan.schema import Plan
from tests.helpers.network import Network

FIXED = {"rule": "fedavg", "arithmetic": "fixed", "range": 4.0}
ATTEMPTS = 400
"""Rounds through all roles in which something must have come about."""


def plan_of(**settings: Any) -> Plan:
    common = {
        "name": "masked",
        "rounds": 2,
        "learners": 3,
        "data": {"name": "digits", "train": 40, "test": 10},
        "model": {"name": "mlp"},
        "aggregation": FIXED,
        "privacy": {"secure_aggregation": True},
    }
    return Plan.model_validate(common | settings)


PLAN = plan_of()
FOUR = plan_of(
    learners=4, min_learners=3, round_timeout=1.0, privacy={"secure_aggregation": True, "threshold": 3}, rounds=3
)
"""One of four may be lost."""


def until(network: Network, roles: tuple[str, ...], what: Callable[[], bool]) -> None:
    """Step through roles until something has come about."""
    for _ in range(ATTEMPTS):
        for node in roles:
            if what():
                return
            network.step(node)
        # A round's timeout goes by the time of blocks.
        network.clock.sleep(0.1)
        time.sleep(0.01)
    raise AssertionError(f"it has not come about; the log: {network.log()}")
