"""The modes of a run, which determine when a round closes and what its global weights are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fl_node.runtime.settings import Choice, Positive, Settings, variants_of


class Mode(Settings):
    """How a run proceeds."""

    implied: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Settings that this mode implies, by section."""

    mode: str


class Synchronous(Mode):
    """A round closes with the weights of all learners."""

    if_given: ClassVar[frozenset[str]] = frozenset({"mode"})

    mode: Literal["sync"] = "sync"


class Asynchronous(Mode):
    """A round closes with the first weights that arrive."""

    implied: ClassVar[Mapping[str, Mapping[str, str]]] = {"aggregation": {"rule": "fedasync"}}

    mode: Literal["async"] = "async"


class Distillation(Settings):
    """How learners with different models learn from the joint predictions of all models on the public set."""

    weight: Annotated[
        Positive, Field(description="Weight of a public image relative to an image of the learner.")
    ] = 1.0
    temperature: Annotated[
        float, Field(ge=1, le=100, description="Temperature that softens the predictions; 1 means no change.")
    ] = 2.0


class Ensemble(Mode):
    """Learners have different models; the global weights contain all models and their weights in the ensemble."""

    implied: ClassVar[Mapping[str, Mapping[str, str]]] = {"model": {"name": "ensemble"}}

    mode: Literal["ensemble"] = "ensemble"
    distillation: Annotated[
        Distillation | None,
        Field(
            description="If given, learners also learn from the joint predictions of all models on the public set; "
            "needs `data.public_set`."
        ),
    ] = None


MODE_CHOICE = Choice("mode", variants_of(Mode, globals()), "sync", flat=True)
