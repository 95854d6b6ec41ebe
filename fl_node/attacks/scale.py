"""Scale: a learner publishes an update that is too long, so that it outweighs the others."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.attacks.attack import UpdateAttack
from fl_node.runtime.settings import Positive
from fl_node.runtime.tensors import Tensors


class Scale(UpdateAttack):
    """The update is multiplied by the factor."""

    number: ClassVar[str | None] = "factor"

    update: Literal["scale"] = "scale"
    factor: Annotated[Positive, Field(description="The update is multiplied by this factor.")] = 5.0

    def tamper(self, parent: Tensors, trained: Tensors, seed: int) -> Tensors:  # noqa: ARG002
        """Lengthen the update."""
        factor = np.float32(self.factor)
        return {name: parent[name] + factor * (tensor - parent[name]) for name, tensor in trained.items()}
