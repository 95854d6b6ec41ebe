"""Models of different architectures that answer together, and learn from each other.

An ensemble's tensors have their architecture before their name, such as ``mlp/dense1/bias``, so that one file holds
them all, and a learner's own file says by itself which model it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_node.aggregation.ensemble import WEIGHTS
from fl_node.artifacts.model_file import Shapes, Tensor, Tensors
from fl_node.attacks.attack import Poison
from fl_node.data import partition
from fl_node.data.datasets import DataSet, Images, Labels
from fl_node.data.loading import Data
from fl_node.errors import DataError
from fl_node.models.keras_trainer import (
    KerasTrainer,
    Lesson,
    finite,
    save_whole,
    score,
    soften,
)
from fl_node.models.trainer import OnEpoch, Probabilities, Score, Trainer
from fl_node.plan.schema import Plan


def trainer_for(plan: Plan, data: Data | None = None, modules: Path | None = None) -> Trainer:
    """Return the model that a plan trains, or the ensemble of models.

    Parameters
    ----------
    plan, data, modules
        As for :class:`KerasTrainer`.
    """
    return EnsembleTrainer(plan, data) if plan.mode == "ensemble" else KerasTrainer(plan, data, modules)


class EnsembleTrainer:
    """The models of a plan whose learners have different ones, and the data to train and test them on.

    Weights are those of one architecture, as in a learner's file, or of all with what each counts for, as in a global
    file. A header measures in one thread and averages in another, so they take turns.
    """

    def __init__(self, plan: Plan, data: Data | None = None) -> None:
        self.plan = plan
        self.data = data
        self._members: dict[str, KerasTrainer] = {
            name: KerasTrainer(plan, data, architecture=name) for name in plan.architectures
        }
        self._turn = threading.Lock()

    def initial(self) -> Tensors:
        """Return the weights of all models that a run starts from."""
        members = self._members.items()
        return {f"{member}/{name}": tensor for member, model in members for name, tensor in model.initial().items()}

    def shapes(self) -> Shapes:
        """Return the names and shapes of the tensors of all models."""
        return {name: tensor.shape for name, tensor in self.initial().items()}

    def labels(self) -> Labels:
        """Return the labels of all training images, shape ``(count,)``."""
        return self._any.labels()

    def tests(self) -> tuple[Images, Labels]:
        """Return the plan's test images and their labels."""
        return self._any.tests()

    def train(
        self,
        weights: Tensors,
        samples: npt.NDArray[np.int64],
        seed: int,
        on_epoch: OnEpoch = lambda _epoch, _accuracy, _loss: None,
        *,
        epochs: int | None = None,
        poison: Poison | None = None,
        teacher: Tensors | None = None,
        secret: bytes | None = None,  # noqa: ARG002 - a plan with an ensemble has no differential privacy
    ) -> Tensors:
        """Train one model of the ensemble as :meth:`KerasTrainer.train` does.

        With a teacher, it also trains on the ensemble's predictions for the public set, as in FedMD (Li & Wang 2019,
        https://arxiv.org/abs/1910.03581), where learners with different models share only their predictions.

        Parameters
        ----------
        weights
            The weights of one model; names begin with ``ARCHITECTURE/``.
        samples, seed, on_epoch, epochs, poison
            As for :meth:`KerasTrainer.train`.
        teacher
            The global weights of all models; None trains without the public set.
        secret
            Not used.

        Returns
        -------
        dict of float32 arrays
            The new weights, under the same names.
        """
        (name,) = self._architectures(weights)
        with self._turn:
            lesson = self._lesson(teacher) if teacher is not None else None
            trained = self._members[name].train(
                _own(weights, name), samples, seed, on_epoch, epochs=epochs, poison=poison, lesson=lesson
            )
        return {f"{name}/{own}": tensor for own, tensor in trained.items()}

    def evaluate(self, weights: Tensors) -> Score:
        """Return what one model, or all together, reach on the plan's test images."""
        images, labels = self.tests()
        return score(self.predict(weights, images), labels)

    def members(self, weights: Tensors) -> dict[str, Score]:
        """Return what each model alone reaches on the plan's test images, by its architecture."""
        return {name: self.evaluate(_only(weights, name)) for name in self._architectures(weights)}

    def predict(self, weights: Tensors, images: Images) -> Probabilities:
        """Return the probability of each class by one model, or all together, shape ``(count, classes)``."""
        with self._turn:
            return self._predict(weights, images)

    def _predict(self, weights: Tensors, images: Images, temperature: float = 1.0) -> Probabilities:
        names = self._architectures(weights)
        counts = weights[WEIGHTS] if WEIGHTS in weights else np.ones(1, np.float32)
        together = np.zeros((), np.float32)
        for name, count in zip(names, counts, strict=True):
            predicted = self._members[name].predict(_own(weights, name), images)
            together = together + count * (soften(predicted, temperature) if temperature != 1 else predicted)
        return finite(together)

    def save(self, weights: Tensors, path: Path) -> None:
        """Write ``weights`` of all models as one ``.keras`` model that Keras alone can load."""
        import keras

        with self._turn:
            image = keras.Input((*self.plan.data.image_size, 1), name="image")
            counted = []
            for name, count in zip(self._architectures(weights), weights[WEIGHTS], strict=True):
                model = self._members[name].loaded(_own(weights, name))
                counted.append(keras.layers.Rescaling(float(count), name=f"counts_{name}")(model(image)))
            answer = counted[0] if len(counted) == 1 else keras.layers.Add(name="together")(counted)
            save_whole(keras.Model(image, answer, name="ensemble"), path)

    @property
    def _any(self) -> KerasTrainer:
        return next(iter(self._members.values()))

    def _architectures(self, names: Iterable[str]) -> list[str]:
        there = {name.partition("/")[0] for name in names}
        return [name for name in self._members if name in there]

    def _lesson(self, teacher: Tensors) -> Lesson:
        settings = self.plan.distillation
        if not isinstance(self.data, DataSet) or settings is None:
            raise DataError(f"distillation needs the public set of {self.plan.data.name}")
        images = self.data.train_images[partition.public_set(self.plan)]
        predicted = self._predict(teacher, images, settings.temperature)
        return Lesson(images, predicted, settings.weight, settings.temperature)


def _own(weights: Tensors, architecture: str) -> dict[str, Tensor]:
    """Return the tensors of one architecture by the names that they have in its own model."""
    prefix = f"{architecture}/"
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def _only(weights: Tensors, architecture: str) -> dict[str, Any]:
    return {name: weights[name] for name in weights if name.startswith(f"{architecture}/")}
