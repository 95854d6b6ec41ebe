"""How the files of a run are read: bounded, checked, and fetched no more often than needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_node.artifacts import model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta
from fl_node.artifacts.store import Progress, TooLarge, silent
from fl_node.errors import FileMissing, PlanError, StoreUnreachable, WeightsError
from fl_node.plan.schema import Plan
from fl_node.protocol import reader as readers
from fl_node.protocol.reader import Reader

PLAN = Plan.model_validate({"name": "test", "data": {"name": "digits"}, "fetch_timeout": 0.01})
CID = "QmPZ9gcCEpqKTo6aq61g2nXGUhM4iCL3ewB6LDXZCtioEB"
SHAPES = {"a": (3,)}


class Counting(FolderStore):
    """A store that counts what it is asked for, and may be away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []
        self.limits: list[int] = []
        self.away = False

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        self.asked.append(file_cid)
        self.limits.append(max_bytes)
        if self.away:
            raise StoreUnreachable("away")
        super().fetch(file_cid, path, max_bytes, timeout, progress)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def stored(store: Counting, number: int = 0, **tensors: int) -> str:
    """Store a global file with tensors of these sizes and return its CID."""
    meta = GlobalMeta(CID, number, None if not number else CID, "fedavg")
    values = {name: np.zeros(size, np.float32) for name, size in (tensors or {"a": 3}).items()}
    path = store._folder.parent / "written"
    model_file.write(path, meta, values)
    return store.add(path)


def test_a_file_that_is_still_there_is_fetched_once(store: Counting, folder: Path) -> None:
    name = stored(store)
    reader = Reader(store, folder, PLAN, SHAPES)
    assert reader.read(name) is reader.read(name)
    # Another process finds it in the folder, and checks it again.
    assert Reader(store, folder, PLAN, SHAPES).read(name).cid == name
    assert (store.asked, reader.fetched) == ([name], 1)
    assert reader.fetched_bytes == reader.path(name).stat().st_size


def test_a_damaged_copy_is_fetched_again(store: Counting, folder: Path) -> None:
    name = stored(store)
    Reader(store, folder, PLAN, SHAPES).path(name).write_bytes(b"damaged")
    assert Reader(store, folder, PLAN, SHAPES).read(name).cid == name
    assert store.asked == [name]


def test_a_file_that_was_overwritten_is_not_taken_for_the_old_one(store: Counting, folder: Path) -> None:
    first, second = stored(store), stored(store, 1)
    reader, path = Reader(store, folder, PLAN, SHAPES), folder / "global-1.safetensors"
    reader.read(first, path=path)
    reader.remember(model_file.write(path, GlobalMeta(CID, 1, CID, "fedavg"), {"a": np.zeros(3, np.float32)}))
    assert reader.read(second, path=path).cid == second
    assert store.asked == [first]  # the second was written here
    assert reader.read(first, path=path).global_meta.round == 0
    assert store.asked == [first, first]


def test_a_rejected_file_stays_rejected_and_is_not_fetched_again(store: Counting, folder: Path) -> None:
    name = stored(store, b=3)
    reader = Reader(store, folder, PLAN, SHAPES)
    for _ in range(2):
        with pytest.raises(WeightsError) as raised:
            reader.read(name)
        assert raised.value.code == "tensors"
    assert store.asked == [name]


def test_no_more_is_read_than_the_model_can_have(store: Counting, folder: Path) -> None:
    name = stored(store, a=2**20)
    reader = Reader(store, folder, PLAN, SHAPES)
    with pytest.raises(TooLarge):
        reader.read(name)
    assert store.limits == [model_file.size_of(SHAPES)] == [reader.max_bytes()]


def test_until_the_model_is_known_files_have_the_bytes_allowed(store: Counting, folder: Path) -> None:
    first, second = stored(store), stored(store, b=3)
    reader = Reader(store, folder, PLAN, max_bytes=5000)
    reader.expect_like(reader.read(first))
    with pytest.raises(WeightsError):
        reader.read(second)
    assert store.limits == [5000, model_file.size_of(SHAPES)]


def test_a_learners_file_has_the_tensors_of_its_own_model_alone(store: Counting, folder: Path) -> None:
    settings = {"mode": "ensemble", "model": {"architectures": ["mlp", "cnn"]}}
    plan = Plan.model_validate(PLAN.model_dump() | settings)
    reader = Reader(store, folder, plan, {"cnn/a": (4,), "mlp/a": (3,)})
    path = folder / "local"
    meta = LocalMeta(CID, 1, 0, CID, 5, 0.5, 0.5)
    file = model_file.write(path, meta, {"mlp/a": np.zeros(3, np.float32)})
    assert reader.check(path, file.cid, node_id=1).cid == file.cid
    with pytest.raises(WeightsError):
        reader.check(path, file.cid, node_id=2)


@pytest.mark.parametrize("once", [True, False])
def test_whoever_reads_the_past_waits_for_a_missing_file_once(store: Counting, folder: Path, once: bool) -> None:
    reader = Reader(store, folder, PLAN, SHAPES, once=once)
    for _ in range(2):
        with pytest.raises(FileMissing):
            reader.read(CID)
    assert len(store.asked) == (1 if once else 2)


def test_a_store_that_is_away_says_nothing_of_a_file(store: Counting, folder: Path) -> None:
    name = stored(store)
    reader = Reader(store, folder, PLAN, SHAPES, once=True)
    store.away = True
    with pytest.raises(StoreUnreachable):
        reader.read(name)
    store.away = False
    assert reader.read(name).cid == name


def test_memory_is_bounded(store: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_CACHED", 2)
    names = [stored(store, number) for number in range(3)]
    reader = Reader(store, folder, PLAN, SHAPES)
    files = [reader.read(name) for name in names]
    assert reader.read(names[2]) is files[2]
    assert reader.read(names[0]) is not files[0]  # checked again, and not fetched
    assert store.asked == names


def test_what_is_forgotten_is_deleted(store: Counting, folder: Path) -> None:
    kept, forgotten = (stored(store, number) for number in range(2))
    reader = Reader(store, folder, PLAN, SHAPES)
    for name in (kept, forgotten):
        reader.read(name)
    reader.forget(reader.path(kept))
    assert [path.name for path in folder.iterdir()] == [reader.path(kept).name]
    reader.read(forgotten)
    assert store.asked == [kept, forgotten, forgotten]


def test_the_plan_is_read_and_then_known(store: Counting, folder: Path) -> None:
    (folder / "written").write_bytes(PLAN.to_bytes())
    reader = Reader(store, folder)
    assert reader.read_plan(store.add(folder / "written")) == PLAN
    (folder / "written").write_bytes(b"{}")
    with pytest.raises(PlanError):
        reader.read_plan(store.add(folder / "written"))
