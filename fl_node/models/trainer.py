"""What roles, audit, report and lab need of a model, whichever library trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Shapes, Tensors
from fl_node.attacks.attack import Poison
from fl_node.data.datasets import Images, Labels
from fl_node.plan.schema import Plan

if TYPE_CHECKING:
    from fl_node.data.loading import Data

Probabilities = npt.NDArray[np.float32]
OnEpoch = Callable[[int, float, float], None]
"""Called with the number of an epoch, from 1, and accuracy and loss on the images trained on."""


@dataclass(frozen=True)
class Score:
    """What a model reached on the test images.

    Accuracy is a fraction, loss the cross-entropy in nats; ``calibration_error`` is how far a model's confidence is
    from how often it is right, on average, a fraction too (see
    :func:`fl_node.models.keras_trainer.calibration_error`).
    """

    accuracy: float
    loss: float
    count: int
    calibration_error: float | None = None


class Trainer(Protocol):
    """A plan's model, or its models: trained, measured and saved, whatever they are made of."""

    plan: Plan
    data: Data | None

    def initial(self) -> Tensors:
        """Return the weights that a run starts from."""

    def shapes(self) -> Shapes:
        """Return the names and shapes of the model's tensors."""

    def labels(self) -> Labels:
        """Return the labels of all training images, shape ``(count,)``."""

    def train(
        self,
        weights: Tensors,
        samples: npt.NDArray[np.int64],
        seed: int,
        on_epoch: OnEpoch = lambda _epoch, _accuracy, _loss: None,
        *,
        poison: Poison | None = None,
        teacher: Tensors | None = None,
        secret: bytes | None = None,
    ) -> Tensors:
        """Train from ``weights`` and return the new weights.

        Parameters
        ----------
        weights
            float32 arrays by name; shapes as in :meth:`shapes`.
        samples
            Indices into the training images, int64, shape ``(count,)``.
        seed
            Decides everything random in the training.
        on_epoch
            Called after each epoch; see :data:`OnEpoch`.
        poison
            Changes images and labels before training, as an attack does.
        teacher
            The global weights of an ensemble; the model then also trains on the ensemble's predictions for the public
            set.
        secret
            With differential privacy, 32 secret bytes that decide sampling and noise; nobody else may know them.

        Returns
        -------
        mapping of float32 arrays
            The new weights, with the names and shapes of ``weights``.
        """

    def tests(self) -> tuple[Images, Labels]:
        """Return the plan's test images and their labels."""

    def predict(self, weights: Tensors, images: Images) -> Probabilities:
        """Return the probability of each class for each image, shape ``(count, classes)``."""

    def evaluate(self, weights: Tensors) -> Score:
        """Return what ``weights`` reach on the plan's test images."""

    def members(self, weights: Tensors) -> dict[str, Score]:
        """Return what each model of an ensemble reaches alone, by its architecture; nothing for one model."""

    def save(self, weights: Tensors, path: Path) -> None:
        """Write ``weights`` as a ``.keras`` model that Keras alone can load."""


MakeTrainer = Callable[[Plan], Trainer]
"""Makes a plan's model, with the data that it needs."""
