"""The privacy budget by plan and chain, the noise, and the plans that can have no differential privacy."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from fl_node.audit.budget import UNPROVEN, check_budget
from fl_node.audit.result import Audit
from fl_node.chain.contract import GLOBAL_WEIGHT_SET, LOCAL_WEIGHT_SET, ROUND_CLOSED, WITHDRAWN, LogEntry
from fl_node.data.loading import with_noise
from fl_node.errors import ConfigError, PlanError
from fl_node.lab.show import budget_lines
from fl_node.plan import loading
from fl_node.plan.schema import Plan
from fl_node.privacy import accounting, randomness
from fl_node.privacy.dp import Sampling, sampling
from fl_node.protocol import budget, history
from fl_node.protocol.budget import Budget
from fl_node.roles import policy

KEY = bytes(range(32))


def plan(dp: dict[str, Any] | None = None, **settings: Any) -> Plan:
    content = {
        "name": "private",
        "rounds": 4,
        "learners": 3,
        "data": {"name": "digits"},
        "training": {"epochs": 2, "batch_size": 64},
        "privacy": {"dp": {"noise_multiplier": 1.0} if dp is None else dp},
    }
    return loading.validate(content | settings, "plan")


def renyi(noise: float, rate: float, order: int) -> float:
    """Return the Rényi divergence of a step at a whole order: Mironov et al. 2019, section 3.3."""
    from scipy.special import logsumexp  # SciPy takes longer to import than most modules of tests to run

    terms = [
        math.log(math.comb(order, k))
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + (k * k - k) / (2 * noise * noise)
        for k in range(order + 1)
    ]
    return float(logsumexp(terms)) / (order - 1)


def test_the_example_of_abadi_et_al_costs_what_they_say() -> None:
    # Section 3: with q = 0.01, sigma = 4, delta = 1e-5 and 10,000 steps, the moments accountant gives ε ≈ 1.26.
    delta, orders = 1e-5, range(2, 65)
    curve = {order: 10_000 * renyi(4.0, 0.01, order) for order in orders}
    moments = min(value + math.log(1 / delta) / (order - 1) for order, value in curve.items())
    assert moments == pytest.approx(1.26, abs=0.005)
    # Ours converts the same curve as Canonne, Kamath & Steinke (2020) do, which gives less.
    converted = min(
        value + math.log1p(-1 / order) - math.log(delta * order) / (order - 1) for order, value in curve.items()
    )
    found = accounting.epsilon(4.0, 0.01, 10_000, delta)
    assert found == pytest.approx(converted, rel=0.01)
    assert found <= converted


def test_without_sampling_epsilon_is_a_little_above_that_of_the_gaussian_mechanism() -> None:
    # Balle & Wang (2018): the exact δ of ε.
    exact = accounting.epsilon(2.0, 1.0, 1, 1e-5)
    a, b = 1 / 4 - exact * 2, -1 / 4 - exact * 2
    delta = NormalDist().cdf(a) - math.exp(exact) * NormalDist().cdf(b)
    assert 1e-6 < delta <= 1e-5


@pytest.mark.parametrize("noise", [1.0, 2.0, 10.0])
def test_the_largest_auc_bounds_the_best_attack_on_one_gaussian(noise: float) -> None:
    best = NormalDist().cdf(1 / (noise * math.sqrt(2)))
    assert best <= accounting.largest_auc(noise, 1.0, 1) < best + 0.1


def test_more_steps_and_less_noise_cost_more() -> None:
    base = accounting.epsilon(1.0, 0.1, 10, 1e-5)
    assert accounting.epsilon(1.0, 0.1, 0, 1e-5) == 0
    assert accounting.epsilon(1.0, 0.1, 11, 1e-5) > base
    assert accounting.epsilon(0.9, 0.1, 10, 1e-5) > base
    assert accounting.epsilon(1.0, 0.2, 10, 1e-5) > base
    assert accounting.epsilon(1.0, 0.1, 10, 1e-6) > base


@pytest.mark.parametrize("target", [0.5, 8.0])
def test_the_noise_of_a_target_is_the_least_that_keeps_to_it(target: float) -> None:
    noise = accounting.noise_multiplier(target, 0.1, 40, 1e-5)
    assert accounting.epsilon(noise, 0.1, 40, 1e-5) <= target
    assert accounting.epsilon(round(noise - 1e-4, 4), 0.1, 40, 1e-5) > target


def test_epsilon_is_rounded_up() -> None:
    assert accounting.rounded(1.2341) == 1.235
    assert accounting.rounded(1.234) == 1.234
    assert accounting.rounded(0.0) == 0.0


def test_a_learner_takes_as_many_steps_as_it_has_batches_of_the_planned_size_on_average() -> None:
    assert sampling(480, 64, 2) == Sampling(64 / 480, 16, 64)
    assert sampling(10, 64, 3) == Sampling(1.0, 3, 10)


def test_the_noise_is_normal_and_the_same_for_the_same_key() -> None:
    from scipy import stats

    drawn = randomness.gaussian(KEY, 5, 200_001)
    assert drawn.dtype == np.float32
    assert drawn.shape == (200_001,)
    # The key is fixed, so this passes always or never.
    assert stats.kstest(drawn.astype(np.float64), "norm").pvalue > 0.01
    assert abs(float(drawn.mean())) < 0.01
    assert float(drawn.std()) == pytest.approx(1, abs=0.005)
    assert np.array_equal(drawn, randomness.gaussian(KEY, 5, 200_001))
    others = [randomness.gaussian(KEY, 6, 1000), randomness.gaussian(bytes(32), 5, 1000)]
    assert all(abs(np.corrcoef(drawn[:1000], other)[0, 1]) < 0.1 for other in others)


def test_the_stream_is_chacha20() -> None:
    # RFC 8439, section 2.3.2, but for the counter, which is 0 here: appendix A.1, test vector 1.
    first = randomness.words(bytes(32), 0, 8).tobytes()
    assert first.hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")


def test_each_example_is_sampled_with_the_planned_probability() -> None:
    drawn = np.array([randomness.uniform(KEY, step, 500) < 0.1 for step in range(400)])
    assert drawn.mean() == pytest.approx(0.1, abs=0.003)
    # Independent: the sizes of the steps are spread as those of a binomial distribution are.
    assert drawn.sum(axis=1).std() == pytest.approx(math.sqrt(500 * 0.1 * 0.9), rel=0.1)


def test_a_target_is_completed_by_the_noise_that_the_smallest_shard_needs() -> None:
    target = plan({"epsilon": 3.0})
    assert target.unknown == ["privacy.dp.noise_multiplier"]
    completed = with_noise(target)
    assert completed.dp is not None
    assert completed.dp.noise_multiplier is not None
    assert completed.unknown == []
    assert max(budget.planned(completed).values()) <= 3.0
    assert with_noise(completed) is completed
    assert loading.from_bytes(completed.to_bytes()) == completed
    with pytest.raises(PlanError, match=r"lacks settings that deployment fills in: privacy\.dp\.noise_multiplier"):
        loading.from_bytes(target.to_bytes())


@pytest.mark.parametrize(
    ("dp", "settings", "problem"),
    [
        ({}, {}, "privacy.dp: should set noise_multiplier, or epsilon to derive it"),
        (
            {"epsilon": 3.0, "epsilon_max": 1.0},
            {},
            "privacy.dp.epsilon_max: should be at least epsilon = 3 (is 1)",
        ),
        (
            {"epsilon": 3.0, "delta": 0.01},
            {},
            "privacy.dp.delta: should be below 1 / 479; a learner has 479 examples (is 0.01)",
        ),
        ({"epsilon": 3.0, "unit": "batch"}, {}, "privacy.dp.unit: should be 'example' or 'learner' (is 'batch')"),
        (
            {"epsilon": 3.0},
            {"mode": "ensemble", "model": {"architectures": ["mlp", "cnn"]}},
            'privacy.dp: does not support mode = "ensemble", whose learners also train on a public set',
        ),
    ],
)
def test_a_plan_that_can_have_no_differential_privacy_is_refused_with_the_reason(
    dp: dict[str, Any], settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PlanError) as caught:
        plan(dp, **settings)
    assert f"\n  {problem}" in str(caught.value)


def test_a_plan_without_privacy_has_no_such_section() -> None:
    public = Plan.model_validate({"name": "public"})
    assert b"privacy" not in public.to_bytes()
    assert budget.spent(public, {1: 3}) is None
    assert not Budget(public, {1: 3}).is_over()


def entry(block: int, name: str, round_: int, cid: str = "", node_id: int | None = None) -> LogEntry:
    return LogEntry(
        block=block, index=0, name=name, transaction=f"0x{block}", round=round_, node_id=node_id, cid=cid or None
    )


LOG = [
    entry(1, GLOBAL_WEIGHT_SET, 0, "g0"),
    entry(2, LOCAL_WEIGHT_SET, 0, "a", 1),
    entry(3, LOCAL_WEIGHT_SET, 0, "a2", 1),  # replaced
    entry(4, LOCAL_WEIGHT_SET, 0, "a2", 1),  # said again
    entry(5, LOCAL_WEIGHT_SET, 0, "b", 2),
    entry(6, ROUND_CLOSED, 0),
    entry(7, GLOBAL_WEIGHT_SET, 1, "wrong"),
    entry(8, LOCAL_WEIGHT_SET, 1, "c", 1),
    entry(9, WITHDRAWN, 1),
    entry(10, GLOBAL_WEIGHT_SET, 1, "g1"),
    entry(11, LOCAL_WEIGHT_SET, 1, "d", 2),
]


def test_what_was_replaced_or_withdrawn_is_spent_too_and_a_hash_only_once() -> None:
    assert budget.publications(LOG) == {1: 3, 2: 2}
    assert budget.publications_at(LOG, 1, "g1") == {1: 3, 2: 1}
    assert budget.publications_at(LOG, 1, "wrong") == {1: 2, 2: 1}
    past = history.arrange("", "", LOG)
    assert Budget.of(plan(), past).published == {1: 3, 2: 2}
    assert Budget.of(plan(), past).current == frozenset({2})


def test_the_epsilon_of_a_run_is_that_of_the_learner_that_spent_most() -> None:
    one = plan()
    spent = budget.spent(one, {1: 3, 2: 2, 9: 8})
    assert spent is not None
    assert spent.publications == ((1, 3), (2, 2))
    assert spent.epsilon == accounting.rounded(accounting.epsilon(1.0, 64 / 479, 3 * 16, 1e-5))
    assert budget.spent(one, {1: 3}, spent.epsilon + 0.001) == budget.Spent(((1, 3),), spent.epsilon + 0.001)
    assert budget.spent(one, {1: 3}, spent.epsilon + 0.01) == budget.Spent(((1, 3),), spent.epsilon)


def test_a_run_is_over_when_too_few_learners_can_publish() -> None:
    limited = plan({"noise_multiplier": 1.0, "epsilon_max": 6.5})
    most = budget.most_publications(limited, 1)
    assert most == 2
    assert budget.epsilon(limited, 1, most) <= 6.5 < budget.epsilon(limited, 1, most + 1)
    assert not Budget(limited, {1: 2, 2: 1, 3: 1}, frozenset({1})).is_over()
    assert Budget(limited, {1: 2, 2: 1, 3: 1}).is_over()
    # Without a timeout, a round closes only when all have published.
    assert Budget(limited.model_copy(update={"min_learners": 2}), {1: 2, 2: 1, 3: 1}).is_over()
    few = limited.model_copy(update={"min_learners": 2, "round_timeout": 60.0})
    assert not Budget(few, {1: 2, 2: 1, 3: 1}).is_over()
    assert Budget(few, {1: 2, 2: 2, 3: 1}).is_over()
    assert Budget(few, {1: 3, 2: 2}).overspent() == [1]
    assert budget.most_publications(plan(), 1) is None


def test_an_asynchronous_run_is_over_when_all_is_spent_and_nothing_left_that_may_count() -> None:
    limited = plan({"noise_multiplier": 1.0, "epsilon_max": 6.5}, mode="async", aggregation={"rule": "fedasync"})
    assert budget.most_publications(limited, 1) == 2
    log = [entry(1, GLOBAL_WEIGHT_SET, 0, "g0")]
    log += [entry(2 + n, LOCAL_WEIGHT_SET, 0, f"file {n}", 1 + n % 3) for n in range(6)]
    past = history.arrange("", "", log)
    assert Budget.of(limited, past, {1: 2, 2: 2, 3: 2}).is_over()
    assert not Budget.of(limited, past, {1: 2, 2: 2, 3: 1}).is_over()
    # Nobody knows yet what the newest global weights accept.
    assert not Budget.of(limited, past).is_over()
    assert not Budget.of(limited, history.arrange("", "", log[:-1]), {1: 2, 2: 2, 3: 1}).is_over()
    filling = {"rule": "fedbuff", "buffer": 2}
    buffer = Plan.model_validate(limited.model_dump() | {"aggregation": filling})
    assert Budget.of(buffer, history.arrange("", "", log[:-1]), {1: 2, 2: 2, 3: 1}).is_over()
    assert not Budget.of(buffer, history.arrange("", "", log[:-2]), {1: 2, 2: 1, 3: 1}).is_over()
    # One learner can fill it in time, or alone.
    for change in ({"round_timeout": 60.0}, {"aggregation": {**filling, "distinct": False}}):
        one = Plan.model_validate(buffer.model_dump() | change)
        assert not Budget.of(one, history.arrange("", "", log[:-1]), {1: 2, 2: 2, 3: 1}).is_over()


def test_the_audit_names_who_overspent_and_says_what_nobody_can_prove() -> None:
    limited = plan({"noise_multiplier": 1.0, "epsilon_max": 6.5})
    result = Audit()
    past = history.arrange("", "", LOG)
    check_budget(limited, past, result, Budget.of(limited, past))
    spent = accounting.rounded(budget.epsilon(limited, 1, 3))
    (finding,) = result.findings
    assert (finding.node, finding.field) == ("learner 1", "epsilon")
    assert finding.message == f"is {spent:g} after 3 publications; the plan allows 6.5, or 2 of them"
    # Learner 2 has published in the round that is open; learner 1 may not, and all are required.
    assert result.notes == [
        "the privacy budget ended the run after 1 of 4 rounds",
        f"privacy: ε for δ = 1e-05, from the number of publications: learner 1: {spent:g}, "
        f"learner 2: {accounting.rounded(budget.epsilon(limited, 2, 2)):g}, learner 3: 0",
        f"privacy: {UNPROVEN}",
    ]
    nothing = Audit()
    public = Plan.model_validate({"name": "public"})
    check_budget(public, past, nothing, Budget.of(public, past))
    assert nothing == Audit()


@pytest.mark.parametrize("least", [accounting.LEAST_NOISE, 9_000.0, accounting.LARGEST_NOISE])
def test_all_the_noise_that_a_plan_may_set_can_be_derived_from_a_target(least: float) -> None:
    target = accounting.epsilon(least, 1.0, 1, 1e-5)
    assert accounting.noise_multiplier(target, 1.0, 1, 1e-5) == pytest.approx(least, abs=1e-4)
    assert accounting.noise_multiplier(2 * target, 1.0, 1, 1e-5) >= accounting.LEAST_NOISE


def test_a_target_that_needs_hardly_any_noise_gives_the_least_that_a_plan_may_set() -> None:
    one_round = plan({"epsilon": 1e6}, rounds=1, training={"epochs": 1, "batch_size": 512})
    assert one_round.dp is not None
    noisy = with_noise(one_round).dp
    assert noisy is not None
    assert noisy.noise_multiplier == accounting.LEAST_NOISE


def test_the_owner_of_a_learner_limits_epsilon() -> None:
    spent = max(budget.planned(plan()).values())
    policy.check_plan(plan(), {"max_epsilon": spent})
    with pytest.raises(ConfigError, match=r"ε of differential privacy; this learner accepts at most 1 "):
        policy.check_plan(plan(), {"max_epsilon": 1.0})
    with pytest.raises(ConfigError, match="has inf ε of differential privacy"):
        policy.check_plan(Plan.model_validate({"name": "public"}), {"max_epsilon": 8.0})
    # With rounds that are withdrawn it can spend more than planned, up to its own limit.
    lavish = plan({"noise_multiplier": 1.0, "epsilon_max": 50.0})
    policy.check_plan(lavish, {"max_epsilon": 50.0})
    with pytest.raises(ConfigError, match="has 50 ε of differential privacy; this learner accepts at most 49"):
        policy.check_plan(lavish, {"max_epsilon": 49.0})


def test_a_plan_check_counts_one_publication_of_one_step() -> None:
    line, *_ = budget_lines(plan(rounds=1, training={"epochs": 1, "batch_size": 512}))
    assert "after 1 publication of 1 step, " in line


def test_a_plan_check_says_what_a_run_spends_and_where_it_stops() -> None:
    lines = budget_lines(plan({"noise_multiplier": 1.0, "epsilon_max": 6.5}))
    assert len(lines) == 6
    assert lines[0].endswith("after 4 publications of 16 steps, sampling rate 0.1336, noise multiplier 1")
    assert lines[1] == "learner 1: stops at ε = 6.5, after 2 of 4 publications"
    assert budget_lines(Plan.model_validate({"name": "public"})) == []
