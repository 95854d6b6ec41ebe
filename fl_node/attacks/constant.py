"""Constant: a learner publishes the same value for every weight."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.attacks.attack import UpdateAttack
from fl_node.runtime.tensors import Tensors


class Constant(UpdateAttack):
    """Every weight is the value."""

    number: ClassVar[str | None] = "value"

    update: Literal["constant"] = "constant"
    value: Annotated[float, Field(ge=-1e6, le=1e6, description="The value of every weight.")] = 0.0

    def tamper(self, parent: Tensors, trained: Tensors, seed: int) -> Tensors:  # noqa: ARG002
        """Set every weight."""
        return {name: np.full_like(tensor, self.value) for name, tensor in trained.items()}
