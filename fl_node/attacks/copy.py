"""Copy: a learner publishes the global weights that it was given, as if it had trained."""

from __future__ import annotations

from typing import Literal

from fl_node.attacks.attack import UpdateAttack
from fl_node.runtime.tensors import Tensors


class Copy(UpdateAttack):
    """The global weights, unchanged."""

    update: Literal["copy"] = "copy"

    def tamper(self, parent: Tensors, trained: Tensors, seed: int) -> Tensors:  # noqa: ARG002
        """Return the global weights."""
        return {name: parent[name] for name in trained}
