"""What a learner writes for TensorBoard, read back from its event files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_node.artifacts import model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import Chain
from fl_node.data import datasets
from fl_node.errors import ConfigError
from fl_node.events import EventFilesStopped
from fl_node.models.keras_trainer import KerasTrainer
from fl_node.plan import loading as plans
from fl_node.roles import factory
from fl_node.roles.deploy import deploy
from fl_node.roles.loop import Site
from fl_node.roles.tensorboard import EventFiles
from tests.helpers.accounts import ALICE, BOB, HEADER
from tests.helpers.logged import logged

PLAN = plans.Plan.model_validate(
    {
        "name": "curves",
        "rounds": 2,
        "learners": 2,
        "data": {"name": "digits", "train": 100, "test": 50},
        "model": {"name": "mlp"},
        "training": {"epochs": 3},
    }
)


@pytest.fixture(scope="module", autouse=True)
def trainer() -> KerasTrainer:
    """The model, which TensorFlow is set up for before anything else is done with it."""
    return KerasTrainer(PLAN, datasets.load("digits"))


def read(folder: Path) -> list[tuple[str, int, float]]:
    """Return tag, step and value of every figure in a folder's event files, in the order in which it was written."""
    import tensorflow as tf

    points = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime_ns):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                points.append((value.tag, event.step, float(tf.make_ndarray(value.tensor))))
    return points


def test_figures_come_back_from_the_learners_own_folder(tmp_path: Path) -> None:
    record = EventFiles(tmp_path / "curves")
    record(1, "test/accuracy", 0.5, 1)
    record(2, "test/accuracy", 0.25, 1)
    record(1, "test/accuracy", 0.75, 2)
    assert read(tmp_path / "curves" / "learner-1") == [("test/accuracy", 1, 0.5), ("test/accuracy", 2, 0.75)]
    assert read(tmp_path / "curves" / "learner-2") == [("test/accuracy", 1, 0.25)]


def test_a_learner_that_starts_again_appends_and_spoils_nothing(tmp_path: Path) -> None:
    before = EventFiles(tmp_path)
    before(1, "training/loss", 0.5, 1)
    before(1, "training/loss", 0.25, 2)
    after = EventFiles(tmp_path)
    after(1, "training/loss", 0.25, 2)
    after(1, "training/loss", 0.125, 3)
    steps = [(step, value) for _, step, value in read(tmp_path / "learner-1")]
    assert steps == [(1, 0.5), (2, 0.25), (2, 0.25), (3, 0.125)]


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--tensorboard"):
        EventFiles(tmp_path / "file" / "curves")


def test_events_that_cannot_be_written_end_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = EventFiles(tmp_path)
    (tmp_path / "learner-1").write_text("in the way")
    record(1, "test/accuracy", 0.5, 1)
    record(1, "test/accuracy", 0.5, 2)
    assert [event["event"] for event in logged(caplog)] == [EventFilesStopped.name]


def test_a_learner_records_epochs_and_rounds_and_trains_the_same_file(
    trainer: KerasTrainer, rpc: str, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path / "store")
    header = tmp_path / "header"
    header.mkdir()
    contract = deploy(Chain(rpc, HEADER), store, header, PLAN, {1: ALICE.address, 2: BOB.address}, trainer)
    chain = Chain(rpc, ALICE)
    published = []
    for name, record in (("with", EventFiles(tmp_path / "curves")), ("without", lambda *_: None)):
        work = tmp_path / name
        work.mkdir()
        site = Site(chain, chain.contract(contract.address), store, work, patience=0.1)
        learner = factory.learner_of(site, PLAN, trainer, record)
        learner.step()  # trains
        published.append((work / "local-0.safetensors").read_bytes())
    assert published[0] == published[1]

    figures = read(tmp_path / "curves" / "learner-1")
    assert [(tag, step) for tag, step, _ in figures] == [
        ("training/accuracy", 1),
        ("training/loss", 1),
        ("training/accuracy", 2),
        ("training/loss", 2),
        ("training/accuracy", 3),
        ("training/loss", 3),
        ("test/accuracy", 0),
        ("test/loss", 0),
    ]
    by_tag = {tag: value for tag, _, value in figures}
    meta = model_file.read(tmp_path / "with" / "local-0.safetensors").local_meta
    assert by_tag["test/accuracy"] == pytest.approx(meta.accuracy)
    assert by_tag["test/loss"] == pytest.approx(meta.loss)
    losses = [value for tag, _, value in figures if tag == "training/loss"]
    assert losses == sorted(losses, reverse=True)
