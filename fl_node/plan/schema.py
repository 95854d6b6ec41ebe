"""A plan: all settings of a run, in one file.

People write plans in TOML. The store gets the same plan as canonical JSON with every default filled in, so that an
old run stays readable when a default changes. A setting that belongs to one choice (such as Krum's number of
malicious learners) is only in plans that make this choice.
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
    """The settings of a run."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := checks.problems(self):
            raise PydanticCustomError(checks.INCONSISTENT, "{problems}", {"problems": "\n".join(problems)})
        return self

    def to_bytes(self) -> bytes:
        """Return the canonical form, which is published: JSON with sorted keys and without spaces, in UTF-8."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()
