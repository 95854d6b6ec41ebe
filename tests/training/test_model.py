"""Training is deterministic, evaluation honest, and an export stands alone; tiny plans, on scikit-learn's digits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import GlobalMeta, Tensors
from fl_node.cli import app
from fl_node.data import datasets, partition
from fl_node.errors import DataError, PlanError
from fl_node.experiments import baseline
from fl_node.models.keras_trainer import ARCHITECTURES, KerasTrainer, score
from fl_node.plan.schema import Plan
from fl_node.report.collect import paper
from fl_node.seeds import derive, permutation
from tests.conftest import TINY
from tests.helpers.hostile_environment import HOSTILE, KERAS_JSON

PLAN = Plan.model_validate(
    {
        "name": "tiny",
        "data": {"name": "digits", "train": 400, "test": 200},
        "model": {"name": "mlp"},
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.005},
    }
)
SAMPLES = partition.shard(PLAN, 1)


@cache
def trainer_of(text: str) -> KerasTrainer:
    return KerasTrainer(Plan.model_validate_json(text), datasets.load("digits"))


def make_trainer(**settings: Any) -> KerasTrainer:
    content = PLAN.model_dump()
    content["model"] = {"name": settings.pop("model", "mlp")}
    return trainer_of(Plan.model_validate(content | settings).model_dump_json())


def digest(tensors: Tensors) -> str:
    return hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()


def same(first: Tensors, second: Tensors) -> bool:
    return digest(first) == digest(second)


def test_the_perceptron_has_as_many_parameters_as_it_says() -> None:
    assert sum(tensor.size for tensor in make_trainer().initial().values()) == 50_890
    assert make_trainer().shapes() == {
        "dense1/bias": (64,),
        "dense1/kernel": (784, 64),
        "output/bias": (10,),
        "output/kernel": (64, 10),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_has_as_many_parameters_as_it_says(name: str) -> None:
    count = sum(tensor.size for tensor in make_trainer(model=name).initial().values())
    assert f"{count:,} parameters" in " ".join((ARCHITECTURES[name].__doc__ or "").split())


@pytest.mark.parametrize("name", ["deep_cnn", "separable_cnn"])
def test_other_architectures_learn_and_train_to_the_same_bits_again(name: str) -> None:
    trainer = make_trainer(model=name)
    first = trainer.train(trainer.initial(), SAMPLES, 7, epochs=3)
    assert trainer.evaluate(first).accuracy > trainer.evaluate(trainer.initial()).accuracy
    assert same(make_trainer(model=name).train(trainer.initial(), SAMPLES, 7, epochs=3), first)


def test_initial_weights_follow_from_the_seed_alone() -> None:
    first = make_trainer().initial()
    assert all(tensor.dtype == np.float32 for tensor in first.values())
    assert same(first, KerasTrainer(PLAN).initial())
    assert not same(first, make_trainer(seed=2).initial())
    assert same(first, make_trainer(rounds=9).initial())


def test_training_again_gives_the_same_weights_to_the_last_bit_whatever_was_done_before() -> None:
    trainer, initial = make_trainer(), dict(make_trainer().initial())
    first = trainer.train(initial, SAMPLES, 7)
    trainer.train(first, SAMPLES[:50], 8)
    trainer.evaluate(first)
    assert same(trainer.train(initial, SAMPLES, 7), first)
    assert not same(trainer.train(initial, SAMPLES, 8), first)
    assert same(trainer.initial(), initial)


@pytest.mark.parametrize("count", [2 * 32, 2 * 32 + 3, 5])
def test_training_and_prediction_have_the_bits_of_keras_own_for_arrays(count: int) -> None:
    trainer, keras_own = make_trainer(), KerasTrainer(PLAN, datasets.load("digits"))
    trained = trainer.train(trainer.initial(), SAMPLES[:count], 7)
    digits = datasets.load("digits")
    inputs = digits.train_images[SAMPLES[:count], ..., np.newaxis].astype(np.float32) / np.float32(255)
    labels = digits.train_labels[SAMPLES[:count]]
    for epoch in range(2):
        order = permutation(count, derive(7, "order", epoch))
        keras_own.model.fit(inputs[order], labels[order], batch_size=32, shuffle=False, verbose=0)
    assert same({name: np.asarray(variable) for name, variable in keras_own._variables().items()}, trained)
    predicted = keras_own.model.predict(inputs, batch_size=1000, verbose=0)
    assert trainer.predict(trained, digits.train_images[SAMPLES[:count]]).tobytes() == predicted.tobytes()


def test_dropout_follows_from_the_seed() -> None:
    few, trainer = SAMPLES[:32], make_trainer(model="cnn")
    first = trainer.train(trainer.initial(), few, 7, epochs=1)
    assert not same(trainer.train(trainer.initial(), few, 8, epochs=1), first)
    assert same(trainer.train(trainer.initial(), few, 7, epochs=1), first)


def test_another_process_gives_the_same_weights_to_the_last_bit_whatever_a_user_has_set(tmp_path: Path) -> None:
    script = f"""
import hashlib, json, sys
from fl_node.runtime import arithmetic
arithmetic.pin_process()
from fl_node.data import datasets as data
from fl_node.data import partition
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan.schema import Plan
plan = Plan.model_validate(json.loads({PLAN.model_dump_json()!r}))
trainer = KerasTrainer(plan, data.load("digits"))
trained = trainer.train(trainer.initial(), partition.shard(plan, 1), 7)
import tensorflow as tf
print(hashlib.sha256(b"".join(trained[name].tobytes() for name in sorted(trained))).hexdigest())
print(trainer.evaluate(trained))
print(tf.config.threading.get_intra_op_parallelism_threads(), arithmetic.strayed(), sys.flags.hash_randomization)
print(sys.modules["keras.src.backend.config"].keras_home())
"""
    settings = tmp_path / ".keras/keras.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps(KERAS_JSON))
    environment = os.environ | HOSTILE | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stderr == ""
    trainer = make_trainer()
    trained = trainer.train(trainer.initial(), SAMPLES, 7)
    assert done.stdout.splitlines() == [
        digest(trained),
        str(trainer.evaluate(trained)),
        "1 [] 0",
        str(settings.parent),
    ]
    assert json.loads(settings.read_text()) == KERAS_JSON


def test_training_reports_each_epoch_and_learns() -> None:
    trainer, epochs = make_trainer(), []
    trained = trainer.train(trainer.initial(), SAMPLES, 7, lambda *epoch: epochs.append(epoch))
    assert [epoch for epoch, *_ in epochs] == [1, 2]
    assert 0 < epochs[0][1] < epochs[1][1] <= 1
    assert epochs[0][2] > epochs[1][2] > 0
    before, after = trainer.evaluate(trainer.initial()), trainer.evaluate(trained)
    assert before.count == after.count == PLAN.data.test
    assert after.accuracy > 0.6 > before.accuracy
    assert after.loss < before.loss


def test_what_was_trained_is_a_copy(tmp_path: Path) -> None:
    trainer = make_trainer()
    trained = trainer.train(trainer.initial(), SAMPLES[:64], 7, epochs=1)
    before = digest(trained)
    trainer.train(trained, SAMPLES[:64], 8, epochs=1)
    assert digest(trained) == before
    file = model_file.write(tmp_path / "file", GlobalMeta("plan", 0, None, "initial"), trained)
    assert file.shapes == trainer.shapes()


def test_a_score_counts_what_is_right_and_is_never_infinite() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0], [0.5, 0.5]], np.float32)
    result = score(probabilities, np.array([0, 1, 1, 0]))
    assert (result.accuracy, result.count) == (0.75, 4)
    assert result.loss == pytest.approx((-np.log(0.9) - np.log(0.8) - np.log(1e-12) - np.log(0.5)) / 4, rel=1e-6)
    perfect = score(np.array([[1.0, 0.0]], np.float32), np.array([0]))
    assert (perfect.accuracy, perfect.loss) == (1.0, 0.0)


def test_huge_weights_of_somebody_else_give_a_finite_score_and_can_be_exported(tmp_path: Path) -> None:
    trainer = make_trainer()
    for value in (3e38, -3e38):
        tensors = {name: np.full(shape, value, np.float32) for name, shape in trainer.shapes().items()}
        result = trainer.evaluate(tensors)
        assert all(np.isfinite([result.accuracy, result.loss, result.calibration_error]))
        assert result.loss < model_file.MAX_LOSS
        assert np.isfinite(trainer.predict(tensors, datasets.load("digits").test_images[:5])).all()
        trainer.save(tensors, tmp_path / "model.keras")


def test_a_score_does_not_depend_on_the_batches() -> None:
    trainer = make_trainer()
    tests = datasets.load("digits")
    probabilities = trainer.predict(trainer.initial(), tests.test_images[:200])
    assert probabilities.shape == (200, 10)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-5)
    assert score(probabilities, tests.test_labels[:200]) == trainer.evaluate(trainer.initial())


def test_without_data_a_model_can_be_made_but_not_trained() -> None:
    bare = KerasTrainer(PLAN)
    with pytest.raises(DataError, match="the plan needs digits"):
        bare.train(bare.initial(), SAMPLES, 1)
    with pytest.raises(DataError):
        bare.evaluate(bare.initial())


def test_an_export_is_a_model_that_keras_alone_can_load(tmp_path: Path) -> None:
    import keras

    trainer = make_trainer()
    trained = trainer.train(trainer.initial(), SAMPLES[:64], 7, epochs=1)
    trainer.save(trained, tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = datasets.load("digits").test_images[:20]
    predicted = loaded.predict(images[..., None].astype(np.float32) / 255, verbose=0)
    assert np.array_equal(predicted, trainer.predict(trained, images))


def test_an_export_keeps_links_takes_long_names_and_replaces_only_files(tmp_path: Path) -> None:
    trainer = make_trainer()
    (tmp_path / "far").mkdir()
    (tmp_path / "link.keras").symlink_to(tmp_path / "far" / "model.keras")
    long = tmp_path / f"{'a' * 245}.keras"
    os.mkfifo(tmp_path / "pipe.keras")
    for path in (tmp_path / "link.keras", long):
        trainer.save(trainer.initial(), path)
    with pytest.raises(FileExistsError, match=r"pipe\.keras"):
        trainer.save(trainer.initial(), tmp_path / "pipe.keras")
    assert (tmp_path / "link.keras").is_symlink()
    assert (tmp_path / "far" / "model.keras").stat().st_size == long.stat().st_size > 1000
    assert (tmp_path / "pipe.keras").is_fifo()
    assert len(list(tmp_path.iterdir())) == 4


# The baseline


def test_a_baseline_trains_on_all_images_of_the_plan_and_measures_each_epoch() -> None:
    trainer, reported = make_trainer(), []
    result = baseline.run(PLAN, trainer, 2, lambda *epoch: reported.append(epoch))
    assert reported == list(enumerate(result.accuracy, 1))
    assert result.accuracy[-1] > 0.6
    assert result.seconds > 0
    assert baseline.run(PLAN, trainer, 2, lambda *_: None).accuracy == result.accuracy


def test_the_command_prints_a_baselines_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.setattr("sys.argv", ["fl-node", "baseline", str(tmp_path / "tiny.toml"), "--epochs", "1", "--json"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code
    assert len(json.loads(capsys.readouterr().out)["accuracy"]) == 1


def text(table: object) -> str:
    file = io.StringIO()
    Console(width=100, file=file).print(table)
    return file.getvalue()


def test_a_baselines_table_has_a_row_an_epoch() -> None:
    shown = text(baseline.table(PLAN, baseline.Baseline([0.5, 0.98765], 1.0)))
    assert "98.77" in shown
    assert "paper" not in shown


def test_the_papers_single_node_stands_beside_the_papers_baseline() -> None:
    figures: Mapping[str, Any] = paper()
    plan = Plan.model_validate({"name": "paper", "data": {"name": "mnist"}})
    result = baseline.Baseline([0.9] * 25, 1.0)
    shown = text(baseline.table(plan, result))
    assert "paper" in shown
    assert f"{figures['single_node_accuracy'][24] * 100:.2f}" in shown
    assert "paper" not in text(baseline.table(plan, baseline.Baseline([0.9] * 24, 1.0)))


def test_a_plan_is_json_for_another_process() -> None:
    assert Plan.model_validate(json.loads(PLAN.model_dump_json())) == PLAN


def test_the_proximal_term_pulls_towards_the_weights_that_training_began_with() -> None:
    def moved(**settings: Any) -> float:
        trainer = make_trainer(**{"training": PLAN.training.model_dump() | settings})
        trained, initial = trainer.train(trainer.initial(), SAMPLES, 7), trainer.initial()
        return float(sum(((trained[name] - initial[name]) ** 2).sum() for name in initial) ** 0.5)

    plain, weak, strong = (
        moved(optimizer="sgd", learning_rate=0.05, **p) for p in ({}, {"proximal_mu": 0.1}, {"proximal_mu": 5.0})
    )
    assert plain > weak > strong > 0


def test_one_step_with_the_proximal_term_is_as_its_paper_says() -> None:
    # Two images in batches of one: the gradient of the second step gets mu times what the first step did.
    settings = {"optimizer": "sgd", "learning_rate": 0.5, "epochs": 1, "batch_size": 1}
    trainer = make_trainer(training=PLAN.training.model_dump() | settings | {"proximal_mu": 0.25})
    plain = make_trainer(training=PLAN.training.model_dump() | settings)
    start, two = dict(plain.initial()), SAMPLES[:2]
    order = permutation(2, derive(7, "order", 0))
    first = plain.train(start, two[order][:1], 1)
    second = plain.train(first, two[order][1:], 1)
    trained = trainer.train(start, two, 7)
    for name in start:
        expected = second[name] - 0.5 * 0.25 * (first[name] - start[name])
        assert np.allclose(trained[name], expected, atol=1e-6)


def test_poison_changes_what_is_trained_on_and_not_the_data_set() -> None:
    trainer = make_trainer()
    labels = trainer.labels().copy()
    honest = trainer.train(trainer.initial(), SAMPLES, 7, epochs=1)
    poisoned = trainer.train(
        trainer.initial(), SAMPLES, 7, epochs=1, poison=lambda images, labels: (images, 9 - labels)
    )
    assert not same(honest, poisoned)
    assert (trainer.labels() == labels).all()
    assert same(trainer.train(trainer.initial(), SAMPLES, 7, epochs=1), honest)


def own_images(size: tuple[int, int], classes: int, model: str) -> Plan:
    hashes = dict.fromkeys(datasets.FOLDER_FILES, "0" * 64)
    counts = {"all_train": 20, "all_test": 10, "size": list(size), "classes": classes}
    content = {"name": "folder", **counts, **hashes}
    return Plan.model_validate({"name": "own", "data": content, "model": {"name": model}})


def test_a_model_for_images_of_ones_own_has_their_size_and_their_classes() -> None:
    trainer = KerasTrainer(own_images((9, 12), 33, "mlp"))
    assert trainer.shapes()["dense1/kernel"] == (9 * 12, 64)
    assert trainer.shapes()["output/kernel"] == (64, 33)
    assert trainer.predict(trainer.initial(), np.zeros((3, 9, 12), np.uint8)).shape == (3, 33)


def test_images_that_are_too_small_for_an_architecture_are_named_with_it() -> None:
    with pytest.raises(PlanError, match="cnn does not support images of 8 × 9 pixels"):
        KerasTrainer(own_images((8, 9), 4, "cnn"))
