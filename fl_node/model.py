"""Architectures, training and evaluation, by Keras on TensorFlow.

Training is deterministic: TensorFlow's deterministic operations are switched on, the number of threads is the
plan's, and every seed derives from the plan, the node and the round. TensorFlow is imported when a
:class:`KerasTrainer` is made, not before.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fl_node.attack import Poison
from fl_node.data import CLASSES, SIDE, DataSet, Images, Labels
from fl_node.errors import DataError
from fl_node.plan import Plan
from fl_node.seeds import derive, permutation
from fl_node.weights import Shapes, Tensor, Tensors

if TYPE_CHECKING:
    import keras

EVALUATION_BATCH = 1000
Probabilities = npt.NDArray[np.float32]
OnEpoch = Callable[[int, float, float], None]
"""Called with the number of an epoch, from 1, and accuracy and loss on the images trained on."""


@dataclass(frozen=True)
class Score:
    """What a model reached on the test images: accuracy as a fraction, loss as cross-entropy in nats."""

    accuracy: float
    loss: float
    count: int


class Trainer(Protocol):
    """What a role needs of a model."""

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
        on_epoch: OnEpoch,
        *,
        poison: Poison | None = None,
    ) -> Tensors:
        """Train from ``weights`` on the training images with these indices; return the new weights."""

    def evaluate(self, weights: Tensors) -> Score:
        """Return what ``weights`` reach on the plan's test images."""


def cnn() -> list[keras.Layer]:
    """Return the layers of the paper's CNN up to the output.

    Hwang & Kim (2024) publish "a simple CNN with Dropout in the fully-connected part" and no sizes. This one
    has two pairs of 3 × 3 convolutions, each with max-pooling after it, and one hidden layer with dropout before and
    after it: 329,962 parameters together with the Softmax output.
    """
    from keras import layers

    return [
        layers.Conv2D(32, 3, activation="relu", name="conv1"),
        layers.Conv2D(32, 3, activation="relu", name="conv2"),
        layers.MaxPooling2D(name="pool1"),
        layers.Conv2D(64, 3, activation="relu", name="conv3"),
        layers.Conv2D(64, 3, activation="relu", name="conv4"),
        layers.MaxPooling2D(name="pool2"),
        layers.Flatten(name="flatten"),
        layers.Dropout(0.5, name="dropout1"),
        layers.Dense(256, activation="relu", name="dense1"),
        layers.Dropout(0.5, name="dropout2"),
    ]


def mlp() -> list[keras.Layer]:
    """Return the layers of a small perceptron up to the output: 50,890 parameters together with it."""
    from keras import layers

    return [layers.Flatten(name="flatten"), layers.Dense(64, activation="relu", name="dense1")]


def deep_cnn() -> list[keras.Layer]:
    """Return the layers of a deeper CNN up to the output.

    Three pairs of 3 × 3 convolutions that keep the image's size, each with max-pooling after it, as in VGG (Simonyan
    & Zisserman 2015), and one hidden layer: 435,306 parameters together with the output.
    """
    from keras import layers

    pairs = [
        [
            layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{number}a"),
            layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{number}b"),
            layers.MaxPooling2D(name=f"pool{number}"),
        ]
        for number, filters in ((1, 32), (2, 64), (3, 128))
    ]
    return [
        *itertools.chain(*pairs),
        layers.Flatten(name="flatten"),
        layers.Dropout(0.5, name="dropout1"),
        layers.Dense(128, activation="relu", name="dense1"),
        layers.Dropout(0.5, name="dropout2"),
    ]


def separable_cnn() -> list[keras.Layer]:
    """Return the layers of a small CNN of depthwise-separable convolutions up to the output.

    As in MobileNet (Howard et al. 2017), a filter for each channel and then a mixture of the channels take the place
    of a full convolution: 49,770 parameters together with the output.
    """
    from keras import layers

    return [
        layers.Conv2D(32, 3, activation="relu", name="conv1"),
        layers.SeparableConv2D(64, 3, activation="relu", name="separable1"),
        layers.MaxPooling2D(name="pool1"),
        layers.SeparableConv2D(128, 3, activation="relu", name="separable2"),
        layers.SeparableConv2D(128, 3, activation="relu", name="separable3"),
        layers.MaxPooling2D(name="pool2"),
        layers.Flatten(name="flatten"),
        layers.Dropout(0.5, name="dropout1"),
    ]


ARCHITECTURES = {"cnn": cnn, "deep_cnn": deep_cnn, "mlp": mlp, "separable_cnn": separable_cnn}


class KerasTrainer:
    """The plan's model, compiled once, and the data to train and test it on.

    The number of threads is set for the whole process, so one process trains for one plan.
    """

    def __init__(self, plan: Plan, data: DataSet | None = None) -> None:
        _prepare(plan.training.threads)
        import keras

        self.plan = plan
        self.data = data
        keras.utils.set_random_seed(derive(plan.seed, "initial") % 2**32)
        self._model: Any = keras.Sequential(
            [
                keras.Input((SIDE, SIDE, 1), name="image"),
                *ARCHITECTURES[plan.model.name](),
                keras.layers.Dense(CLASSES, activation="softmax", name="output"),
            ],
            name=plan.model.name,
        )
        self._anchors: list[Any] = []
        # XLA is slower than oneDNN's kernels on a CPU.
        self._model.compile(
            optimizer=_optimizer(plan, self._anchors),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,
        )
        self._model.optimizer.build(self._model.trainable_variables)
        if plan.training.proximal:
            self._anchors += [
                keras.Variable(variable, trainable=False) for variable in self._model.trainable_variables
            ]
        self._initial = {name: np.asarray(v) for name, v in self._variables().items()}

    def initial(self) -> Tensors:
        """Return the weights that a run with this plan starts from (Glorot & Bengio 2010, seeded)."""
        return self._initial

    def shapes(self) -> Shapes:
        """Return the names and shapes of the model's tensors."""
        return {name: tensor.shape for name, tensor in self._initial.items()}

    def train(
        self,
        weights: Tensors,
        samples: npt.NDArray[np.int64],
        seed: int,
        on_epoch: OnEpoch = lambda _epoch, _accuracy, _loss: None,
        *,
        epochs: int | None = None,
        poison: Poison | None = None,
    ) -> Tensors:
        """Train from ``weights`` with a fresh optimizer.

        Parameters
        ----------
        weights
            float32 arrays by name, as in :meth:`shapes`.
        samples
            Indices into the training images, shape ``(count,)``.
        seed
            Decides the order of the images in each epoch and what dropout drops.
        on_epoch
            Called after each epoch with its number, from 1, and accuracy and loss on the images trained on.
        epochs
            How often each image is seen; the plan's local epochs if None.
        poison
            Changes images and labels first, as an attack does.

        Returns
        -------
        dict of float32 arrays
            The new weights, bit-identical for the same arguments, threads and TensorFlow build.
        """
        data = self._data()
        images, labels = data.train_images[samples], data.train_labels[samples]
        if poison is not None:
            images, labels = poison(images, labels)
        inputs = _scale(images)
        self._load(weights)
        for anchor, variable in zip(self._anchors, self._model.trainable_variables, strict=False):
            anchor.assign(variable)
        self._reset(seed)
        for epoch in range(epochs or self.plan.training.epochs):
            order = permutation(len(samples), derive(seed, "order", epoch))
            history = self._model.fit(
                inputs[order],
                labels[order],
                batch_size=self.plan.training.batch_size,
                epochs=1,
                shuffle=False,
                verbose=0,
            )
            on_epoch(epoch + 1, float(history.history["accuracy"][0]), float(history.history["loss"][0]))
        return {name: np.array(v) for name, v in self._variables().items()}

    def labels(self) -> Labels:
        """Return the labels of all training images, shape ``(count,)``."""
        return self._data().train_labels

    def evaluate(self, weights: Tensors) -> Score:
        """Return what ``weights`` reach on the plan's test images."""
        self._load(weights)
        return self.evaluate_current()

    def evaluate_current(self) -> Score:
        """Return what the weights that the model has now reach, as between two epochs of a training."""
        images, labels = self.tests()
        return score(self._predict(images), labels)

    def tests(self) -> tuple[Images, Labels]:
        """Return the plan's test images and their labels."""
        data, count = self._data(), self.plan.data.test
        return data.test_images[:count], data.test_labels[:count]

    def predict(self, weights: Tensors, images: Images) -> Probabilities:
        """Return the probability of each class for each image, shape ``(count, 10)``."""
        self._load(weights)
        return self._predict(images)

    def _predict(self, images: Images) -> Probabilities:
        result: Probabilities = self._model.predict(_scale(images), batch_size=EVALUATION_BATCH, verbose=0)
        return result

    def save(self, weights: Tensors, path: Path) -> None:
        """Write ``weights`` as a ``.keras`` model that Keras alone can load."""
        self._load(weights)
        self._model.save(path)

    @property
    def model(self) -> Any:
        """The compiled Keras model, whose weights are whatever was done last."""
        return self._model

    def _data(self) -> DataSet:
        if self.data is None:
            raise DataError(f"this needs the data set {self.plan.data.name}")
        return self.data

    def _variables(self) -> dict[str, Any]:
        return {v.path.removeprefix(f"{self._model.name}/"): v for v in self._model.trainable_variables}

    def _load(self, weights: Tensors) -> None:
        for name, variable in self._variables().items():
            variable.assign(weights[name])

    def _reset(self, seed: int) -> None:
        for variable in self._model.optimizer.variables:
            if variable is not self._model.optimizer.learning_rate:
                variable.assign(np.zeros(variable.shape, variable.dtype))
        for layer in self._model.layers:
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                key = derive(seed, "dropout", layer.name) % 2**32
                generator.state.assign(np.array([key, 0], np.uint32))


def score(probabilities: Probabilities, labels: Labels) -> Score:
    """Compare class probabilities, shape ``(count, classes)``, with the labels, shape ``(count,)``."""
    right = int((probabilities.argmax(axis=1) == labels).sum())
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = float(-np.log(np.maximum(of_label, 1e-12)).mean())
    return Score(right / len(labels), max(loss, 0.0), len(labels))


def _scale(images: Images) -> Tensor:
    scaled: Tensor = images[..., np.newaxis].astype(np.float32) / np.float32(255)
    return scaled


def _optimizer(plan: Plan, anchors: Sequence[Any]) -> Any:
    """Return the plan's optimizer; with FedProx one that is drawn to the anchors, the weights it started from."""
    import keras

    kinds: dict[str, Any] = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
    kind = kinds[plan.training.optimizer]
    strength = plan.training.proximal

    class Proximal(kind):  # type: ignore[misc, valid-type]
        """Adds the gradient of the proximal term of FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127)."""

        def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
            drawn = [
                gradient + strength * (variable - anchor)
                for gradient, variable, anchor in zip(grads, trainable_variables, anchors, strict=True)
            ]
            return super().apply(drawn, trainable_variables)

    return (Proximal if strength else kind)(learning_rate=plan.training.learning_rate)


def _prepare(threads: int) -> None:
    # TensorFlow reads these when it is imported: no chatter about what the CPU could do, no search for a GPU.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with _quiet(), _without("sklearn"):
        import keras  # noqa: F401
        import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Let an import find that a package is not installed, unless it is imported already.

    Keras loads scikit-learn, most of a second, for wrappers that it does without and that are of no use here.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send to nowhere what TensorFlow's C++ code writes to standard error while it is loaded.

    What Python writes there meanwhile, in other threads, still arrives.
    """
    sys.stderr.flush()
    errors = sys.stderr
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        if errors is sys.__stderr__:
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, encoding="utf-8", errors="replace")
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        sys.stderr = errors
        os.close(kept)
        os.close(nowhere)
