"""What is kept of a run: also of one that goes on, that nobody measures, or of which a file was damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from fl_node.artifacts import cid
from fl_node.data import loading
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.report.finalize import finalize
from tests.helpers.runs import World, plan
from tests.helpers.warm import fl_node

WRITTEN = ["plan.json", "report.html", "report.json", "report.md"]
MODEL = ["final.keras", "final.safetensors"]


@pytest.fixture
def copy(lab_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """The folder of a run that has ended, for a test to do harm to."""
    return Path(shutil.copytree(lab_run[0], tmp_path / "copy"))


@dataclass(frozen=True)
class Reported:
    """How ``fl-node report`` ended, and what it wrote."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return content


def report(run: Path, *options: str) -> Reported:
    output = run.parent / "report"
    done = fl_node("report", run, "--output", output, *options)
    return Reported(done.returncode, done.stdout, done.stderr, output)


def file_of(run: Path, name: str) -> Path:
    (path,) = (run / "nodes" / "files").rglob(name)
    return path


def local_file(run: Path) -> Path:
    content = json.loads((run / "report.json").read_text())
    return file_of(run, content["rounds"][1]["local"]["2"]["cid"])


def final_file(run: Path) -> Path:
    content = json.loads((run / "report.json").read_text())
    return file_of(run, content["rounds"][-1]["result"]["cid"])


def cut(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:1000])


def test_a_run_that_nobody_measures_has_a_report_without_the_globals_accuracy(copy: Path) -> None:
    made = report(copy, "--no-evaluate", "--name", "unmeasured")
    assert made.code == 0, made.err
    assert made.files == sorted([*WRITTEN, *MODEL])
    for one in made.content["rounds"]:
        assert one["result"]["accuracy"] is None
        assert all(local["accuracy"] > 0 for local in one["local"].values())
    assert made.content["name"] == "unmeasured"
    assert " – " in made.out
    assert "audit passed: 3 rounds" in made.out


def test_a_run_may_be_named_by_its_run_json(copy: Path) -> None:
    made = report(copy / "run.json", "--no-evaluate", "--output", str(copy / "elsewhere"))
    assert made.code == 0, made.err
    assert json.loads((copy / "elsewhere" / "report.json").read_text())["name"] == copy.name
    done = fl_node("attack", "membership", copy / "run.json", "--shadows", "0")
    assert done.returncode == 0, done.stderr
    assert (copy / "attacks" / "membership.html").is_file()


def test_the_report_of_a_run_with_a_damaged_file_is_written_and_ends_with_code_one(copy: Path) -> None:
    cut(local_file(copy))
    made = report(copy, "--no-evaluate")
    assert made.code == 1, made.err
    assert made.files == sorted([*WRITTEN, *MODEL])
    assert not made.content["audit"]["passed"]
    assert "audit FAILED with" in made.out


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no /proc")
def test_a_file_that_can_not_be_read_is_a_finding_and_the_audit_goes_on(copy: Path) -> None:
    path = local_file(copy)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opened, it gives an input/output error
    done = fl_node("audit", copy, "--json")
    assert done.returncode == 1, done.stderr
    content = json.loads(done.stdout)
    assert content["rounds"] == 3
    assert f"store folder {copy / 'nodes' / 'files'}: {path.name}: Input/output error" in str(content["findings"])


def test_a_final_file_that_is_damaged_leaves_a_report_without_a_model(copy: Path) -> None:
    cut(final_file(copy))
    made = report(copy, "--no-evaluate", "--json")
    assert made.code == 1, made.err
    assert made.files == WRITTEN
    said = json.loads(made.out)
    assert (said["ended"], said["model"], said["audit"]["passed"]) == (True, None, False)
    assert made.content["rounds"][-1]["result"]["problem"]


def test_a_run_whose_first_round_goes_on_has_a_report_without_rounds(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan())
    run.publish_locals(1)
    made = finalize(run.contract, run.store, tmp_path, "young", cast(KerasTrainer, run.trainer), {})
    assert (made.audit.passed, made.result.ended, made.result.rounds, made.model) == (True, False, (), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == WRITTEN
    assert "young" in made.report.read_text()


def test_a_run_whose_budget_allows_no_publication_ends_with_its_initial_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = {"dp": {"noise_multiplier": 1.0, "epsilon_max": 0.01}}
    run = world.deploy(loading.validate(plan().model_dump() | {"privacy": privacy}, "plan"))
    monkeypatch.setattr(run.trainer, "save", lambda _weights, path: path.write_bytes(b"a model"), raising=False)
    made = finalize(run.contract, run.store, tmp_path, "spent", cast(KerasTrainer, run.trainer), {})
    assert (made.audit.passed, made.result.ended, made.result.rounds) == (True, True, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*WRITTEN, *MODEL])
    assert cid.of_file(tmp_path / "final.safetensors") == run.contract.global_weight_at(0)


def test_a_report_that_can_not_be_written_whole_is_elsewhere_and_leaves_nothing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "report" / "plan.json").mkdir(parents=True)
    (tmp_path / "report" / "report.md").write_text("old")
    made = report(copy, "--no-evaluate")
    assert made.code == 2
    start, _, kept = made.err.strip().splitlines()[-1].rpartition(" ")
    assert start == f"fl-node: {tmp_path / 'report' / 'plan.json'}: Is a directory; the report is in"
    assert sorted(path.name for path in Path(kept).iterdir()) == sorted([*WRITTEN, *MODEL])
    assert made.files == ["plan.json", "report.md"]
    assert (tmp_path / "report" / "report.md").read_text() == "old"
