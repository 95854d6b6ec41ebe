"""Architectures, training and evaluation, by Keras on TensorFlow.

Training is deterministic: TensorFlow's deterministic operations are switched on, the number of threads is the
plan's, and every seed derives from the plan, the node and the round. TensorFlow is imported when a
:class:`KerasTrainer` is made, not before.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Shapes, Tensor, Tensors
from fl_node.attacks.attack import Poison
from fl_node.data.datasets import Images, Labels
from fl_node.errors import ConfigError, DataError, PlanError
from fl_node.models.dp_sgd import DpSgd
from fl_node.models.trainer import OnEpoch, Probabilities, Score
from fl_node.plan.schema import Plan
from fl_node.privacy import randomness
from fl_node.privacy.dp import sampling
from fl_node.runtime import files
from fl_node.runtime.keras_start import not_float32, prepare
from fl_node.seeds import derive, permutation

if TYPE_CHECKING:
    import keras

    from fl_node.data.custom_module import OwnModule
    from fl_node.data.loading import Data

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Lesson:
    """Images without labels, and what others say of them, for a model to learn from.

    ``images`` has shape ``(count, 28, 28)``, ``probabilities`` ``(count, classes)``, softened by the temperature.
    """

    images: Images
    probabilities: Probabilities
    weight: float
    temperature: float


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


def build(plan: Plan, architecture: str | None = None) -> Any:
    """Return the plan's model for images, or one of its models, with the weights that its seed gives.

    They are drawn as Glorot & Bengio (2010) do.

    Raises
    ------
    PlanError
        The images are too small for the architecture.
    """
    import keras

    name = architecture or plan.architecture_of(1)
    height, width = plan.data.image_size
    keras.utils.set_random_seed(derive(plan.seed, "initial") % 2**32)
    try:
        return keras.Sequential(
            [
                keras.Input((height, width, 1), name="image"),
                *ARCHITECTURES[name](),
                keras.layers.Dense(plan.data.class_count, activation="softmax", name="output"),
            ],
            name=name,
        )
    except ValueError as error:
        raise PlanError(f"model.name: {name} does not support images of {height} × {width} pixels") from error


def save_whole(model: Any, path: Path) -> None:
    """Write a Keras model to a ``.keras`` file, which appears whole or stays as it was; a link stays a link.

    Raises
    ------
    OSError
        It can't be written, or its path is a folder, a device or a pipe; the error has a path.
    """
    with files.replacing(path, path.suffix) as partial:
        model.save(partial)


class KerasTrainer:
    """One model, compiled once, and the data to train and test it on.

    The number of threads is set for the whole process, so one process trains for one plan.

    Parameters
    ----------
    plan
        The run's plan.
    data
        The plan's data, for training and evaluation.
    modules
        Where custom modules are.
    architecture
        The model's; the plan's if not given.
    """

    def __init__(
        self,
        plan: Plan,
        data: Data | None = None,
        modules: Path | None = None,
        architecture: str | None = None,
    ) -> None:
        prepare(plan.training.threads)
        import keras

        from fl_node.data import custom_module

        self.plan = plan
        self.data = data
        self._own: OwnModule | None = custom_module.load(plan, modules) if plan.custom is not None else None
        self._model: Any = self._own.build() if self._own else build(plan, architecture)
        if wrong := not_float32(self._model):
            raise ConfigError(f"model {self._model.name}: {wrong}")
        self._anchors: list[Any] = []
        # XLA is slower than oneDNN's kernels on a CPU.
        self._model.compile(
            optimizer=_optimizer(plan, self._anchors),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,
        )
        self._model.optimizer.build(self._model.trainable_variables)
        if plan.training.proximal_mu:
            self._anchors += [
                keras.Variable(variable, trainable=False) for variable in self._model.trainable_variables
            ]
        self._initial = {name: np.asarray(v) for name, v in self._variables().items()}
        self._student: Any = None
        self._private = DpSgd(self._model, plan.dp_sgd) if plan.dp_sgd is not None else None

    def initial(self) -> Tensors:
        """Return the weights that a run with this plan starts from."""
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
        teacher: Tensors | None = None,  # noqa: ARG002 - of an ensemble
        lesson: Lesson | None = None,
        secret: bytes | None = None,
    ) -> Tensors:
        """Train from ``weights`` with a fresh optimizer.

        Parameters
        ----------
        weights
            float32 arrays by name, as in :meth:`shapes`.
        samples
            Indices into the training images, shape ``(count,)``.
        seed
            Decides the order of the images in each epoch, and dropout.
        on_epoch
            Called after each epoch with its number, from 1, and the accuracy and loss on these images.
        epochs
            The number of epochs; the plan's local epochs if None.
        poison
            Changes images and labels before training, as an attack does.
        teacher
            Not used by a single model.
        lesson
            Images of the public set to train on as well, with the ensemble's predictions as labels.
        secret
            With differential privacy, 32 secret bytes that decide everything random in place of ``seed``.

        Returns
        -------
        dict of float32 arrays
            The new weights, bit-identical for the same arguments, threads and TensorFlow build.

        Raises
        ------
        ConfigError
            The plan has differential privacy, and no secret is given.
        """
        images, labels = self._data().training(samples)
        if poison is not None:
            images, labels = poison(images, labels)
        if self._private is not None:
            self._train_private(self._private, weights, images, labels, secret, on_epoch)
            return {name: np.array(v) for name, v in self._variables().items()}
        model, inputs, answers, counts = self._model, self._inputs(images), labels, None
        if lesson is not None:
            model = self._learning()
            inputs = np.concatenate([inputs, self._inputs(lesson.images)])
            answers = np.concatenate([_certain(labels, lesson.probabilities.shape[1]), _softened(lesson)])
            counts = np.repeat(np.array([1, lesson.weight], np.float32), [len(labels), len(lesson.images)])
        self._load(weights)
        for anchor, variable in zip(self._anchors, self._model.trainable_variables, strict=False):
            anchor.assign(variable)
        self._reset(model, seed)
        for epoch in range(epochs or self.plan.training.epochs):
            order = permutation(len(inputs), derive(seed, "order", epoch))
            arrays = [array[order] for array in (inputs, answers, counts) if array is not None]
            with self._model_errors("the model fails"):
                history = model.fit(_batches(arrays, self.plan.training.batch_size), shuffle=False, verbose=0)
            on_epoch(epoch + 1, float(history.history["accuracy"][0]), float(history.history["loss"][0]))
        return {name: np.array(v) for name, v in self._variables().items()}

    def _train_private(
        self,
        private: DpSgd,
        weights: Tensors,
        images: Images,
        labels: Labels,
        secret: bytes | None,
        on_epoch: OnEpoch,
    ) -> None:
        if secret is None:
            raise ConfigError("differential privacy needs the secret of a host")
        training = self.plan.training
        self._load(weights)
        for anchor, variable in zip(self._anchors, self._model.trainable_variables, strict=False):
            anchor.assign(variable)
        # Which units drop out must be unknown too: with an example more, the others are elsewhere in the step.
        self._reset(self._model, int(randomness.words(secret, randomness.LAST, 1)[0] >> np.uint64(1)))
        with self._model_errors("the model fails"):
            private.train(
                self._inputs(images),
                labels,
                secret,
                sampling(len(labels), training.batch_size, training.epochs),
                training.epochs,
                on_epoch,
            )

    def labels(self) -> Labels:
        """Return the labels of all training images, shape ``(count,)``."""
        return self._data().labels()

    def evaluate(self, weights: Tensors) -> Score:
        """Return what ``weights`` reach on the plan's test images."""
        self._load(weights)
        return self.evaluate_current()

    def evaluate_current(self) -> Score:
        """Return what the weights that the model has now reach, as between two epochs of a training."""
        images, labels = self.tests()
        return score(self._predict(images), labels)

    def members(self, weights: Tensors) -> dict[str, Score]:  # noqa: ARG002
        """Return what each model of an ensemble reaches; this is none."""
        return {}

    def tests(self) -> tuple[Images, Labels]:
        """Return the plan's test images and their labels."""
        return self._data().tests(self.plan.data.test)

    def predict(self, weights: Tensors, images: Images) -> Probabilities:
        """Return the probability of each class for each image, shape ``(count, classes)``."""
        self._load(weights)
        return self._predict(images)

    def _predict(self, images: Images) -> Probabilities:
        inputs = self._inputs(images)
        # `predict` does the same, but makes a pipeline for each call, which takes longer than the model.
        starts = range(0, len(inputs), EVALUATION_BATCH)
        with self._model_errors("the model fails"):
            batches = [self._model.predict_on_batch(inputs[start : start + EVALUATION_BATCH]) for start in starts]
            return finite(np.concatenate(batches))

    def _model_errors(self, what: str) -> AbstractContextManager[None]:
        """Return a context in which what the model raises is an error of the plan's module, if it has one."""
        return self._own.model_errors(what) if self._own else nullcontext()

    def _inputs(self, images: Images) -> Tensor:
        return self._own.inputs(self._model, images) if self._own else _scale(images)

    def save(self, weights: Tensors, path: Path) -> None:
        """Write ``weights`` as a ``.keras`` model that Keras alone can load."""
        from fl_node.data.custom_module import UNSAVED

        with self._model_errors(UNSAVED):
            save_whole(self.loaded(weights), path)

    def loaded(self, weights: Tensors) -> Any:
        """Return the compiled Keras model with these weights, until it is used for others."""
        self._load(weights)
        return self._model

    @property
    def model(self) -> Any:
        """The compiled Keras model, whose weights are whatever was done last."""
        return self._model

    def _data(self) -> Data:
        if self.data is None:
            raise DataError(f"no data set; the plan needs {self.plan.data.name}")
        return self.data

    def _variables(self) -> dict[str, Any]:
        if self._own:
            # Keras numbers layers without a name through the whole process; what does not train (such as the
            # averages of batch normalisation) is part of the model too.
            return {f"{number:03}/{v.name}": v for number, v in enumerate(self._model.weights)}
        return {v.path.removeprefix(f"{self._model.name}/"): v for v in self._model.trainable_variables}

    def _load(self, weights: Tensors) -> None:
        for name, variable in self._variables().items():
            variable.assign(weights[name])

    def _learning(self) -> Any:
        """Return the same layers, to be trained on what others say as well as on labels."""
        if self._student is None:
            import keras

            self._student = keras.Model(self._model.inputs, self._model.outputs, name="student")
            self._student.compile(
                optimizer=_optimizer(self.plan, self._anchors),
                loss=_distillation,
                metrics=[_agreement],
                jit_compile=False,
            )
            self._student.optimizer.build(self._student.trainable_variables)
        return self._student

    def _reset(self, model: Any, seed: int) -> None:
        for variable in model.optimizer.variables:
            if variable is not model.optimizer.learning_rate:
                variable.assign(np.zeros(variable.shape, variable.dtype))
        if self._own:
            states = [v for v in self._model.non_trainable_variables if v.name == "seed_generator_state"]
            for number, state in enumerate(states):
                state.assign(np.array([derive(seed, "dropout", number) % 2**32, 0], np.uint32))
            return
        for layer in self._model.layers:
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                key = derive(seed, "dropout", layer.name) % 2**32
                generator.state.assign(np.array([key, 0], np.uint32))


def _batches(arrays: Sequence[npt.NDArray[Any]], size: int) -> Any:
    """Return arrays of equal length as TensorFlow's data set of batches, in their order; the last may be smaller.

    Keras makes the same batches of arrays, but with functions that it traces again for each call of ``fit``: most of
    the time of an epoch on few images.
    """
    import tensorflow as tf

    whole = len(arrays[0]) // size * size
    parts = []
    if whole:
        stacked = tuple(array[:whole].reshape(-1, size, *array.shape[1:]) for array in arrays)
        parts.append(tf.data.Dataset.from_tensor_slices(stacked))
    if whole < len(arrays[0]):
        parts.append(tf.data.Dataset.from_tensors(tuple(array[whole:] for array in arrays)))
    batches = functools.reduce(lambda before, last: before.concatenate(last), parts)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return batches.with_options(options)


def score(probabilities: Probabilities, labels: Labels) -> Score:
    """Compare class probabilities, shape ``(count, classes)``, with the labels, shape ``(count,)``."""
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = float(-np.log(np.maximum(of_label, 1e-12)).mean())
    return Score(correct / len(labels), max(loss, 0.0), len(labels), calibration_error(probabilities, labels))


def finite(probabilities: Probabilities) -> Probabilities:
    """Return probabilities with 0 for NaN and 1 for infinity, which huge weights in a file of somebody else give."""
    if np.isfinite(probabilities).all():
        return probabilities
    return np.nan_to_num(probabilities, nan=0.0, posinf=1.0, neginf=0.0)


def calibration_error(probabilities: Probabilities, labels: Labels, bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, on average over the images.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2: images are put into bins of equal width by the
    probability of the class that is chosen; in each bin the mean of these is compared with the share that is right.

    Parameters
    ----------
    probabilities
        Shape ``(count, classes)``.
    labels
        Shape ``(count,)``.
    bins
        How many.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    where = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = [abs(confidence[where == index].sum() - correct[where == index].sum()) for index in range(bins)]
    return float(sum(gaps) / len(labels))


def soften(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return probabilities, shape ``(count, classes)``, as their model would give them at another temperature."""
    logarithms = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature
    raised = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    softened: Probabilities = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return softened


def _certain(labels: Labels, classes: int) -> Tensor:
    """Return labels as the loss of distillation takes them: probabilities and, last, the temperature."""
    answers = np.zeros((len(labels), classes + 1), np.float32)
    answers[np.arange(len(labels)), labels] = 1
    answers[:, -1] = 1
    return answers


def _softened(lesson: Lesson) -> Tensor:
    temperatures = np.full((len(lesson.images), 1), lesson.temperature, np.float32)
    return np.concatenate([lesson.probabilities, temperatures], axis=1)


def _distillation(answers: Any, predicted: Any) -> Any:
    """Return the cross-entropy at each image's temperature T, times T², as in Hinton et al. 2015.

    https://arxiv.org/abs/1503.02531, section 2; with T = 1 and a certain answer it is that of a label.
    """
    from keras import ops

    temperature = answers[:, -1:]
    logits = ops.log(ops.maximum(predicted, 1e-7)) / temperature
    entropy = -ops.sum(answers[:, :-1] * ops.log_softmax(logits), axis=-1)
    return ops.squeeze(temperature, -1) ** 2 * entropy


def _agreement(answers: Any, predicted: Any) -> Any:
    from keras import ops

    return ops.cast(ops.equal(ops.argmax(answers[:, :-1], -1), ops.argmax(predicted, -1)), "float32")


_agreement.__name__ = "accuracy"


def _scale(images: Images) -> Tensor:
    scaled: Tensor = images[..., np.newaxis].astype(np.float32) / np.float32(255)
    return scaled


def _optimizer(plan: Plan, anchors: Sequence[Any]) -> Any:
    """Return the plan's optimizer; with FedProx one that is drawn to the anchors, the weights it started from."""
    import keras

    kinds: dict[str, Any] = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
    kind = kinds[plan.training.optimizer]
    strength = plan.training.proximal_mu

    class Proximal(kind):  # type: ignore[misc, valid-type]
        """Adds the gradient of the proximal term of FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127)."""

        def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
            drawn = [
                gradient + strength * (variable - anchor)
                for gradient, variable, anchor in zip(grads, trainable_variables, anchors, strict=True)
            ]
            return super().apply(drawn, trainable_variables)

    return (Proximal if strength else kind)(learning_rate=plan.training.learning_rate)
