"""The plan and the contract's address that tests of journals share."""

from fl_node.plan.schema import Plan

ADDRESS = "0x" + "ab" * 20
PLAN = Plan.model_validate(
    {
        "name": "test",
        "data": {"name": "digits"},
        "learners": 3,
        "min_learners": 2,
        "round_timeout": 60.0,
        "fetch_timeout": 5.0,
    }
)
