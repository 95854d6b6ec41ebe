"""A run with differential privacy, on the chain inside Python: its budget ends it, its files say what was spent."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np

from fl_node import events
from fl_node.artifacts import cid, model_file
from fl_node.data import datasets, loading
from fl_node.lab.simulate import simulate
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan.schema import Plan
from fl_node.privacy import accounting
from fl_node.protocol import budget, history
from tests.helpers import warm
from tests.helpers.runs import World
from tests.helpers.runs import plan as small_plan

SMALL = {
    "name": "private",
    "model": {"name": "mlp"},
    "training": {"optimizer": "sgd", "learning_rate": 0.5, "epochs": 1, "batch_size": 50},
}


def test_a_run_ends_with_its_budget_and_passes_its_audit(tmp_path: Path) -> None:
    plan = Plan.model_validate(
        SMALL
        | {
            "rounds": 4,
            "learners": 2,
            "data": {"name": "digits", "train": 400, "test": 100},
            "privacy": {"dp": {"noise_multiplier": 1.0, "epsilon_max": 5.0}},
        }
    )
    trainer = KerasTrainer(plan, datasets.load("digits"))
    assert loading.complete(plan, datasets.load("digits")) == plan
    most = budget.most_publications(plan, 1)
    assert most is not None
    assert 0 < most < plan.rounds
    # It audits the run too.
    names = simulate(plan, tmp_path, trainer)
    assert len(names) == most + 1
    metas = [model_file.read(tmp_path / "files" / name).global_meta for name in names]
    assert metas[0].spent is None
    for number, meta in enumerate(metas[1:], 1):
        assert meta.spent == ((1, number), (2, number))
        assert meta.epsilon == accounting.rounded(budget.epsilon(plan, 1, number))
    secrets = sorted((tmp_path / "keys").glob("*.secret"))
    assert [path.stat().st_mode & 0o777 for path in secrets] == [0o600, 0o600]
    assert secrets[0].read_text() != secrets[1].read_text()


def test_learners_add_noise_to_masked_sums_and_the_run_passes_its_audit(tmp_path: Path) -> None:
    plan = Plan.model_validate(
        SMALL
        | {
            "rounds": 3,
            "learners": 3,
            "data": {"name": "digits", "train": 150, "test": 50},
            "aggregation": {"rule": "fedavg", "arithmetic": "fixed", "weighting": "uniform"},
            "privacy": {
                "secure_aggregation": True,
                "dp": {"unit": "learner", "noise_multiplier": 2.0, "epsilon_max": 3.0},
            },
        }
    )
    most = budget.most_publications(plan, 1)
    assert most is not None
    assert 0 < most < plan.rounds
    names = simulate(plan, tmp_path, KerasTrainer(plan, datasets.load("digits")))
    assert len(names) == most + 1
    last = model_file.read(tmp_path / "files" / names[-1])
    assert last.global_meta.epsilon == accounting.rounded(budget.epsilon(plan, 1, most))
    # Accuracy and loss of the learners would say something of them.
    assert last.global_meta.scores is None
    start = model_file.read(tmp_path / "files" / names[0]).on_demand()
    noise = max(last.on_demand().items(), key=lambda item: item[1].size)
    assert plan.dp is not None
    deviation = 2.0 * plan.dp.clipping_norm / plan.learners * most**0.5
    assert abs(np.std(noise[1] - start[noise[0]]) / deviation - 1) < 0.05


def masked(**dp: Any) -> Plan:
    """Return a plan with noise of whole learners, and a stub's small model."""
    content = small_plan(learners=3).model_dump() | {
        "data": {"name": "digits", "train": 40, "test": 10},
        "aggregation": {"rule": "fedavg", "arithmetic": "fixed", "weighting": "uniform"},
        "privacy": {"secure_aggregation": True, "dp": {"unit": "learner", "noise_multiplier": 2.0, **dp}},
    }
    return Plan.model_validate(content)


def test_a_learner_that_is_killed_within_a_round_makes_the_same_noise_and_masks_again(world: World) -> None:
    run = world.deploy(masked())
    folder = run.folder / "learner-3" / "role"

    def learner(*kill: str) -> int:
        key = world.keys["learner-3"]
        where = (world.rpc, key, run.address, folder, run.files)
        return warm.run("tests.helpers.killed_learner", *where, *kill).returncode

    def killed(event: type[events.Event]) -> None:
        assert learner(event.name, "1") == -signal.SIGKILL

    with run.header() as header, run.learner(1) as first, run.learner(2) as second:
        killed(events.TrainingStarted)
        assert not (folder / "local-1.safetensors").exists()
        killed(events.LocalWeightsWritten)
        name = cid.of_file(folder / "local-1.safetensors")
        # As if it had been killed a moment before: all is computed again.
        (folder / "local-1.safetensors").unlink()
        killed(events.LocalWeightsWritten)
        assert cid.of_file(folder / "local-1.safetensors") == name
        killed(events.LocalWeightsPublished)
        killed(events.MasksOpened)
        assert learner() == 0
        for role in (first, second, header):
            role.finish()
    past = history.read(run.contract)
    assert [entry.cid for entry in past.publications if entry.node_id == 3][1:] == [name]
    assert sum(entry.node_id == 3 for entry in past.rounds[1].openings) == 1
    assert run.audit().passed


def test_the_audit_names_a_learner_that_spent_more_than_its_noise_allows(world: World) -> None:
    free = masked()
    run = world.deploy(masked(epsilon_max=budget.epsilon(free, 1, 1)))
    with run.header() as header, run.learner(1), run.learner(2), run.learner(3):
        header.wait_for(events.BudgetSpent, round=1)
        header.finish()
    assert run.audit().passed
    # Learner 2 publishes once more, although nothing may be published any more.
    run.publish_local(2, cid.of_bytes(b"more"))
    audited = run.audit()
    assert [(finding.node, finding.field) for finding in audited.findings] == [("learner 2", "epsilon")]


def test_a_run_whose_budget_allows_no_publication_has_a_report_and_the_initial_weights_as_its_model(
    tmp_path: Path,
) -> None:
    privacy = {"dp": {"unit": "example", "noise_multiplier": 1.0, "clipping_norm": 1.0, "epsilon_max": 1.0}}
    data = {"name": "digits", "train": 60, "test": 20}
    content = SMALL | {"rounds": 2, "learners": 1, "data": data, "privacy": privacy}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    done = warm.fl_node("lab", tmp_path / "plan.json", "--runs", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    told, report = json.loads(done.stdout), json.loads((tmp_path / "private" / "report.json").read_text())
    assert (report["ended"], report["rounds"], report["budget_spent"]) == (True, [], [1])
    assert told["final"] == report["initial"]
    assert model_file.read(tmp_path / "private" / "final.safetensors").cid == report["initial"]["cid"]
    assert Path(told["model"]).is_file()
    for name in ("report.html", "report.md"):
        text = (tmp_path / "private" / name).read_text()
        assert "no round is closed" in text
        assert "bit for bit" not in text


def test_an_asynchronous_run_says_what_each_learner_has_spent_and_passes_its_audit(tmp_path: Path) -> None:
    plan = Plan.model_validate(
        SMALL
        | {
            "mode": "async",
            "rounds": 3,
            "learners": 2,
            "data": {"name": "digits", "train": 100, "test": 50},
            "aggregation": {"rule": "fedasync"},
            "privacy": {"dp": {"noise_multiplier": 1.0}},
        }
    )
    names = simulate(plan, tmp_path, KerasTrainer(plan, datasets.load("digits")))
    assert len(names) == plan.rounds + 1
    metas = [model_file.read(tmp_path / "files" / name).global_meta for name in names[1:]]
    counts = [dict(meta.spent or ()) for meta in metas]
    assert all(sum(count.values()) >= number for number, count in enumerate(counts, 1))
    for meta, count in zip(metas, counts, strict=True):
        assert meta.epsilon == accounting.rounded(max(budget.epsilon(plan, *one) for one in count.items()))
