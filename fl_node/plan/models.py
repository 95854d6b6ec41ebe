"""The models that a plan can choose, and their settings."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from fl_node.runtime.settings import Choice, List, Settings, variants_of

Architecture = Literal["cnn", "deep_cnn", "mlp", "separable_cnn"]


class Model(Settings):
    """Architecture of all learners, or of each learner."""

    name: str

    @abstractmethod
    def architecture_of(self, node_id: int) -> str:
        """Return the architecture of a learner's model."""


class SingleModel(Model):
    """The same architecture for everyone; `cnn` is the paper's."""

    name: Architecture = "cnn"

    def architecture_of(self, node_id: int) -> str:  # noqa: ARG002
        """Return the architecture of all learners."""
        return self.name


class EnsembleModel(Model):
    """An architecture for each learner; used with `mode = "ensemble"`."""

    name: Literal["ensemble"] = "ensemble"
    architectures: Annotated[
        tuple[Architecture, ...],
        List,
        Field(
            min_length=1,
            description="The architectures of learners 1, 2, …; if there are more learners, the list starts again.",
        ),
    ]
    weighting: Annotated[
        Literal["uniform", "accuracy", "convex"],
        Field(
            description="Weight of each architecture. `uniform`: equal; `accuracy`: by the number of "
            "held-out images it gets right; `convex`: the weights that make the held-out labels most likely."
        ),
    ] = "uniform"

    def architecture_of(self, node_id: int) -> str:
        """Return the architecture of a learner, by turns."""
        return self.architectures[(node_id - 1) % len(self.architectures)]

    @property
    def measured(self) -> bool:
        """Whether the weight of an architecture is measured on the held-out images."""
        return self.weighting != "uniform"


class CustomModel(Model):
    """A model that your own module builds."""

    name: Literal["custom"] = "custom"

    def architecture_of(self, node_id: int) -> str:  # noqa: ARG002
        """Return ``custom``."""
        return self.name


MODEL_CHOICE = Choice("name", variants_of(Model, globals()), "cnn", implied=True)
