"""The study of membership inference: a real small run for each seed, and a control that saw nobody's images."""

from __future__ import annotations

import pytest

from fl_node.errors import ConfigError
from fl_node.experiments import membership_study
from fl_node.experiments.membership_study import attacked
from fl_node.leakage.membership import figure
from fl_node.plan import loading as plans
from tests.helpers.checkout import ROOT


def test_as_many_others_as_members_must_be_left_out() -> None:
    plan = plans.load(ROOT / "plans" / "membership.toml", ["data.train=900"])
    with pytest.raises(ConfigError, match="should be at most 718"):
        attacked(plan, None, 0)


def test_runs_with_one_learner_have_no_control() -> None:
    plan = plans.load(ROOT / "plans" / "membership.toml", ["learners=1"])
    with pytest.raises(ConfigError, match="two learners or more"):
        attacked(plan, None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "1", "2", "1"), "--seeds 1 2 1: should name each seed once"),
        (("--shadows", "1"), "--shadows 1: should be 0 or an even number from 4"),
    ],
)
def test_a_mistake_is_one_line(
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(membership_study, "attacked", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["study", str(ROOT / "plans" / "membership.toml"), *options])
    with pytest.raises(SystemExit) as ended:
        membership_study.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"fl-node: {message}\n"


@pytest.mark.parametrize(("unit", "is_bounded"), [("example", True), ("learner", False)])
def test_the_bound_is_for_single_examples_alone(
    unit: str, is_bounded: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["aggregation.arithmetic=fixed", "privacy.secure_aggregation=true", f"privacy.dp.unit={unit}"]
    options = [part for one in (*settings, "privacy.dp.noise_multiplier=1.0") for part in ("--set", one)]
    monkeypatch.setattr(membership_study, "attacked", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["study", str(ROOT / "plans" / "membership.toml"), *options])
    membership_study.main()
    # An image changes an update, whose two values are farther apart than an update and none.
    assert ("the AUC of any attack on local weights is at most" in capsys.readouterr().out) == is_bounded


@pytest.mark.nightly
def test_a_plain_run_reveals_members_and_the_control_does_not() -> None:
    plan = plans.load(
        ROOT / "plans" / "membership.toml", ["rounds=1", "data.train=90", "training.learning_rate=0.01"]
    )
    scored = attacked(plan, None, 0)
    found = {target: figure(target, attack, scores, member) for target, attack, scores, member in scored}
    assert list(found) == ["local weights", "another learner's (control)", "global weights 1"]
    assert found["local weights"].low > 0.5
    assert found["another learner's (control)"].low < 0.5 < found["another learner's (control)"].high


@pytest.mark.nightly
@pytest.mark.parametrize(
    "settings",
    [
        ("privacy.dp.epsilon=3",),
        ("aggregation.arithmetic=fixed", "privacy.secure_aggregation=true"),
    ],
)
def test_noisy_and_masked_runs_can_be_studied(settings: tuple[str, ...]) -> None:
    plan = plans.load(ROOT / "plans" / "membership.toml", ["rounds=1", "data.train=90", *settings])
    assert attacked(plan, None, 0)[0][0] == "local weights"
