"""Label flip: a learner trains on mirrored labels, the first for the last and so on.

Tolpegin et al., "Data Poisoning Attacks Against Federated Learning Systems", ESORICS 2020,
https://arxiv.org/abs/2007.08432
"""

from __future__ import annotations

from typing import Literal

from fl_node.attacks.attack import DataAttack
from fl_node.runtime.tensors import Images, Labels


class LabelFlip(DataAttack):
    """Labels are mirrored."""

    data: Literal["label_flip"] = "label_flip"

    def poison(self, images: Images, labels: Labels, seed: int, classes: int) -> tuple[Images, Labels]:  # noqa: ARG002
        """Mirror the labels."""
        return images, classes - 1 - labels
