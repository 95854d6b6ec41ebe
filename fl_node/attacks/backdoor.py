"""Backdoor: the model shall give images with a small patch a label of the attacker's choice.

Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, https://arxiv.org/abs/1807.00459
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fl_node.attacks.attack import DataAttack
from fl_node.runtime.tensors import Images, Labels
from fl_node.seeds import derive, permutation

PATCH = 4
"""Pixels of the backdoor's white square, in the lower right corner."""


class Backdoor(DataAttack):
    """Some images get a patch and the target's label."""

    number: ClassVar[str | None] = "fraction"
    needs_images: ClassVar[bool] = True

    data: Literal["backdoor"] = "backdoor"
    target: Annotated[int, Field(ge=0, lt=100_000, description="Target label for images with the patch.")] = 0
    fraction: Annotated[
        float, Field(gt=0, le=1, description="The share of the attacker's images that get the patch.")
    ] = 0.5

    def poison(self, images: Images, labels: Labels, seed: int, classes: int) -> tuple[Images, Labels]:  # noqa: ARG002
        """Put the patch on some images and change their labels."""
        count = round(self.fraction * len(images))
        chosen = permutation(len(images), derive(seed, "backdoor"))[:count]
        images, labels = images.copy(), labels.copy()
        images[chosen] = patched(images[chosen])
        labels[chosen] = self.target
        return images, labels


def patched(images: Images) -> Images:
    """Return images with the backdoor's patch, shape ``(count, 28, 28)``."""
    images = images.copy()
    images[:, -PATCH - 1 : -1, -PATCH - 1 : -1] = 255
    return images
