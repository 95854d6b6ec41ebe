"""Noise: a learner publishes its weights with Gaussian noise."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fl_node.attacks.attack import UpdateAttack
from fl_node.runtime.settings import Positive
from fl_node.runtime.tensors import Tensors
from fl_node.seeds import derive


class Noise(UpdateAttack):
    """Noise is added to each weight."""

    number: ClassVar[str | None] = "deviation"

    update: Literal["noise"] = "noise"
    deviation: Annotated[
        Positive, Field(description="The standard deviation of the noise that is added to each weight.")
    ] = 0.1

    def tamper(self, parent: Tensors, trained: Tensors, seed: int) -> Tensors:  # noqa: ARG002
        """Add the noise."""
        generator = np.random.Generator(np.random.Philox(key=derive(seed, "noise")))
        deviation = np.float32(self.deviation)
        return {
            name: tensor + deviation * generator.standard_normal(tensor.shape, np.float32)
            for name, tensor in sorted(trained.items())
        }
