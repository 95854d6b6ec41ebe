"""Global weights asked about images, in a process of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta
from fl_node.data import datasets
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.monitor.inference import WAITING, Busy, NoAnswer, Predictor
from fl_node.monitor.reading import Newest
from fl_node.plan.schema import Plan
from tests.helpers.waiting import eventually

PLAN = Plan.model_validate(
    {
        "name": "small",
        "rounds": 1,
        "learners": 1,
        "data": {"name": "digits", "train": 300, "test": 50},
        "model": {"name": "mlp"},
        "training": {"epochs": 3, "batch_size": 20},
    }
)


@pytest.fixture(scope="module")
def trainer() -> KerasTrainer:
    return KerasTrainer(PLAN, datasets.load("digits"))


@pytest.fixture(scope="module")
def newest(trainer: KerasTrainer, tmp_path_factory: pytest.TempPathFactory) -> Newest:
    """The weights after some training."""
    trained = trainer.train(trainer.initial(), np.arange(300), 1)
    path = tmp_path_factory.mktemp("weights") / "global.safetensors"
    meta = GlobalMeta(cid.of_bytes(b"plan"), 1, cid.of_bytes(b"parent"), "fedavg")
    return Newest(path, model_file.write(path, meta, trained).cid, 1, PLAN)


@pytest.fixture(scope="module")
def predictor() -> Iterator[Predictor]:
    with Predictor() as process:
        yield process


def test_an_answer_is_what_the_model_itself_says(predictor: Predictor, newest: Newest, trainer: KerasTrainer) -> None:
    image = datasets.load("digits").test_images[7]
    expected = trainer.predict(model_file.read(newest.path).tensors(), image[None])[0]
    assert predictor.predict(newest, image.tobytes()) == pytest.approx(
        [float(probability) for probability in expected], abs=1e-5
    )


def test_weights_are_measured_on_the_plans_test_images(
    predictor: Predictor, newest: Newest, trainer: KerasTrainer
) -> None:
    expected = trainer.evaluate(model_file.read(newest.path).tensors())
    assert expected.count == 50
    assert predictor.measure(newest) == pytest.approx(expected.accuracy)


def test_a_test_image_comes_with_its_label(predictor: Predictor, newest: Newest) -> None:
    image = predictor.image(newest, lambda count: count - 1)
    images = datasets.load("digits")
    assert (image.number, image.count, image.label) == (49, 50, images.test_labels[49])
    assert image.pixels == images.test_images[49].tobytes()


def test_weights_that_do_not_fit_the_plan_get_a_reason(predictor: Predictor, newest: Newest) -> None:
    changed = replace(newest, plan=Plan.model_validate(PLAN.model_dump() | {"model": {"name": "cnn"}}))
    with pytest.raises(NoAnswer, match="do not fit"):
        predictor.predict(changed, bytes(784))


def test_weights_that_are_gone_get_a_reason_and_the_next_question_an_answer(
    predictor: Predictor, newest: Newest, tmp_path: Path
) -> None:
    with pytest.raises(NoAnswer, match="No such file"):
        predictor.predict(replace(newest, path=tmp_path / "gone"), bytes(784))
    assert len(predictor.predict(newest, bytes(784))) == 10


def test_a_process_that_was_killed_is_followed_by_another(predictor: Predictor, newest: Newest) -> None:
    assert len(predictor.predict(newest, bytes(784))) == 10
    process = predictor._process
    assert process is not None
    process.kill()
    process.wait()
    assert len(predictor.predict(newest, bytes(784))) == 10


def test_those_who_would_wait_too_long_are_told_so(predictor: Predictor, newest: Newest) -> None:
    asked = [
        threading.Thread(target=predictor.predict, args=(newest, bytes(784)), daemon=True) for _ in range(WAITING + 1)
    ]
    with predictor._turn:  # somebody is being answered
        for thread in asked:
            thread.start()
        # Until all of them wait. A test that took a place to see whether one is free could turn one of them away.
        eventually(lambda: predictor._waiting._value == 0, 60)
        with pytest.raises(Busy):
            predictor.predict(newest, bytes(784))
    for thread in asked:
        thread.join(60)
