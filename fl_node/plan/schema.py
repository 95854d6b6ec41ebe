"""A plan: all settings of one run, in one file.

People write plans in TOML. What is published in the store is the same plan with every default filled in, as
canonical JSON, so that an old run stays readable when a default changes. A setting that only some choice uses (such
as Krum's number of malicious learners) stands in the plans that make this choice, and in no other.
"""

from __future__ import annotations

import json
from typing import Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from fl_node.plan import checks
from fl_node.plan.sections import AttackPlan as AttackPlan
from fl_node.plan.sections import BoundsPlan as BoundsPlan
from fl_node.plan.sections import CustomPlan as CustomPlan
from fl_node.plan.sections import DataPlan as DataPlan
from fl_node.plan.sections import PlanSettings
from fl_node.plan.sections import StragglersPlan as StragglersPlan
from fl_node.plan.sections import TrainingPlan as TrainingPlan


class Plan(PlanSettings):
    """The settings of one run."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := checks.problems(self):
            raise PydanticCustomError(checks.INCONSISTENT, "{problems}", {"problems": "\n".join(problems)})
        return self

    def to_bytes(self) -> bytes:
        """Return the canonical form that is published: JSON, sorted keys, no spaces, UTF-8."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()
