"""Sign flip: a learner publishes its update in the opposite direction."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.attacks.attack import UpdateAttack
from fl_node.runtime.settings import Positive
from fl_node.runtime.tensors import Tensors


class SignFlip(UpdateAttack):
    """The update is multiplied by minus the factor."""

    number: ClassVar[str | None] = "factor"

    update: Literal["sign_flip"] = "sign_flip"
    factor: Annotated[Positive, Field(description="The update is multiplied by minus this factor.")] = 1.0

    def tamper(self, parent: Tensors, trained: Tensors, seed: int) -> Tensors:  # noqa: ARG002
        """Reverse the update."""
        factor = np.float32(self.factor)
        return {name: parent[name] - factor * (tensor - parent[name]) for name, tensor in trained.items()}
