"""The settings of a plan that its contract enforces."""

from __future__ import annotations

import math

from fl_node.chain.contract import Terms
from fl_node.plan.schema import Plan


def terms_of(plan: Plan) -> Terms:
    """Return the terms that a plan's contract must have; deployment, learners and audit call this."""
    # Blocks count whole seconds.
    timeout = math.ceil(plan.round_timeout)
    return Terms(plan.learners, plan.required_learners, timeout, plan.mode == "async", plan.threshold)
