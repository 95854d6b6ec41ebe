"""A run on the real MNIST, where it can be had without a download."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fl_node.data import datasets
from tests.helpers import warm

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(
    not os.environ.get("FL_NODE_DATA_DIR") and not any(datasets.cache_dir().glob("*.gz")),
    reason="MNIST is not here: name its folder by FL_NODE_DATA_DIR",
)


def test_a_run_on_mnist_learns_and_its_model_knows_a_digit(tmp_path: Path) -> None:
    def fl_node(*arguments: str) -> str:
        done = warm.fl_node(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sizes = ("--set", "data.train=6000", "--set", "rounds=2", "--set", "data.test=1000")
    outcome = json.loads(fl_node("lab", str(ROOT / "plans" / "demo.toml"), *sizes, "--json"))
    assert outcome["audit"]["passed"] is True
    # Two rounds on 3,000 images a learner: about 91 %; a model that learns nothing stays near 10 %.
    assert outcome["final"]["accuracy"] > 0.8

    evaluated = json.loads(fl_node("evaluate", outcome["run"], "--json"))
    assert evaluated["accuracy"] == outcome["final"]["accuracy"]

    from PIL import Image

    images = datasets.load("mnist")
    index = int((images.test_labels == 1).argmax())
    picture = tmp_path / "one.png"
    # As somebody would draw it: large, dark on light.
    Image.fromarray(255 - images.test_images[index]).resize((280, 280)).save(picture)
    assert json.loads(fl_node("predict", str(picture), outcome["run"], "--json"))["digit"] == 1


def test_the_published_files_are_mnist() -> None:
    found = datasets.load("mnist")
    assert found.train_images.shape == (60_000, 28, 28)
    assert found.test_images.shape == (10_000, 28, 28)
    assert sorted(set(found.train_labels.tolist())) == list(range(10))
