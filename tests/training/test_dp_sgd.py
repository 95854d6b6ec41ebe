"""DP-SGD: gradients are clipped example by example, noise has its scale, and what can't be clipped is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from fl_node.data import datasets, partition
from fl_node.errors import ConfigError
from fl_node.models import dp_sgd
from fl_node.models.dp_sgd import DpSgd
from fl_node.models.keras_trainer import ARCHITECTURES, KerasTrainer
from fl_node.plan.schema import Plan
from fl_node.privacy.dp import DpPlan, sampling

CLIPPING_NORM = 1.3
KEY = bytes(range(32))


def private_plan(model: str = "mlp", noise: float = 1.0, **training: Any) -> Plan:
    return Plan.model_validate(
        {
            "name": "private",
            "learners": 3,
            "data": {"name": "digits"},
            "model": {"name": model},
            "training": {"epochs": 1, "batch_size": 64, "optimizer": "sgd", "learning_rate": 1.0} | training,
            "privacy": {"dp": {"noise_multiplier": noise, "clipping_norm": CLIPPING_NORM}},
        }
    )


@cache
def make_trainer(model: str = "mlp", noise: float = 1.0) -> KerasTrainer:
    return KerasTrainer(private_plan(model, noise), datasets.load("digits"))


def by_a_loop(model: Any, inputs: Any, labels: Any, norm: float) -> Any:
    """Return the sum of clipped gradients, one example after the other, by TensorFlow's own differentiation."""
    import keras
    import tensorflow as tf

    total: Any = 0
    for example, label in zip(inputs, labels, strict=True):
        with tf.GradientTape() as tape:
            loss = keras.losses.sparse_categorical_crossentropy(label[None], model(example[None], training=True))
        parts = tape.gradient(loss, model.trainable_variables)
        gradient = np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)
        total = total + gradient * min(1, norm / np.linalg.norm(gradient))
    return total


def without_dropout(model: Any) -> None:
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_clipped_sum_is_that_of_a_plain_loop(name: str) -> None:
    trainer = KerasTrainer(private_plan(name))
    without_dropout(trainer.model)
    private = DpSgd(trainer.model, DpPlan(noise_multiplier=1.0, clipping_norm=2.3))
    random = np.random.default_rng(1)
    inputs, labels = random.random((9, 28, 28, 1), np.float32), random.integers(0, 10, 9)
    # Some gradients are within the norm, others beyond it.
    inputs[:3] *= 0.01
    total, figures = private.clipped_sum(inputs, labels)
    assert np.allclose(total, by_a_loop(trainer.model, inputs, labels, 2.3), atol=1e-5)
    assert figures[2] == 9


def test_strides_padding_and_dilation_are_clipped_as_by_a_plain_loop() -> None:
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((11, 9, 2)),
            layers.Conv2D(3, (3, 2), strides=2, padding="same", activation="relu"),
            layers.Conv2D(4, 2, dilation_rate=2, padding="same", use_bias=False),
            layers.SeparableConv2D(3, 2, depth_multiplier=2, activation="tanh"),
            layers.AveragePooling2D(2, padding="same"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    random = np.random.default_rng(1)
    inputs, labels = random.normal(size=(5, 11, 9, 2)).astype(np.float32), random.integers(0, 3, 5)
    total, _ = DpSgd(model, DpPlan(noise_multiplier=1.0, clipping_norm=0.5)).clipped_sum(inputs, labels)
    assert np.allclose(total, by_a_loop(model, inputs, labels, 0.5), atol=1e-5)


def test_one_example_more_changes_the_sum_by_at_most_the_clipping_norm() -> None:
    private = DpSgd(make_trainer().model, DpPlan(noise_multiplier=1.0, clipping_norm=CLIPPING_NORM))
    images, labels = datasets.load("digits").training(np.arange(300))
    inputs = images[..., None].astype(np.float32) / 255
    # More than one chunk, with and without padding, and none at all.
    sums = {count: np.array(private.clipped_sum(inputs[:count], labels[:count])[0]) for count in (0, 1, 256, 257)}
    assert not sums[0].any()
    for fewer, more in ((0, 1), (256, 257)):
        norm = np.linalg.norm(sums[more].astype(np.float64) - sums[fewer])
        assert 0 < norm <= CLIPPING_NORM * (1 + 1e-4)


def test_the_noise_of_a_step_has_the_planned_scale() -> None:
    noise, samples = 20.0, partition.shard(private_plan(), 1)
    start = make_trainer().initial()
    # One step, as for a batch of all examples: learning rate 1, so the update is -(sum + noise) / examples.
    content = private_plan(noise=noise, batch_size=1000)
    trainer = KerasTrainer(content, datasets.load("digits"))
    trained = trainer.train(start, samples, 1, secret=KEY)
    private = DpSgd(trainer.model, DpPlan(noise_multiplier=noise, clipping_norm=CLIPPING_NORM))
    images, labels = datasets.load("digits").training(samples)
    trainer.loaded(start)
    total = np.array(private.clipped_sum(images[..., None].astype(np.float32) / 255, labels)[0])
    names = [v.path.removeprefix("mlp/") for v in trainer.model.trainable_variables]
    update = np.concatenate([np.ravel(start[name].astype(np.float64) - trained[name]) for name in names])
    residue = update * len(samples) - total
    assert residue.std() == pytest.approx(noise * CLIPPING_NORM, rel=0.02)
    assert abs(residue.mean()) < 0.02 * noise * CLIPPING_NORM * 3


def test_a_training_is_the_same_for_the_same_secret_and_no_other() -> None:
    trainer, samples = make_trainer(), partition.shard(private_plan(), 1)
    first = trainer.train(trainer.initial(), samples, 7, secret=KEY)
    again, reseeded = (trainer.train(trainer.initial(), samples, seed, secret=KEY) for seed in (7, 8))
    secret = trainer.train(trainer.initial(), samples, 7, secret=bytes(32))
    for name, tensor in first.items():
        assert tensor.tobytes() == again[name].tobytes()
        # The plan's seed, which everybody knows, decides nothing.
        assert tensor.tobytes() == reseeded[name].tobytes()
        assert tensor.tobytes() != secret[name].tobytes()


def test_dropout_goes_by_the_secret_as_well() -> None:
    trainer = make_trainer("cnn")
    samples = partition.shard(private_plan(), 1)[:20]
    trained = [trainer.train(trainer.initial(), samples, 7, secret=secret) for secret in (KEY, KEY, bytes(32))]
    states = [t["output/kernel"].tobytes() for t in trained]
    assert states[0] == states[1] != states[2]


def test_without_a_secret_nothing_is_trained() -> None:
    with pytest.raises(ConfigError, match="differential privacy needs the secret of a host"):
        make_trainer().train(make_trainer().initial(), np.arange(10), 7)


def test_the_figures_of_each_epoch_are_reported() -> None:
    plan = private_plan(epochs=2, learning_rate=0.5)
    trainer = KerasTrainer(plan, datasets.load("digits"))
    seen: list[tuple[int, float, float]] = []
    trainer.train(trainer.initial(), partition.shard(plan, 1), 7, lambda *figures: seen.append(figures), secret=KEY)
    assert [epoch for epoch, _, _ in seen] == [1, 2]
    assert all(0 < accuracy < 1 and loss > 0 for _, accuracy, loss in seen)
    assert sampling(479, 64, 2).steps == 16


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("BatchNormalization", "may compute with other examples too"),
        ("Lambda", "may compute with other examples too"),
        ("LSTM", "may compute with other examples too"),
        ("own", "has an activation of its own"),
        ("frozen", "has weights that do not train"),
        ("deep", "should get one vector of each example"),
        ("regularized", "has a regularizer"),
        ("grouped", "should have channels last and one group"),
    ],
)
def test_a_model_whose_gradients_cannot_be_clipped_is_refused(layer: str, reason: str) -> None:
    import keras
    from keras import layers

    flat = [layers.Flatten()]
    frozen = layers.Dense(3)
    frozen.trainable = False
    before = {
        "BatchNormalization": [layers.BatchNormalization(), *flat],
        "Lambda": [layers.Lambda(lambda x: x - keras.ops.mean(x, 0)), *flat],
        "LSTM": [layers.Reshape((8, 8)), layers.LSTM(3)],
        "own": [*flat, layers.Dense(3, activation=lambda x: x - keras.ops.mean(x, 0))],
        "frozen": [*flat, frozen],
        "deep": [layers.Dense(3), *flat],
        "regularized": [*flat, layers.Dense(3, kernel_regularizer="l2")],
        "grouped": [layers.Conv2D(2, 3, groups=1, data_format="channels_last"), *flat],
    }[layer]
    channels = 2 if layer == "grouped" else 1
    if layer == "grouped":
        before = [layers.Conv2D(2, 3, groups=2), *flat]
    model = keras.Sequential([keras.Input((8, 8, channels)), *before, layers.Dense(2, activation="softmax")])
    with pytest.raises(ConfigError) as caught:
        dp_sgd.check(model)
    assert str(caught.value).startswith("privacy.dp: layer ")
    assert reason in str(caught.value)


def test_a_model_that_is_no_chain_of_layers_is_refused() -> None:
    import keras

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(inputs), name="forked")
    with pytest.raises(ConfigError, match=r"model forked should be a keras\.Sequential"):
        dp_sgd.check(model)
