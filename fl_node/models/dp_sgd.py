"""DP-SGD: gradients that are clipped example by example, summed, and blurred by noise (Abadi et al. 2016).

The gradients of all examples of a step are computed at once, from what each layer gets and from the gradients of what
it gives before its activation, one backward pass for all. Of a dense layer only their norms are computed (Goodfellow
2015, https://arxiv.org/abs/1510.01799); a convolution's are small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Tensor
from fl_node.data.datasets import Labels
from fl_node.errors import ConfigError
from fl_node.models.trainer import OnEpoch
from fl_node.privacy import randomness
from fl_node.privacy.dp import DpPlan, Sampling

CHUNK = 256
"""The most examples whose gradients are in memory at once."""
PADDING = 16
"""Examples are filled up to a multiple of this, so that TensorFlow sees few sizes."""
TINY = 1e-12


class _Record(ABC):
    """What one layer got in a step, and what it gave before its activation, for each example."""

    def __init__(self, inputs: Any, outputs: Any) -> None:
        self.inputs = inputs
        self.outputs = outputs

    @abstractmethod
    def take(self, gradients: Any) -> None:
        """Take the gradients of the outputs, each of its example's loss alone."""

    @abstractmethod
    def squares(self) -> Any:
        """Return the squared norm of the gradient of the layer's weights for each example, shape ``(count,)``."""

    @abstractmethod
    def sums(self, factors: Any) -> list[Any]:
        """Return the sum of the examples' gradients, each times its factor, for each of the layer's weights."""


class _Dense(_Record):
    """A matrix that is applied to one vector of each example."""

    def take(self, gradients: Any) -> None:
        self._gradients = gradients

    def squares(self) -> Any:
        import tensorflow as tf

        return tf.reduce_sum(self.inputs**2, 1) * tf.reduce_sum(self._gradients**2, 1)

    def sums(self, factors: Any) -> list[Any]:
        import tensorflow as tf

        return [tf.matmul(self.inputs, self._gradients * factors[:, None], transpose_a=True)]


class _Explicit(_Record):
    """A layer whose weights have a gradient of each example in memory, shape ``(count, …)``."""

    def take(self, gradients: Any) -> None:
        self._each = self.each(gradients)

    @abstractmethod
    def each(self, gradients: Any) -> Any:
        """Return the gradient of the weights for each example."""

    def squares(self) -> Any:
        import tensorflow as tf

        return tf.reduce_sum(self._each**2, list(range(1, len(self._each.shape))))

    def sums(self, factors: Any) -> list[Any]:
        import tensorflow as tf

        return [tf.tensordot(factors, self._each, 1)]


class _Bias(_Explicit):
    """What is added to each channel."""

    def each(self, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.reduce_sum(gradients, list(range(1, len(gradients.shape) - 1)))


@dataclass(frozen=True)
class _Window:
    """Where the kernel of a convolution looks."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    same: bool

    @classmethod
    def of(cls, layer: Any) -> _Window:
        """Return the window of a layer."""
        return cls(
            tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate), layer.padding == "same"
        )

    def views(self, images: Any, height: int, width: int) -> Iterator[Any]:
        """Yield, for each place in the kernel, what it meets: shape ``(count, height × width, channels)``.

        Parameters
        ----------
        images
            Shape ``(count, rows, columns, channels)``.
        height, width
            The size of the convolution's output.
        """
        import tensorflow as tf

        padding = [[0, 0], [0, 0], [0, 0], [0, 0]]
        if self.same:
            for axis, out in enumerate((height, width)):
                reach = (out - 1) * self.strides[axis] + (self.size[axis] - 1) * self.dilation[axis] + 1
                missing = max(reach - images.shape[1 + axis], 0)
                padding[1 + axis] = [missing // 2, missing - missing // 2]
            images = tf.pad(images, padding)
        channels = images.shape[3]
        for row in range(self.size[0]):
            for column in range(self.size[1]):
                top, left = row * self.dilation[0], column * self.dilation[1]
                bottom, right = top + (height - 1) * self.strides[0] + 1, left + (width - 1) * self.strides[1] + 1
                view = images[:, top : bottom : self.strides[0], left : right : self.strides[1]]
                yield tf.reshape(view, (-1, height * width, channels))


class _Convolution(_Explicit):
    """A kernel of shape ``(rows, columns, channels, filters)``."""

    def __init__(self, inputs: Any, outputs: Any, window: _Window) -> None:
        super().__init__(inputs, outputs)
        self._window = window

    def each(self, gradients: Any) -> Any:
        import tensorflow as tf

        _, height, width, filters = gradients.shape
        of_places = tf.reshape(gradients, (-1, height * width, filters))
        parts = [
            tf.matmul(view, of_places, transpose_a=True) for view in self._window.views(self.inputs, height, width)
        ]
        return tf.reshape(tf.stack(parts, 1), (-1, *self._window.size, self.inputs.shape[3], filters))


class _Depthwise(_Convolution):
    """A kernel for each channel, of shape ``(rows, columns, channels, multiplier)``."""

    def each(self, gradients: Any) -> Any:
        import tensorflow as tf

        _, height, width, outputs = gradients.shape
        channels = self.inputs.shape[3]
        of_places = tf.reshape(gradients, (-1, height * width, channels, outputs // channels))
        parts = [
            tf.reduce_sum(view[..., None] * of_places, 1) for view in self._window.views(self.inputs, height, width)
        ]
        return tf.reshape(tf.stack(parts, 1), (-1, *self._window.size, channels, outputs // channels))


def _dense(layer: Any, inputs: Any) -> list[_Record]:
    import tensorflow as tf

    outputs = tf.matmul(inputs, layer.kernel)
    return [_Dense(inputs, outputs)]


def _convolution(layer: Any, inputs: Any) -> list[_Record]:
    import keras

    outputs = keras.ops.conv(
        inputs, layer.kernel, strides=layer.strides, padding=layer.padding, dilation_rate=layer.dilation_rate
    )
    return [_Convolution(inputs, outputs, _Window.of(layer))]


def _separable(layer: Any, inputs: Any) -> list[_Record]:
    import keras

    between = keras.ops.depthwise_conv(
        inputs,
        layer.depthwise_kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
    )
    outputs = keras.ops.conv(between, layer.pointwise_kernel)
    return [
        _Depthwise(inputs, between, _Window.of(layer)),
        _Convolution(between, outputs, _Window((1, 1), (1, 1), (1, 1), same=False)),
    ]


_RULES = {"Dense": _dense, "Conv2D": _convolution, "SeparableConv2D": _separable}
"""By the class of a layer with weights: how its outputs come about before its bias and its activation."""
_EACH_ALONE = frozenset(
    {
        *(
            "InputLayer",
            "Flatten",
            "Reshape",
            "Permute",
            "Rescaling",
            "Dropout",
            "SpatialDropout2D",
            "GaussianDropout",
        ),
        *("MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D", "GlobalAveragePooling2D"),
        *("ZeroPadding2D", "Cropping2D", "UpSampling2D"),
        *("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "GaussianNoise"),
    }
)
"""Classes of layers without weights that compute from each example alone."""


def check(model: Any) -> None:
    """Check that the gradients of a model can be clipped example by example.

    Raises
    ------
    ConfigError
        They can't; the message names the layer and says why.
    """
    import keras

    if not isinstance(model, keras.Sequential):
        raise ConfigError(
            f"privacy.dp: model {model.name} should be a keras.Sequential, whose gradients can be clipped"
        )
    for layer in model.layers:
        if wrong := _wrong(layer):
            raise ConfigError(f"privacy.dp: layer {layer.name} ({type(layer).__name__}) {wrong}")


def _wrong(layer: Any) -> str:
    """Return why the gradients of a layer can't be clipped example by example; empty if they can."""
    kind = type(layer).__name__
    if not _is_of_keras(type(layer)) or kind not in _EACH_ALONE | _RULES.keys():
        return f"may compute with other examples too; use {', '.join(_RULES)} and layers without weights"
    if not _is_of_keras(getattr(layer, "activation", None)):
        return "has an activation of its own, which may compute with other examples too; use one of Keras"
    if not layer.weights:
        return ""
    if layer.non_trainable_weights:
        # Dropout's state is no weight.
        return "has weights that do not train; remove them or train them"
    if kind == "Dense" and len(layer.input.shape) != 2:
        return "should get one vector of each example; put a Flatten layer before it"
    if getattr(layer, "data_format", "channels_last") != "channels_last" or getattr(layer, "groups", 1) != 1:
        return "should have channels last and one group"
    kinds = ("kernel", "bias", "activity", "depthwise", "pointwise")
    if any(getattr(layer, f"{name}_regularizer", None) is not None for name in kinds):
        return "has a regularizer, whose gradient belongs to no example; leave it out"
    return ""


def _is_of_keras(thing: Any) -> bool:
    """Return whether a class or a function comes with Keras; nothing does too."""
    return thing is None or str(getattr(thing, "__module__", "")).partition(".")[0] == "keras"


class DpSgd:
    """Trains one model by DP-SGD; the model is compiled, and its optimizer takes the gradients.

    Parameters
    ----------
    model
        A compiled model that :func:`check` accepts.
    settings
        The plan's; its noise multiplier is known.
    """

    def __init__(self, model: Any, settings: DpPlan) -> None:
        import tensorflow as tf

        check(model)
        if settings.noise_multiplier is None:
            raise ConfigError("privacy.dp.noise_multiplier: not known before the run is deployed")
        self._model = model
        self._clipping_norm = settings.clipping_norm
        self._deviation = settings.clipping_norm * settings.noise_multiplier
        self._shapes = [tuple(v.shape) for v in model.trainable_variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        inputs = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
        vector = tf.TensorSpec((None,), tf.float32)
        self._clipped = tf.function(
            self._clip, input_signature=[inputs, tf.TensorSpec((None,), tf.int64), vector], autograph=False
        )
        self._apply = tf.function(
            self._update, input_signature=[vector, vector, tf.TensorSpec((), tf.float32)], autograph=False
        )

    def train(
        self, inputs: Tensor, labels: Labels, key: bytes, sampling: Sampling, epochs: int, on_epoch: OnEpoch
    ) -> None:
        """Train from the weights that the model has.

        Parameters
        ----------
        inputs, labels
            The learner's examples.
        key
            32 secret bytes that decide sampling and noise; they must never serve for other data or weights.
        sampling
            The probability of an example to be in a step, and the number of steps in all epochs.
        epochs
            How many epochs these steps are.
        on_epoch
            Called after each epoch with accuracy and loss on the examples that were sampled. They are not private.
        """
        import tensorflow as tf

        per_epoch = sampling.steps // epochs
        seen = np.zeros(3)
        for step in range(sampling.steps):
            chosen = np.flatnonzero(randomness.uniform(key, 2 * step, len(inputs)) < sampling.rate)
            total, figures = self.clipped_sum(inputs[chosen], labels[chosen])
            noise = randomness.gaussian(key, 2 * step + 1, sum(self._sizes)) * np.float32(self._deviation)
            self._apply(total, noise, tf.constant(sampling.expected, tf.float32))
            seen += figures
            if (step + 1) % per_epoch == 0:
                accuracy, loss = seen[:2] / max(seen[2], 1)
                on_epoch((step + 1) // per_epoch, float(accuracy), float(loss))
                seen[:] = 0

    def clipped_sum(self, inputs: Tensor, labels: Labels) -> tuple[Any, npt.NDArray[np.float64]]:
        """Return the sum of the clipped gradients of examples, and how well the model does on them.

        Parameters
        ----------
        inputs, labels
            The examples; there may be none.

        Returns
        -------
        total
            The gradients of all trainable variables behind one another, shape ``(size,)``.
        figures
            How many examples are classified rightly, the sum of their losses, and how many there are.
        """
        total: Any = None
        figures = np.zeros(3)
        for start in range(0, max(len(inputs), 1), CHUNK):
            examples, answers = inputs[start : start + CHUNK], labels[start : start + CHUNK]
            filled = max(-(-len(examples) // PADDING), 1) * PADDING
            padding = filled - len(examples)
            examples = np.concatenate([examples, np.zeros((padding, *examples.shape[1:]), examples.dtype)])
            counts = (np.arange(filled) < len(answers)).astype(np.float32)
            answers = np.concatenate([answers, np.zeros(padding, answers.dtype)]).astype(np.int64)
            part, of_part = self._clipped(examples, answers, counts)
            total = part if total is None else total + part
            figures += of_part.numpy()
        return total, figures

    def _clip(self, inputs: Any, labels: Any, counts: Any) -> tuple[Any, Any]:
        import keras
        import tensorflow as tf

        records: list[_Record] = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            values = inputs
            for layer in self._model.layers:
                values = self._forward(layer, values, records, tape)
            losses = keras.losses.sparse_categorical_crossentropy(labels, values)
            total = tf.reduce_sum(losses)
        gradients = tape.gradient(total, [record.outputs for record in records])
        for record, gradient in zip(records, gradients, strict=True):
            record.take(gradient)
        norms = tf.sqrt(tf.add_n([record.squares() for record in records]))
        factors = counts * tf.minimum(1.0, self._clipping_norm / tf.maximum(norms, TINY))
        summed = [gradient for record in records for gradient in record.sums(factors)]
        correct = tf.cast(tf.equal(tf.argmax(values, 1), labels), tf.float32)
        figures = tf.stack([tf.reduce_sum(correct * counts), tf.reduce_sum(losses * counts), tf.reduce_sum(counts)])
        return tf.concat([tf.reshape(gradient, [-1]) for gradient in summed], 0), figures

    def _forward(self, layer: Any, values: Any, records: list[_Record], tape: Any) -> Any:
        """Return what a layer gives, and record how its weights took part in it."""
        if not layer.trainable_variables:
            return layer(values, training=True)
        mine = _RULES[type(layer).__name__](layer, values)
        for record in mine:
            tape.watch(record.outputs)
        outputs = mine[-1].outputs
        if layer.use_bias:
            outputs = outputs + layer.bias
            tape.watch(outputs)
            mine.append(_Bias(values, outputs))
        records += mine
        return layer.activation(outputs) if layer.activation is not None else outputs

    def _update(self, total: Any, noise: Any, expected: Any) -> None:
        import tensorflow as tf

        parts = tf.split((total + noise) / expected, self._sizes)
        gradients = [tf.reshape(part, shape) for part, shape in zip(parts, self._shapes, strict=True)]
        self._model.optimizer.apply(gradients, self._model.trainable_variables)
