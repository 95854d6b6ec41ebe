"""Different models: what each counts for, what they say together, and how they learn from each other."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fl_node.aggregation.ensemble import GRAIN, WEIGHTS, evidence, evidence_name, member_weights, unexplained
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import LocalMeta, Tensors, WeightsFile
from fl_node.data import datasets, partition
from fl_node.data.held_out import held_out
from fl_node.models.ensemble import EnsembleTrainer, trainer_for
from fl_node.models.keras_trainer import KerasTrainer, calibration_error, soften
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_file, global_shapes, initial_file, local_shapes

PLAN_CID = cid.of_bytes(b"plan")
CONTENT: dict[str, Any] = {
    "name": "tiny",
    "mode": "ensemble",
    "learners": 3,
    "data": {"name": "digits", "train": 600, "test": 200, "validation": 100, "public_set": 200},
    "model": {"architectures": ["mlp", "separable_cnn"], "weighting": "convex"},
    "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.005},
    "distillation": {"temperature": 2.0},
}
PLAN = Plan.model_validate(CONTENT)
ONE = np.array([0.2, 0.9, 0.5, 0.5], np.float32)
OTHER = np.array([0.4, 0.3, 0.5, 0.9], np.float32)


@cache
def trainer() -> EnsembleTrainer:
    members = trainer_for(PLAN, datasets.load("digits"))
    assert isinstance(members, EnsembleTrainer)
    return members


def of(tensors: Tensors, member: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{member}/")}


def together(counts: list[float]) -> Tensors:
    return {**trainer().initial(), WEIGHTS: np.array(counts, np.float32)}


# What each counts for


def test_all_count_alike_unless_they_are_measured() -> None:
    assert member_weights("uniform", [ONE, OTHER, ONE, ONE]).tolist() == [0.25] * 4


def test_by_accuracy_each_counts_for_what_it_gets_right() -> None:
    assert member_weights("accuracy", [np.float32([1, 1, 1, 0]), np.float32([1, 0, 0, 0])]).tolist() == [0.75, 0.25]


def test_models_that_get_nothing_right_count_alike() -> None:
    assert member_weights("accuracy", [np.zeros(3, np.float32)] * 2).tolist() == [0.5, 0.5]


def test_by_convex_fit_the_labels_are_as_likely_as_weights_can_make_them() -> None:
    weights = member_weights("convex", [ONE, OTHER])

    def likelihood(share: float) -> float:
        return float(np.log(share * ONE + (1 - share) * OTHER).sum())

    best = max(np.linspace(0, 1, 1001), key=likelihood)
    assert weights.tolist() == pytest.approx([best, 1 - best], abs=2e-3)


def test_a_model_that_knows_less_of_every_image_counts_for_nothing() -> None:
    assert member_weights("convex", [np.full(50, 0.9, np.float32), np.full(50, 0.3, np.float32)])[1] < 1e-6


@settings(max_examples=50)
@given(
    st.integers(1, 5).flatmap(
        lambda members: arrays.arrays(
            np.float32, (members, 7), elements=st.floats(float(GRAIN), 1, width=32, allow_subnormal=False)
        )
    )
)
def test_weights_are_shares_whatever_models_say(likelihoods: np.ndarray) -> None:
    weights = member_weights("convex", list(likelihoods))
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-5)


def test_evidence_that_no_model_can_give_does_not_stop_an_audit() -> None:
    assert np.isfinite(member_weights("convex", [np.float32([0, -1]), np.float32([0, 1e30])])).all()


SAID = np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]], np.float32)
LABELS = np.array([0, 0, 1])


def test_evidence_is_what_is_right_or_how_likely_it_was_held() -> None:
    assert evidence("accuracy", SAID, LABELS).tolist() == [1, 0, 0]
    assert evidence("convex", SAID, LABELS).tolist() == pytest.approx([0.7, 0.4, 0.5], abs=GRAIN)
    assert evidence("convex", np.float32([[0.0, 1.0]]), np.array([0])).tolist() == [GRAIN]


@pytest.mark.parametrize("weighting", ["accuracy", "convex"])
def test_evidence_of_another_machine_passes_and_a_lie_does_not(weighting: str) -> None:
    elsewhere = SAID + np.array([[1e-6, -1e-6], [-1e-6, 1e-6], [-1e-6, 1e-6]], np.float32)
    assert unexplained(weighting, evidence(weighting, elsewhere, LABELS), SAID, LABELS) == 0
    lie = evidence(weighting, SAID, LABELS)
    lie[1] = 1.0
    assert unexplained(weighting, lie, SAID, LABELS) == 1


# The global file


def local(folder: Path, node_id: int, value: float, samples: int) -> WeightsFile:
    meta = LocalMeta(PLAN_CID, node_id, 0, PLAN_CID, samples, 0.5, 1.0)
    shapes = local_shapes(PLAN, trainer().shapes(), node_id)
    return model_file.write(
        folder / f"local-{node_id}", meta, {name: np.full(s, value, np.float32) for name, s in shapes.items()}
    )


def made_of(folder: Path, *inputs: WeightsFile) -> tuple[WeightsFile, WeightsFile]:
    initial = initial_file(folder / "initial", PLAN, PLAN_CID, trainer().initial())
    evidence = {"mlp": np.full(100, 0.25, np.float32), "separable_cnn": np.full(100, 0.75, np.float32)}
    file = global_file(
        folder / "global",
        PLAN.model_copy(update={"min_learners": 1}),
        PLAN_CID,
        round_=1,
        parent=initial.cid,
        inputs=inputs,
        parent_file=initial,
        evidence=lambda member, _weights: evidence[member],
        absent=[n for n in (1, 2, 3) if n not in {file.local_meta.node_id for file in inputs}],
    )
    return initial, file


def test_each_architecture_is_the_average_of_its_own_learners(tmp_path: Path) -> None:
    _, file = made_of(tmp_path, local(tmp_path, 1, 1, 10), local(tmp_path, 2, 5, 10), local(tmp_path, 3, 3, 30))
    assert set(file.tensor("mlp/dense1/bias")) == {2.5}
    assert set(file.tensor("separable_cnn/output/bias")) == {5}
    assert [member.share for member in file.global_meta.inputs] == [0.25, 1.0, 0.75]
    assert file.tensor(WEIGHTS).tolist() == pytest.approx([0, 1], abs=1e-6)
    assert set(file.tensor(evidence_name("mlp"))) == {0.25}
    assert model_file.read(file.path, global_shapes(PLAN, trainer().shapes())).global_meta == file.global_meta


def test_an_architecture_whose_learners_are_away_keeps_its_weights(tmp_path: Path) -> None:
    initial, file = made_of(tmp_path, local(tmp_path, 1, 1, 10))
    assert (
        file.tensor("separable_cnn/output/kernel").tobytes()
        == initial.tensor("separable_cnn/output/kernel").tobytes()
    )
    assert set(file.tensor("mlp/dense1/bias")) == {1}


def test_a_plain_plan_has_nothing_beside_its_model_in_a_file() -> None:
    plain = Plan.model_validate({"name": "plain"})
    assert global_shapes(plain, {"a": (1,)}) == local_shapes(plain, {"a": (1,)}, 1) == {"a": (1,)}


# The models


def test_together_they_say_what_each_says_by_what_it_counts_for() -> None:
    images = trainer().tests()[0][:20]
    each = [trainer().predict(of(trainer().initial(), name), images) for name in PLAN.architectures]
    predicted = trainer().predict(together([0.25, 0.75]), images)
    np.testing.assert_allclose(predicted, 0.25 * each[0] + 0.75 * each[1], rtol=1e-6)


def test_the_first_weights_are_those_that_each_architecture_has_alone() -> None:
    alone = KerasTrainer(PLAN, architecture="mlp").initial()
    assert trainer().initial()["mlp/dense1/kernel"].tobytes() == alone["dense1/kernel"].tobytes()


def test_an_ensemble_is_exported_as_one_model_that_keras_alone_can_load(tmp_path: Path) -> None:
    path, images = tmp_path / "one.keras", trainer().tests()[0][:8]
    trainer().save(together([0.25, 0.75]), path)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import keras, numpy, sys\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "images = numpy.load(sys.argv[2])[..., None].astype('float32') / 255\n"
        "numpy.save(sys.argv[3], model.predict(images, verbose=0))\n"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "images.npy"), str(tmp_path / "said.npy")]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    np.testing.assert_allclose(
        np.load(tmp_path / "said.npy"), trainer().predict(together([0.25, 0.75]), images), rtol=1e-5, atol=1e-7
    )


def test_a_learner_comes_closer_to_what_a_teacher_says_and_to_the_same_bits_again() -> None:
    samples = partition.shard(PLAN, 1)[:64]
    start = of(trainer().initial(), "mlp")
    knows = trainer().train(start, partition.shard(PLAN, 3), 1, epochs=20)
    teacher = {**together([1.0, 0.0]), **knows}
    images = datasets.load("digits").train_images[partition.public_set(PLAN)]
    expected = trainer().predict(teacher, images)

    def distance(tensors: Tensors) -> float:
        return float(np.abs(trainer().predict(tensors, images) - expected).mean())

    alone = trainer().train(start, samples, 7, epochs=3)
    taught = trainer().train(start, samples, 7, epochs=3, teacher=teacher)
    again = trainer().train(start, samples, 7, epochs=3, teacher=teacher)
    assert distance(taught) < 0.7 * distance(alone)
    assert all(taught[name].tobytes() == again[name].tobytes() for name in taught)


def test_the_images_that_all_share_are_nobodys_own_and_not_the_headers() -> None:
    kinds = [partition.public_set(PLAN), partition.held_out(PLAN), *(partition.shard(PLAN, n) for n in (1, 2, 3))]
    assert [len(kind) for kind in kinds] == [200, 100, 200, 200, 200]
    assert len(np.unique(np.concatenate(kinds))) == 900
    assert len(held_out(PLAN, datasets.load("digits"))[0]) == 100


# Confidence


def test_confidence_that_is_as_often_right_as_it_says_is_calibrated() -> None:
    probabilities = np.tile(np.float32([[0.75, 0.25]]), (4, 1))
    assert calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(0.5)


def test_confidence_is_compared_within_its_bin() -> None:
    probabilities = np.float32([[0.9, 0.1], [0.6, 0.4]])
    assert calibration_error(probabilities, np.array([1, 0])) == pytest.approx((0.9 + 0.4) / 2)


def test_a_temperature_softens_and_keeps_the_order() -> None:
    assert soften(SAID, 1.0) == pytest.approx(SAID)
    soft = soften(np.float32([[0.9, 0.1, 0.0]]), 2.0)
    assert soft[0] == pytest.approx([0.75, 0.25, 0], abs=1e-6)
