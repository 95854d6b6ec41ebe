"""Images from an update by optimization: those whose training would give the same update.

Gradient matching (Zhu et al. 2019, https://arxiv.org/abs/1906.08935) with the cosine distance and the total variation
of Geiping et al. 2020, https://arxiv.org/abs/2003.14053. The attacker computes what the learner computed: the dropout
masks follow from the plan's seed, which is public. An update of several steps is taken for one step on all images,
and one of Adam for its direction; both make the match worse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fl_node.runtime.tensors import Labels, Tensors, Wide
from fl_node.seeds import derive

SMOOTHNESS = 1e-3
"""Weight of the total variation."""
STEP = 0.05
"""Learning rate of the optimization, on pixels from 0 to 1."""

OnStep = Callable[[int, int], None]


def guess_labels(bias: Wide, average: Wide, count: int) -> Labels:
    """Return the labels of the images, in ascending order, from the update of the output layer's bias.

    The gradient of the bias is the predicted minus the true share of each class. The scale of the update is unknown
    where there are several steps, so it is the one for which the shares are most nearly whole images.

    Parameters
    ----------
    bias
        The update of the output's bias, shape ``(classes,)``.
    average
        The mean prediction of the global weights for images that the attacker has, shape ``(classes,)``.
    count
        The number of images.
    """
    if np.abs(bias).max() == 0:
        return np.arange(count, dtype=np.int64) % len(bias)
    scales = np.geomspace(0.05, 20, 400) / np.abs(bias).max()
    best = np.zeros(len(bias), np.int64)
    least = np.inf
    for scale in scales:
        shares = count * (average + scale * bias)
        counts = np.maximum(np.rint(shares), 0).astype(np.int64)
        error = float(np.abs(shares - counts).sum())
        if counts.sum() == count and error < least:
            best, least = counts, error
    if least == np.inf:
        best[np.argsort(-bias, kind="stable")[:count]] = 1
    return np.resize(np.repeat(np.arange(len(bias)), best), count).astype(np.int64)


def match(
    model: Any,
    weights: Tensors,
    change: dict[str, Wide],
    labels: Labels,
    start: Wide,
    seed: int,
    steps: int,
    on_step: OnStep = lambda _done, _all: None,
) -> Wide:
    """Return images whose gradient has the direction of an update.

    Parameters
    ----------
    model
        The Keras model; its weights are not used.
    weights
        The global weights that the update starts from, by name.
    change
        The update, by name.
    labels
        The labels of the images, shape ``(count,)``.
    start
        Where the search starts: pixels from 0 to 1, shape ``(count, height, width)``.
    seed
        The seed of the learner's training.
    steps
        The number of steps of the optimization.
    on_step
        Called now and then with the number of steps done and of all.
    """
    import tensorflow as tf

    names = [variable.path.removeprefix(f"{model.name}/") for variable in model.trainable_variables]
    trainable = [tf.constant(weights[name]) for name in names]
    goal = [tf.constant(-change[name], tf.float32) for name in names]
    states = _dropout_states(model, seed)
    answers = tf.constant(labels)
    images = tf.Variable(start[..., None], dtype=tf.float32)
    optimizer = _optimizer(steps)
    length = tf.sqrt(tf.add_n([tf.reduce_sum(one**2) for one in goal]) + 1e-30)

    @tf.function(jit_compile=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step() -> Any:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(trainable)
                predicted, _ = model.stateless_call(trainable, states, images, training=True)
                chosen = tf.gather(predicted, answers, batch_dims=1)
                loss = -tf.reduce_mean(tf.math.log(tf.maximum(chosen, 1e-7)))
            gradient = inner.gradient(loss, trainable)
            product = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(gradient, goal, strict=True)])
            norm = tf.sqrt(tf.add_n([tf.reduce_sum(one**2) for one in gradient]) + 1e-30)
            distance = 1 - product / (norm * length)
            whole = distance + SMOOTHNESS * tf.reduce_mean(tf.image.total_variation(images)) / 100
        (slope,) = outer.gradient(whole, [images])
        optimizer.apply([tf.sign(slope)], [images])
        images.assign(tf.clip_by_value(images, 0.0, 1.0))
        return distance

    optimizer.build([images])
    for done in range(steps):
        step()
        if done % 50 == 0:
            on_step(done, steps)
    found: Wide = images.numpy()[..., 0].astype(np.float64)
    return found


def _optimizer(steps: int) -> Any:
    import keras

    falling = keras.optimizers.schedules.PiecewiseConstantDecay(
        [steps * 3 // 8, steps * 5 // 8, steps * 7 // 8], [STEP, STEP / 4, STEP / 16, STEP / 64]
    )
    return keras.optimizers.Adam(falling)


def _dropout_states(model: Any, seed: int) -> list[Any]:
    """Return what the model keeps besides its weights, as it is at the first step of the learner's training."""
    import tensorflow as tf

    keys = {
        id(layer.seed_generator.state): derive(seed, "dropout", layer.name) % 2**32
        for layer in model.layers
        if getattr(layer, "seed_generator", None) is not None
    }
    return [
        tf.constant([keys[id(one)], 0], tf.uint32) if id(one) in keys else tf.convert_to_tensor(one)
        for one in model.non_trainable_variables
    ]
