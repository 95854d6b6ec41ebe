"""Data and models of one's own, by the commands that a user has; a module's learner is killed on real nodes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_node.data import datasets
from tests.helpers.warm import fl_node

EXAMPLE = Path(__file__).parents[2] / "examples" / "tabular"
HANG = 600.0


def must(*arguments: str | Path) -> Any:
    done = fl_node(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "digit.png"
    Image.fromarray(datasets.load("digits").test_images[0]).save(path)
    return path


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the example's module."""
    runs = tmp_path_factory.mktemp("runs")
    said = must("lab", EXAMPLE / "plan.toml", "--runs", runs, "--set", "rounds=2", "--set", "training.epochs=2")
    assert said["audit"]["passed"]
    return runs / "tabular"


def test_a_run_of_a_module_is_audited_by_whoever_has_the_module(tabular: Path) -> None:
    assert must("audit", tabular, "--modules", EXAMPLE)["rounds"] == 2
    refused = fl_node("audit", tabular)
    assert refused.returncode == 2
    assert "fl-node: module tabular: the plan requires SHA-256" in refused.stderr


def test_its_global_weights_are_measured_and_exported(tabular: Path, tmp_path: Path) -> None:
    assert must("evaluate", tabular, "--modules", EXAMPLE)["count"] == 114
    path = tmp_path / "model.keras"
    done = fl_node("export", tabular, "--modules", EXAMPLE, "-o", path)
    assert done.returncode == 0, done.stderr
    script = f"import keras; print(keras.models.load_model({str(path)!r}).output_shape)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=HANG)
    assert loaded.stdout.strip() == "(None, 2)"


def test_what_is_for_images_says_so_of_a_module(tabular: Path, picture: Path) -> None:
    predicted = fl_node("predict", picture, tabular)
    assert predicted.returncode == 2
    assert "the run's model takes the samples of its custom module" in predicted.stderr
    valued = fl_node("contribution", tabular)
    assert valued.returncode == 3
    assert (
        "fl-node: this command needs images; the plan tabular uses the samples of its custom module" in valued.stderr
    )


def test_a_learner_of_a_module_that_is_killed_on_real_nodes_makes_the_same_bits(tmp_path: Path) -> None:
    said = must(
        "lab", EXAMPLE / "plan.toml", "--backend", "processes", "--scenario", "learner-killed", "--runs", tmp_path
    )
    assert said["audit"]["passed"]
    checks = {check["what"]: check["passed"] for check in said["checks"]}
    assert checks["the final weights are the undisturbed run's, bit for bit"]
    assert all(checks.values())


def test_a_folder_of_ones_own_is_trained_on_audited_and_valued(tmp_path: Path, picture: Path) -> None:
    folder, digits = tmp_path / "folder", datasets.load("digits")
    folder.mkdir()
    few = {"train": (digits.train_images, digits.train_labels), "t10k": (digits.test_images, digits.test_labels)}
    for part, (images, labels) in few.items():
        some = labels < 7
        for kind, array in (("images", images[some, 2:-2, 4:-4]), ("labels", labels[some].astype(np.uint8))):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-idx{array.ndim}-ubyte").write_bytes(head + array.tobytes())
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "folder"\nrounds = 2\n[model]\nname = "mlp"\n[training]\nepochs = 2\n'
        '[data]\nname = "folder"\npartition = "dirichlet"\nvalidation = 50\n'
    )
    said = must("lab", plan, "--data-dir", folder, "--runs", tmp_path / "runs")
    assert said["audit"]["passed"]
    run = tmp_path / "runs" / "folder"
    published = json.loads((run / "plan.json").read_text())["data"]
    assert (published["size"], published["classes"], published["all_train"]) == ([24, 20], 7, published["train"] + 50)
    assert must("audit", run)["passed"]
    assert must("contribution", run, "--data-dir", folder)["images"] == 50
    elsewhere = fl_node("report", run, "--output", tmp_path / "report")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert "note: the report has no evaluation: " in elsewhere.stderr
    rounds = json.loads((tmp_path / "report" / "report.json").read_text())["rounds"]
    assert [one["result"]["accuracy"] for one in rounds] == [None, None]
    assert fl_node("report", run, "--output", tmp_path / "measured", "--evaluate").returncode == 3
    assert not (tmp_path / "measured").exists()
    predicted = fl_node("predict", picture, run)
    assert predicted.returncode == 2
    assert (
        "predict needs a model for images of 28 × 28 pixels; the run's model takes 24 × 20 pixels" in predicted.stderr
    )
    labels_file = folder / "t10k-labels-idx1-ubyte"
    labels_file.write_bytes(labels_file.read_bytes()[:-1] + b"\0")
    refused = fl_node("evaluate", run, "--data-dir", folder)
    assert refused.returncode == 3
    assert f"fl-node: {labels_file} is not the plan's" in refused.stderr
