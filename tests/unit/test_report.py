"""What came out of a run: from chain and store, as a table, as JSON and as Markdown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta, Rejection, WeightsFile
from fl_node.audit.result import Audit, Finding
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.models.trainer import Score
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.global_files import global_file
from fl_node.report import collect as report
from fl_node.report import writer
from fl_node.report.collect import Entry, Result, RoundResult
from tests.helpers.accounts import ALICE, BOB, HEADER, MALLORY
from tests.helpers.chain import OPEN

PAPER = Plan.model_validate(
    {"name": "paper", "rounds": 5, "learners": 2, "data": {"name": "mnist"}, "training": {"epochs": 5}}
)
SMALL = Plan.model_validate(
    {
        "name": "small",
        "rounds": 2,
        "learners": 3,
        "min_learners": 1,
        "round_timeout": 1,
        "fetch_timeout": 0.1,
        "data": {"name": "digits"},
    }
)


def entry(accuracy: float | None = None) -> Entry:
    return Entry(cid.of_bytes(b"file"), 1, "0x12", accuracy)


def result(plan: Plan, rounds: list[RoundResult]) -> Result:
    learners = {n: f"0x{n:040x}" for n in range(1, plan.learners + 1)}
    return Result(plan, "Qm", "0xc", "0xh", learners, len(rounds), entry(), tuple(rounds), {})


def test_the_table_has_a_row_a_round_and_a_column_a_learner() -> None:
    rounds = [
        RoundResult(0, {1: entry(0.98765), 2: entry(0.5), 3: entry(1.0)}, entry(0.123456)),
        RoundResult(1, {1: entry(0.9), 2: entry(0.1)}, entry(), rejected={2: "NaN"}, missing_learners=(3,)),
    ]
    assert report.table(result(SMALL, rounds)) == [
        ["round", "learner 1", "learner 2", "learner 3", "global"],
        ["0", "98.77", "50.00", "100.00", "12.35"],
        ["1", "90.00", "rejected", "missing", "–"],
    ]


def test_a_learner_of_which_nothing_is_known_has_a_dash() -> None:
    rounds = [RoundResult(0, {1: entry()}, entry())]
    assert report.table(result(SMALL, rounds))[1] == ["0", "–", "–", "–", "–"]


def test_the_papers_figures_stand_beside_the_papers_experiment() -> None:
    rounds = [RoundResult(r, {1: entry(0.99), 2: entry(0.98)}, entry(0.991)) for r in range(5)]
    rows = report.table(result(PAPER, rounds))
    assert rows[0] == ["round", "learner 1", "learner 2", "global", "paper 1", "paper 2", "paper global"]
    assert rows[1] == ["0", "99.00", "98.00", "99.10", "98.91", "99.10", ""]
    assert rows[5] == ["4", "99.00", "98.00", "99.10", "99.39", "99.41", "99.46"]


@pytest.mark.parametrize(
    "change", ["rounds=4", "learners=3", "data.train=1000", "data.test=100", "data.name=digits", "training.epochs=1"]
)
def test_the_papers_figures_stand_beside_nothing_else(tmp_path: Path, change: str) -> None:
    from fl_node.plan import loading as plans

    path = tmp_path / "plan.toml"
    path.write_text('name = "paper"')
    assert report.comparable(plans.load(path))
    changed = plans.load(path, [change])
    assert not report.comparable(changed)
    assert not any("paper" in head for head in report.table(result(changed, []))[0])


def test_a_run_with_a_learner_that_the_paper_does_not_have_has_a_table_too() -> None:
    # The contract takes any nodeId from its header.
    odd = replace(result(PAPER, [RoundResult(0, {7: entry(0.9)}, entry(0.9))]), learners={1: "0x1", 7: "0x7"})
    assert report.table(odd)[1][:4] == ["0", "–", "90.00", "90.00"]


def test_the_papers_figures_are_whole() -> None:
    figures = report.paper()
    assert [len(local) for local in figures["local_accuracy"].values()] == [5, 5]
    assert len(figures["single_node_accuracy"]) == 25
    assert figures["final_global_accuracy"] == 0.9946
    assert all(0.98 < a < 1 for a in figures["single_node_accuracy"])


def test_a_fraction_is_shown_in_percent() -> None:
    assert [report.percent(f) for f in (0.0, 0.99464, 1.0, None)] == ["0.00", "99.46", "100.00", "–"]


# From the chain and the store


class Lab:
    """A run by hand: a contract, a store, and files of one tensor."""

    def __init__(self, rpc: str, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "store")
        (folder / "plan.json").write_bytes(SMALL.to_bytes())
        self.plan = self.store.add(folder / "plan.json")
        chain = Chain(rpc, HEADER)
        self.contract = chain.contract(str(chain.deploy(self.plan, OPEN).contract))
        for node_id, account in enumerate((ALICE, BOB, MALLORY), 1):
            self.contract.register_learner(node_id, account.address, chain.nonce())
        self.learners = {1: self.of(ALICE), 2: self.of(BOB), 3: self.of(MALLORY)}

    def of(self, account: object) -> Contract:
        chain = Chain(self.contract.chain.rpc, account)  # type: ignore[arg-type]
        return chain.contract(self.contract.address)

    def open(self, file: WeightsFile) -> str:
        self.store.add(file.path)
        self.contract.set_global_weight(file.cid, self.contract.chain.nonce())
        return file.cid

    def initial(self) -> str:
        meta = GlobalMeta(plan=self.plan, round=0, parent=None, rule="initial")
        return self.open(model_file.write(self.folder / "initial", meta, {"a": np.zeros(2, np.float32)}))

    def local(self, node_id: int, round_: int, parent: str, accuracy: float, *, stored: bool = True) -> WeightsFile:
        meta = LocalMeta(self.plan, node_id, round_, parent, 100 * node_id, accuracy, 0.5)
        values = np.array([node_id, accuracy], np.float32)
        file = model_file.write(self.folder / f"local-{node_id}-{round_}-{accuracy}", meta, {"a": values})
        if stored:
            self.store.add(file.path)
        contract = self.learners[node_id]
        contract.set_local_weight(node_id, file.cid, contract.chain.nonce())
        return file

    def close(
        self, round_: int, parent: str, inputs: list[WeightsFile], refused: list[Rejection], absent: list[int]
    ) -> str:
        return self.open(
            global_file(
                self.folder / f"global-{round_}",
                SMALL,
                self.plan,
                round_=round_,
                parent=parent,
                inputs=inputs,
                refused=refused,
                absent=absent,
            )
        )

    def collect(self, **more: object) -> Result:
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        return report.collect(self.contract, self.store, work, **more)  # type: ignore[arg-type]


@pytest.fixture
def lab(rpc: str, tmp_path: Path) -> Lab:
    return Lab(rpc, tmp_path)


def test_a_run_that_has_not_begun_has_nothing_to_show(lab: Lab) -> None:
    collected = lab.collect()
    assert (collected.initial, collected.rounds, collected.open_round, collected.round, collected.ended) == (
        None,
        (),
        {},
        0,
        False,
    )
    assert collected.plan == SMALL
    assert collected.header == HEADER.address
    assert collected.learners == {1: ALICE.address, 2: BOB.address, 3: MALLORY.address}
    assert len(report.table(collected)) == 1
    assert json.loads(report.as_json(collected))["rounds"] == []


def test_a_run_is_read_from_chain_and_store_alone(lab: Lab, tmp_path: Path) -> None:
    first = lab.initial()
    accepted = lab.local(1, 0, first, 0.5)
    missing = lab.local(2, 0, first, 0.6, stored=False)
    second = lab.close(1, first, [accepted], [Rejection(2, missing.cid, "missing")], [3])
    locals_ = [lab.local(n, 1, second, n / 10) for n in (3, 2, 1)]
    third = lab.close(2, second, locals_, [], [])

    scores = {second: Score(0.75, 1.0, 360)}
    collected = lab.collect(scores=scores, evaluate=lambda tensors: Score(float(tensors["a"][1]), 0.1, 360))
    assert collected.ended
    assert collected.initial is not None
    assert collected.initial.cid == first
    assert [r.result.cid for r in collected.rounds] == [second, third]
    assert list(collected.rounds[1].local) == [1, 2, 3]
    assert collected.rounds[1].local[2].samples == 200
    assert collected.rounds[0].rejected == {2: "missing"}
    assert collected.rounds[0].missing_learners == (3,)
    assert collected.rounds[0].local[2].problem is not None
    assert report.table(collected)[1:] == [
        ["0", "50.00", "rejected", "missing", "75.00"],
        ["1", "10.00", "20.00", "30.00", "23.33"],
    ]
    assert collected.rounds[0].result.block < collected.rounds[1].result.block

    path = writer.write(tmp_path, "small", collected, Audit("0xc", rounds=2, files=8, bytes=9), {"python": "3.11"})
    assert path == tmp_path / "report.html"
    text = (tmp_path / "report.md").read_text()
    assert "The audit passed: 2 rounds, 8 files" in text
    assert "| 1 | 10.00 | 20.00 | 30.00 | 23.33 |" in text
    assert "Paper" not in text
    for name in (first, second, third, *(file.cid for file in locals_)):
        assert f"`{name}`" in text
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["name"] == "small"
    assert content["audit"]["passed"]
    assert content["rounds"][1]["local"]["3"]["accuracy"] == 0.3
    assert content["plan"] == SMALL.model_dump()


def test_the_global_accuracy_is_open_where_nobody_measured_it(lab: Lab) -> None:
    first = lab.initial()
    lab.close(1, first, [lab.local(1, 0, first, 0.5)], [], [2, 3])
    assert report.table(lab.collect())[1] == ["0", "50.00", "missing", "missing", "–"]


def test_a_file_that_was_published_again_counts_as_the_global_file_says(lab: Lab) -> None:
    first = lab.initial()
    taken = lab.local(1, 0, first, 0.5)
    lab.local(1, 0, first, 0.9)
    lab.close(1, first, [taken], [], [2, 3])
    assert lab.collect().rounds[0].local[1].accuracy == 0.5


def test_the_round_that_goes_on_shows_who_has_published(lab: Lab) -> None:
    first = lab.initial()
    lab.local(3, 0, first, 0.3)
    lab.local(1, 0, first, 0.1)
    collected = lab.collect()
    assert not collected.ended
    assert {n: e.accuracy for n, e in collected.open_round.items()} == {1: 0.1, 3: 0.3}
    assert report.table(collected)[1:] == []


def test_the_history_of_a_run_is_in_order(lab: Lab) -> None:
    first = lab.initial()
    files = [lab.local(1, 0, first, accuracy) for accuracy in (0.1, 0.2)]
    lab.close(1, first, files[1:], [], [2, 3])
    past = history.read(lab.contract)
    assert (past.plan_cid, past.deployer, list(past.learners)) == (lab.plan, HEADER.address, [1, 2, 3])
    assert [r.number for r in past.rounds] == [0, 1]
    assert [p.cid for p in past.rounds[0].published] == [file.cid for file in files]
    assert {n: e.cid for n, e in past.rounds[0].latest().items()} == {1: files[1].cid}
    assert past.rounds[1].latest() == {}


def test_a_report_says_first_what_an_audit_found(tmp_path: Path) -> None:
    collected = result(PAPER, [RoundResult(r, {1: entry(0.99), 2: entry(0.98)}, entry(0.991)) for r in range(5)])
    audit = Audit("0xc", rounds=5, findings=[Finding(2, "learner 1", "samples", "is 5, should be 30000")])
    writer.write(tmp_path, "paper", collected, audit, {})
    text = (tmp_path / "report.md").read_text()
    assert "The audit FAILED" in text
    assert "bit for bit" not in text
    assert "- **round 2, learner 1, samples: is 5, should be 30000**" in text
    assert "Paper: Hwang & Kim" in text
    assert not json.loads((tmp_path / "report.json").read_text())["audit"]["passed"]
