"""What the work on the files of a large model holds in memory, and how often it reads them: counted, not timed."""

from __future__ import annotations

import re
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import model_file
from fl_node.artifacts.cid import CHUNK_BYTES
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import LocalMeta, Shapes, WeightsFile
from fl_node.data.partition import shard_size
from fl_node.plan.schema import Plan
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.global_files import global_file, initial_file, needs_parent
from fl_node.protocol.reader import Reader
from fl_node.protocol.verification.case import Case
from fl_node.protocol.verification.findings import Findings
from fl_node.protocol.verification.synchronous import Closing, check_closing
from fl_node.runtime.tensors import Tensor
from tests.helpers.stub import StubTrainer

LEARNERS = 3
BLOCK = 2**16
"""Values; a quarter of the real block, so that a large model takes a quarter of the time."""
SHAPES: Shapes = {"bias": (7,), "embedding": (1, 18 * BLOCK + 11), "kernel": (3, BLOCK, 2), "scale": ()}
"""One tensor is far larger than the others, and a single row."""
MODEL = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
MOST_HELD = 12 * 4 * BLOCK + CHUNK_BYTES
"""Bytes: a few blocks of inputs and results, in float32 and float64, and a chunk to hash; less than a tensor."""
FIXED = {"rule": "fedavg", "arithmetic": "fixed"}


class Count:
    """Bytes that were read of each file, and the most that was held and mapped meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.read: Counter[str] = Counter()
        self.held = 0
        self.mapped = 0
        self._folder = str(folder)

    def passes(self, files: list[Path]) -> list[int]:
        """Return how often each file was read, headers left aside."""
        return [round(self.read[str(path)] / MODEL, 3) for path in files]  # type: ignore[misc]

    def look(self) -> None:
        """Count what this process has mapped of the files now (Linux)."""
        mapped, ours = 0, False
        # Rows one by one, because they take megabytes once a process has imported a lot. Those of maps take no time.
        with Path("/proc/self/maps").open(encoding="utf-8") as rows:
            if not any(self._folder in row for row in rows):
                return
        with Path("/proc/self/smaps").open(encoding="utf-8") as rows:
            for row in rows:
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", row):
                    ours = self._folder in row
                elif ours and row.startswith("Rss:"):
                    mapped += int(row.split()[1]) * 1024
        self.mapped = max(self.mapped, mapped)


@pytest.fixture(autouse=True)
def smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("runtime.tensors", "aggregation.rule"):
        monkeypatch.setattr(f"fl_node.{module}.BLOCK", BLOCK)


@contextmanager
def counting(folder: Path) -> Iterator[Count]:
    count, original, reads = Count(folder), np.fromfile, 0

    def fromfile(file: Any, *args: Any, **named: Any) -> Tensor:
        nonlocal reads
        values: Tensor = original(file, *args, **named)
        count.read[str(file if isinstance(file, Path) else file.name)] += values.nbytes
        reads += 1
        if reads % 16 == 0:
            count.look()
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "fromfile", fromfile)
        tracemalloc.start()
        try:
            yield count
            count.held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


class Run:
    """A round of a large model: its files in a store, and the reader of a role."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.plan = Plan.model_validate({"name": "large", "learners": LEARNERS, **settings})
        self.folder, self.store = folder, FolderStore(folder / "store")
        (folder / "made").mkdir()
        made, generator = folder / "made" / "file", np.random.default_rng(1)
        plan_file = folder / "plan"
        plan_file.write_bytes(self.plan.to_bytes())
        self.plan_cid = self.store.add(plan_file)
        self.initial = {name: generator.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
        self.parent = self.store.add(initial_file(made, self.plan, self.plan_cid, self.initial).path)
        self.locals = {
            n: self.store.add(model_file.write(made, self.meta(n), self.trained(n)).path)
            for n in range(1, LEARNERS + 1)
        }
        self.reader = self.new_reader("role")

    def new_reader(self, name: str) -> Reader:
        (self.folder / name).mkdir()
        return Reader(self.store, self.folder / name, self.plan, SHAPES)

    def meta(self, node_id: int) -> LocalMeta:
        return LocalMeta(self.plan_cid, node_id, 0, self.parent, shard_size(self.plan, node_id), 0.5, 1.0)

    def trained(self, node_id: int) -> dict[str, Tensor]:
        step = np.float32(node_id / 100)
        return {name: np.asarray(tensor * (1 + step) + step) for name, tensor in self.initial.items()}

    def start(self) -> WeightsFile:
        return self.reader.read(self.parent)

    def checked(self) -> list[WeightsFile]:
        start, files = self.start(), [self.reader.read(name, n) for n, name in self.locals.items()]
        for file in files:
            check_bounds(file, start, self.plan)
        return files

    def aggregated(self, path: Path, files: list[WeightsFile]) -> WeightsFile:
        parent = self.start() if needs_parent(self.plan, len(files)) else None
        return global_file(
            path, self.plan, self.plan_cid, round_=1, parent=self.parent, inputs=files, parent_file=parent
        )


@pytest.fixture(params=[{"rule": "fedavg"}, FIXED, {"rule": "median"}, {"rule": "fedavgm"}], ids=str)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(tmp_path, aggregation=request.param)


def test_the_header_reads_each_file_once_to_check_it_and_once_to_aggregate_it(tmp_path: Path) -> None:
    run = Run(tmp_path, aggregation=FIXED)
    paths = [run.reader.path(name) for name in run.locals.values()]
    run.start()
    with counting(tmp_path) as count:
        files = run.checked()
    assert count.passes(paths) == [1.0] * LEARNERS
    assert count.passes([run.start().path]) == [LEARNERS]
    assert count.held < MOST_HELD, count.held
    assert count.mapped < MOST_HELD, count.mapped
    with counting(tmp_path) as count:
        run.aggregated(tmp_path / "global", files)
    assert count.passes([*paths, run.start().path]) == [1.0] * (LEARNERS + 1)
    assert count.held < MOST_HELD, count.held
    assert count.mapped < MOST_HELD, count.mapped


def test_an_aggregation_holds_some_blocks_not_a_model(run: Run, tmp_path: Path) -> None:
    files = run.checked()
    with counting(tmp_path) as count:
        run.aggregated(tmp_path / "global", files)
    # A rule that needs all inputs at once holds a block of each.
    wide = MOST_HELD + 3 * LEARNERS * 4 * BLOCK if run.plan.aggregation.rule == "median" else MOST_HELD
    assert count.held < wide, count.held
    assert count.mapped < MOST_HELD, count.mapped


def test_a_verification_holds_some_blocks_not_a_model(tmp_path: Path) -> None:
    run = Run(tmp_path)
    name = run.store.add(run.aggregated(tmp_path / "made" / "global", run.checked()).path)
    reader, findings = run.new_reader("verifier"), Findings()
    case = Case(run.plan, run.plan_cid, reader, StubTrainer(run.plan, run.initial), findings)
    closing = Closing(0, run.parent, run.locals, frozenset(run.locals))
    with counting(tmp_path) as count:
        check_closing(case, closing, name)
    assert findings.passed
    assert count.passes([reader.path(one) for one in run.locals.values()]) == [2.0] * LEARNERS
    assert count.held < MOST_HELD, count.held
    assert count.mapped < MOST_HELD, count.mapped


def test_what_is_mapped_is_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with counting(tmp_path) as count:
        mapped = np.memmap(run.start().path, np.uint8, "r")
        assert mapped.max() == 255
        count.look()
    assert count.mapped > MOST_HELD


def test_a_wrong_value_of_a_large_model_is_found_block_by_block(tmp_path: Path) -> None:
    run = Run(tmp_path)
    right = run.aggregated(tmp_path / "made" / "right", run.checked())
    tensors = right.tensors()
    tensors["embedding"][0, -1] += 1
    wrong = run.store.add(model_file.write(tmp_path / "made" / "wrong", right.meta, tensors).path)
    del tensors
    findings = Findings()
    case = Case(run.plan, run.plan_cid, run.new_reader("verifier"), StubTrainer(run.plan, run.initial), findings)
    with counting(tmp_path) as count:
        check_closing(case, Closing(0, run.parent, run.locals, frozenset(run.locals)), wrong)
    assert [finding.field for finding in findings.findings] == ["tensor embedding"]
    assert count.held < MOST_HELD, count.held


def test_a_file_of_the_folder_is_hashed_and_checked_in_one_pass(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.start().path
    with counting(tmp_path) as count:
        assert Reader(run.store, path.parent, run.plan, SHAPES).read(run.parent).cid == run.parent
    assert count.passes([path]) == [1.0]
    assert count.held < MOST_HELD, count.held


def test_a_model_that_is_computed_when_asked_for_is_written_block_by_block(run: Run, tmp_path: Path) -> None:
    file = run.start()
    with counting(tmp_path) as count:
        again = model_file.write(tmp_path / "again", file.meta, file.on_demand())
    assert again.cid == file.cid
    assert count.passes([file.path]) == [round(sum(4 * np.prod(s) for s in file.shapes.values()) / MODEL, 3)]
    assert count.held < MOST_HELD, count.held


def test_a_file_that_becomes_shorter_after_its_check_is_an_error_of_the_disk(tmp_path: Path) -> None:
    run = Run(tmp_path)
    file = run.start()
    with file.path.open("r+b") as content:
        content.truncate(file.path.stat().st_size - 4)
    with pytest.raises(OSError, match="shorter") as raised:
        file.tensor("scale")
    assert raised.value.filename == str(file.path)
    assert file.tensor("bias").shape == (7,)
