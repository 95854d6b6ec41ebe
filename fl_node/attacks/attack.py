"""What an attack is: a function of arrays and a seed, so that a round that is trained again is the same round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from fl_node.runtime.settings import Settings
from fl_node.runtime.tensors import Images, Labels, Tensors

Poison = Callable[[Images, Labels], tuple[Images, Labels]]
"""What is done to a learner's images and their labels before it trains on them."""


class DataAttack(Settings):
    """What a learner does to its images before it trains."""

    needs_images: ClassVar[bool] = False
    """Whether the attack is for images alone."""

    data: str

    @abstractmethod
    def poison(self, images: Images, labels: Labels, seed: int, classes: int) -> tuple[Images, Labels]:
        """Return what the learner trains on.

        Parameters
        ----------
        images, labels
            Its images, shape ``(count, height, width)``, and their labels, shape ``(count,)``; not changed.
        seed
            Of all chance in the attack.
        classes
            The number of classes; labels are 0 to one less.
        """


class UpdateAttack(Settings):
    """What a learner does to its weights after it has trained."""

    update: str

    @abstractmethod
    def tamper(self, parent: Tensors, trained: Tensors, seed: int) -> Tensors:
        """Return the weights that the learner publishes.

        Parameters
        ----------
        parent
            The global weights that it trained from, by name, float32; it may have tensors that ``trained`` has not.
        trained
            Its local weights, by name, float32; not changed.
        seed
            Of all chance in the attack.
        """
