"""Differential privacy of whole learners: exact noise, bounded updates, and what is spent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.aggregation.fixed_point import FixedPoint
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import GlobalMeta, WeightsFile
from fl_node.data import loading
from fl_node.data.sampling import sampling_of
from fl_node.errors import ConfigError, PlanError
from fl_node.lab.show import budget_lines
from fl_node.plan.loading import validate
from fl_node.privacy import secret
from fl_node.privacy.dealing import RoundKey
from fl_node.privacy.discrete_gaussian import LARGEST, discrete_gaussian
from fl_node.privacy.dp import OF_LEARNERS
from fl_node.privacy.learner_noise import LearnerNoise
from fl_node.privacy.streams import Stream
from fl_node.protocol import budget, masked

POINT = FixedPoint(1.0, 20, 32)
SHAPES = {"a": (40, 30), "b": (7,), "c": ()}


def content(learners: int = 4, **dp: Any) -> dict[str, Any]:
    return {
        "name": "hidden",
        "rounds": 4,
        "learners": learners,
        "min_learners": 3,
        "data": {"name": "digits", "train": 10 * learners},
        "model": {"name": "mlp"},
        "aggregation": {"rule": "fedavg", "arithmetic": "fixed", "weighting": "uniform"},
        "privacy": {
            "secure_aggregation": True,
            "threshold": 3,
            "dp": {"unit": "learner", "noise_multiplier": 2.0, "tolerated": 1, **dp},
        },
    }


def stream(number: int) -> Stream:
    return Stream(bytes([number]) * 32)


@pytest.mark.parametrize("deviation", [1, 2, 7])
def test_samples_have_the_distribution_of_the_discrete_gaussian(deviation: int) -> None:
    from scipy import stats  # takes longer to import than most modules of tests to run

    samples = discrete_gaussian(stream(deviation), deviation, 100_000)
    edge = 3 * deviation
    weights = {x: math.exp(-(x**2) / (2 * deviation**2)) for x in range(-40 * deviation, 40 * deviation + 1)}
    total = sum(weights.values())
    expected = [len(samples) * weights[x] / total for x in range(-edge, edge + 1)]
    observed = [int(np.sum(samples == x)) for x in range(-edge, edge + 1)]
    beyond = len(samples) - sum(observed), len(samples) - sum(expected)
    # The key is fixed, so the result is always the same.
    assert stats.chisquare([*observed, beyond[0]], [*expected, beyond[1]]).pvalue > 0.01


@pytest.mark.parametrize("deviation", [1, 1000, LARGEST])
def test_samples_have_the_moments_of_the_discrete_gaussian(deviation: int) -> None:
    samples = discrete_gaussian(stream(9), deviation, 40_000) / deviation
    assert abs(samples.mean()) < 0.02
    assert samples.var() == pytest.approx(1, abs=0.03)
    assert np.mean(samples**3) == pytest.approx(0, abs=0.08)
    assert np.mean(samples**4) == pytest.approx(3, abs=0.2)


def test_the_same_stream_gives_the_same_samples_everywhere() -> None:
    samples = discrete_gaussian(stream(1), 1000, 500)
    assert np.array_equal(samples, discrete_gaussian(stream(1), 1000, 500))
    assert not np.array_equal(samples, discrete_gaussian(stream(2), 1000, 500))
    assert samples[:4].tolist() == [1030, 883, 769, 1750]
    assert discrete_gaussian(stream(1), 1000, 0).shape == (0,)


@pytest.mark.parametrize("deviation", [0, -1, LARGEST + 1])
def test_a_deviation_out_of_range_is_refused(deviation: int) -> None:
    with pytest.raises(ValueError, match="deviation from 1 to"):
        discrete_gaussian(stream(1), deviation, 1)


@pytest.mark.parametrize("point", [POINT, FixedPoint(100.0, 6, 32), FixedPoint(0.01, 30, 64)])
@pytest.mark.parametrize("size", [1e-6, 0.02, 1.0, 1e30, math.inf, math.nan])
def test_no_update_is_longer_than_the_bound(point: FixedPoint, size: float) -> None:
    noise = LearnerNoise.sized(point, 1.0, 2.0, 3)
    generator = np.random.default_rng(3)
    values = {name: size * generator.normal(size=shape) for name, shape in SHAPES.items()}
    integers = noise.update(SHAPES, lambda name: np.asarray(values[name]))
    assert sum(int(value) ** 2 for tensor in integers.values() for value in tensor.ravel()) <= noise.bound**2
    assert {name: tensor.shape for name, tensor in integers.items()} == SHAPES


def test_an_update_whose_values_all_round_up_stays_within_the_bound() -> None:
    noise = LearnerNoise(FixedPoint(1.0, 6, 32), bound=64, deviation=16)
    # 0.5 of a unit and a little more, each.
    values = np.full(4000, 0.51 / 64)
    integers = noise.update(["a"], lambda _name: values)["a"]
    assert int(np.sum(integers**2)) <= 64**2


def test_a_short_update_is_only_rounded() -> None:
    noise = LearnerNoise.sized(POINT, 1.0, 2.0, 3)
    values = np.array([0.25, -0.125, 3 * 2.0**-21])
    assert noise.update(["a"], lambda _name: values)["a"].tolist() == [2**18, -(2**17), 2]


def test_a_model_with_too_many_values_for_the_fraction_is_refused() -> None:
    noise = LearnerNoise.sized(FixedPoint(1.0, 5, 32), 1.0, 2.0, 3)
    with pytest.raises(ConfigError, match="should be at least 6 for a model of 2000 values"):
        noise.check_values(2000)
    LearnerNoise.sized(FixedPoint(1.0, 6, 32), 1.0, 2.0, 3).check_values(2000)


@pytest.mark.parametrize(("learners", "tolerated"), [(3, 0), (10, 3), (30, 14)])
def test_the_noise_of_those_who_remain_is_what_the_accountant_assumes(learners: int, tolerated: int) -> None:
    noise = LearnerNoise.sized(POINT, 1.0, 2.0, learners - tolerated)
    needed = (2.0 * noise.bound) ** 2
    assert (learners - tolerated) * noise.deviation**2 > needed
    # It is no more than that, but for rounding up.
    assert (learners - tolerated) * (noise.deviation - 1) ** 2 <= needed
    total = sum(noise.noise(bytes([node]) * 32, "a", (20_000,)) for node in range(1, learners + 1 - tolerated))
    assert np.var(total) == pytest.approx(needed, rel=0.04)


def test_epsilon_is_that_of_one_gaussian_in_each_round() -> None:
    plan = validate(content(), "a plan")
    assert sampling_of(plan, 1) == OF_LEARNERS
    # Of the Gaussian mechanism: rho = 4 / (2 * 2^2); the bound by Bun & Steinke is rho + 2 sqrt(rho ln(1 / delta)).
    spent = budget.epsilon(plan, 1, 4)
    assert 3.5 < spent < 0.5 + 2 * math.sqrt(0.5 * math.log(1e5))
    assert budget.epsilon(plan, 1, 1) < spent
    assert len(set(budget.planned(plan).values())) == 1
    limited = validate(content(epsilon_max=budget.epsilon(plan, 1, 3)), "a plan")
    assert budget.most_publications(limited, 1) == 3


def test_the_noise_follows_from_a_target() -> None:
    wanted = content(epsilon=3.0)
    del wanted["privacy"]["dp"]["noise_multiplier"]
    plan = loading.with_noise(validate(wanted, "a plan"))
    assert plan.dp is not None
    assert plan.dp.noise_multiplier is not None
    assert budget.epsilon(plan, 1, plan.rounds) <= 3.0
    assert any("ε = " in line for line in budget_lines(plan))


def test_a_plan_from_before_has_no_new_key() -> None:
    old = content(2)
    del old["aggregation"], old["min_learners"]
    old["privacy"] = {"dp": {"noise_multiplier": 1.0}}
    assert "tolerated" not in validate(old, "a plan").to_bytes().decode()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"privacy": {"dp": {"unit": "learner", "noise_multiplier": 2.0}}},
            "privacy.secure_aggregation: should be true",
        ),
        (
            {"min_learners": 3, "learners": 5, "data": {"name": "digits", "train": 50}},
            "min_learners: should be at least 4",
        ),
        (
            {
                "data": {"name": "digits", "partition": "quantity"},
                "aggregation": {"rule": "fedavg", "arithmetic": "fixed"},
            },
            "weighting: should be uniform",
        ),
        (
            {"aggregation": {"rule": "fedavg", "arithmetic": "fixed", "weighting": "uniform", "fraction_bits": 2}},
            "fraction_bits: should be higher",
        ),
        (
            {"aggregation": {"rule": "fedavg", "arithmetic": "fixed", "weighting": "uniform", "fraction_bits": 28}},
            "fraction_bits: should be lower",
        ),
    ],
)
def test_what_does_not_protect_a_learner_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        validate(content() | change, "a plan")


@pytest.mark.parametrize(
    ("dp", "text"),
    [
        ({"tolerated": 4}, "tolerated: should be below the 4 learners"),
        ({"delta": 0.3}, "delta: should be below 1 / 4, the learners"),
        ({"noise_multiplier": 150.0}, "can leave a ring of 2\\^32|should be lower"),
        ({"unit": "example"}, 'tolerated: needs unit = "learner"'),
    ],
)
def test_settings_that_do_not_fit_are_refused(dp: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        validate(content(**dp), "a plan")


def test_the_ring_has_room_for_the_noise() -> None:
    noise = LearnerNoise(POINT, bound=2**20, deviation=2**24)
    assert noise.fits(100)
    assert not noise.fits(120)


class Round:
    """Four learners of which one is lost, and their masked files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = validate(content(), "a plan")
        self.plan_cid = cid.of_bytes(self.plan.to_bytes())
        self.keys = {node: RoundKey(bytes([node]) * 32) for node in range(1, 5)}
        self.weights = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.parent = self.parent_of(1)
        generator = np.random.default_rng(1)
        self.trained = {
            node: {name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
            for node in self.keys
        }

    def parent_of(self, round_: int) -> WeightsFile:
        public = tuple((node, key.public.hex()) for node, key in self.keys.items())
        meta = GlobalMeta(self.plan_cid, round_, self.plan_cid, "fedavg", keys=public)
        return model_file.write(self.folder / f"parent-{round_}", meta, self.weights)

    def file(self, node: int, noise: bytes | None, name: str = "masked") -> WeightsFile:
        return masked.masked_file(
            self.folder / f"{name}-{node}",
            self.plan,
            self.plan_cid,
            node_id=node,
            parent=self.parent,
            trained=self.trained[node],
            accuracy=0.5,
            loss=1.0,
            key=self.keys[node],
            next_key=self.keys[node].public,
            noise=noise,
        )


def test_a_sum_without_a_lost_learner_is_that_of_clipped_updates_and_noise(tmp_path: Path) -> None:
    round_ = Round(tmp_path)
    plan, point = round_.plan, masked.fixed_point(round_.plan)
    noise = plan.learner_noise
    assert noise is not None
    files = {node: round_.file(node, bytes([50 + node]) * 32) for node in (1, 2, 4)}
    openings = {
        node: masked.open_shares(plan, round_.plan_cid, node, round_.keys[node], round_.parent, files)[0]
        for node in files
    }
    revealed = masked.reveal(plan, round_.parent, files, openings)
    assert not revealed.lacking
    result = masked.unmasked_file(
        tmp_path / "global",
        plan,
        round_.plan_cid,
        parent=round_.parent,
        files=files,
        seeds=revealed.seeds,
        announced={},
    )
    # Accuracy and loss say something of a learner too.
    assert result.global_meta.scores is None
    parts = {
        node: noise.update(SHAPES, lambda name, node=node: np.asarray(round_.trained[node][name], np.float64))  # type: ignore[misc]
        for node in files
    }
    for name, shape in SHAPES.items():
        total = sum(parts[node][name] + noise.noise(bytes([50 + node]) * 32, name, shape) for node in files)
        expected = point.updated(round_.weights[name], np.asarray(total).astype(point.dtype), [1, 1, 1])
        assert np.array_equal(result.on_demand()[name], expected)


def test_no_sum_is_opened_that_lacks_noise(tmp_path: Path) -> None:
    plan = validate(content(5) | {"min_learners": 4}, "a plan")
    assert plan.threshold == 3
    assert masked.needed_members(plan) == 4


def test_a_learner_that_starts_again_in_a_round_writes_the_same_bits(tmp_path: Path) -> None:
    round_, path = Round(tmp_path), tmp_path / "host.secret"

    def noise(parent: WeightsFile) -> bytes:
        # A process that starts reads its secret again.
        return secret.load_or_create(path).derive("0xab", 1, "learner-noise", parent.cid)

    first = round_.file(1, noise(round_.parent))
    again = round_.file(1, noise(round_.parent), "again")
    assert first.cid == again.cid
    assert noise(round_.parent) != noise(round_.parent_of(2))


def test_no_update_leaves_without_noise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the secret of a host"):
        Round(tmp_path).file(1, None)
