"""`fl-node attack` on a run that the lab left: what it reads, what it writes, and its one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.warm import fl_node

LabRun = tuple[Path, dict[str, Any]]


def test_membership_is_inferred_from_the_files_of_a_run(lab_run: LabRun, tmp_path: Path) -> None:
    run, _ = lab_run
    done = fl_node("attack", "membership", run, "--shadows", 0, "-o", tmp_path / "found", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert json.loads((tmp_path / "found" / "membership.json").read_text()) == content
    assert [figure["target"] for figure in content["figures"]] == [
        "learner 1",
        "learner 2",
        "all learners",
        "global weights 3",
    ]
    assert all(figure["low"] <= figure["auc"] <= figure["high"] for figure in content["figures"])
    assert content["figures"][2]["members"] == 400
    assert "<svg" in (tmp_path / "found" / "membership.html").read_text()


def test_many_images_under_adam_give_no_image_and_say_why(lab_run: LabRun, tmp_path: Path) -> None:
    run, _ = lab_run
    done = fl_node("attack", "inversion", run, "-o", tmp_path / "found")
    assert done.returncode == 0, done.stderr
    assert "note: the optimizer adam scales each value by itself" in done.stdout
    assert "0 of 200 images of learner 1 revealed" in done.stdout
    assert "No image." in (tmp_path / "found" / "inversion.html").read_text()


def test_a_mistake_is_one_line(lab_run: LabRun, tmp_path: Path) -> None:
    run, _ = lab_run
    for arguments, part in (
        (("inversion", tmp_path / "none"), "is it a run folder?"),
        (("inversion", run, "--learner", 3), "--learner 3: should be 1 to 2"),
        (("inversion", run, "--round", 7), "--round 7: learner 1 published in rounds 0, 1, 2"),
        (("inversion", run, "--method", "magic"), "--method magic: should be one of auto, exact, matching"),
        (("inversion", run, "--method", "exact"), "training.optimizer = sgd"),
        (("membership", run, "--shadows", 3), "--shadows 3: should be 0 or an even number from 4"),
    ):
        done = fl_node("attack", *arguments, *(("-o", tmp_path / "found") if run in arguments else ()))
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("fl-node: ")
        assert part in done.stderr.splitlines()[-1]
    assert not (tmp_path / "found").exists()
    assert not (tmp_path / "none").exists()


def test_a_result_that_can_not_be_written_is_printed_and_kept_elsewhere(
    lab_run: LabRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = lab_run
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    for attack, options in (("membership", ("--shadows", 0)), ("inversion", ())):
        page = tmp_path / "found" / f"{attack}.html"
        page.mkdir(parents=True)
        done = fl_node("attack", attack, run, *options, "-o", tmp_path / "found", "--json")
        assert done.returncode == 2
        start, _, kept = done.stderr.strip().splitlines()[-1].rpartition(" ")
        assert start == f"fl-node: {page}: Is a directory; the result is in"
        assert Path(kept).is_relative_to(tmp_path / "temporary")
        assert json.loads(Path(kept).with_suffix(".json").read_text()) == json.loads(done.stdout)
        assert [path.name for path in (tmp_path / "found").iterdir()] == [page.name]
        page.rmdir()
