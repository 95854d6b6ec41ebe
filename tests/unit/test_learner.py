"""What a learner does next, with a made-up model on a real (embedded) chain and a folder of files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta, Tensors
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.transactions import Receipt
from fl_node.data import partition
from fl_node.errors import ConfigError, GaveUp
from fl_node.plan.schema import Plan
from fl_node.roles import factory
from fl_node.roles.deploy import deploy
from fl_node.roles.loop import Site, Timing
from fl_node.seeds import derive
from tests.helpers.accounts import ALICE, BOB, HEADER
from tests.helpers.chain import OPEN
from tests.helpers.clock import FakeClock
from tests.helpers.logged import logged
from tests.helpers.stub import StubTrainer, add

PLAN = Plan.model_validate({"name": "test", "rounds": 1, "data": {"name": "digits"}, "fetch_timeout": 0.1})
PATIENCE = 5.0
"""Seconds, on the clock of the test, after which a learner gives up."""


def adder(trained: float = 1.0, loss: float = 0.5) -> StubTrainer:
    """Return a model of one tensor, to which training adds."""
    return StubTrainer(PLAN, {"a": np.zeros(3, np.float32)}, add(trained), loss=loss)


class Run:
    """A run that has begun, and learner 1's place in it."""

    def __init__(self, rpc: str, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "store")
        self.header = deploy(
            Chain(rpc, HEADER), self.store, folder / "header", PLAN, {1: ALICE.address, 2: BOB.address}, adder()
        )
        chain = Chain(rpc, ALICE)
        work = folder / "work"
        work.mkdir()
        timing = Timing(first_pause=1.0, last_pause=1.0, clock=FakeClock())
        self.site = Site(chain, chain.contract(self.header.address), self.store, work, PATIENCE, timing)

    @property
    def contract(self) -> Contract:
        return self.site.contract

    def elsewhere(self, contract: Contract, folder: Path) -> Site:
        """Return the learner's place in another run, with files of its own."""
        return replace(self.site, contract=self.site.chain.contract(contract.address), folder=folder)

    def play(self, trainer: StubTrainer) -> None:
        """Play the learner until it gives up waiting for the other."""
        with pytest.raises(GaveUp, match="learner 2"):
            factory.run_learner(self.site, lambda _: trainer)


@pytest.fixture
def run(rpc: str, tmp_path: Path) -> Run:
    return Run(rpc, tmp_path)


def published(run: Run) -> model_file.WeightsFile:
    name = run.contract.local_weight_at(0, 1)
    assert name is not None
    run.store.fetch(name, run.folder / "published", 10_000, 0.0)
    return model_file.read(run.folder / "published", adder().shapes())


def test_a_learner_trains_the_global_weights_on_its_shard_and_publishes_the_result(run: Run) -> None:
    trainer = adder()
    run.play(trainer)
    assert trainer.trainings == [(len(partition.shard(PLAN, 1)), derive(PLAN.seed, 1, 0))]
    file = published(run)
    assert file.tensor("a").tolist() == [1.0, 1.0, 1.0]
    meta = model_file.check_local(
        file,
        plan=run.contract.plan(),
        node_id=1,
        round_=0,
        parent=str(run.contract.global_weight_at(0)),
        samples=partition.shard_size(PLAN, 1),
    )
    assert (meta.accuracy, meta.loss) == (0.5, 0.5)


def test_a_learner_that_is_started_again_after_it_published_does_nothing_twice(run: Run) -> None:
    run.play(adder())
    before = run.contract.log()
    again = adder()
    run.play(again)
    assert again.trainings == []
    assert run.contract.log() == before


def test_a_file_that_a_block_took_only_in_the_next_round_is_followed_by_that_rounds_own(
    run: Run, rpc: str, tmp_path: Path
) -> None:
    plan = PLAN.model_copy(update={"rounds": 2})
    names = {1: ALICE.address, 2: BOB.address}
    header = deploy(Chain(rpc, HEADER), run.store, tmp_path / "header", plan, names, adder())
    site = run.elsewhere(header, tmp_path / "other")
    with pytest.raises(GaveUp):
        factory.run_learner(site, lambda _: adder())
    late = str(header.local_weight_at(0, 1))
    meta = GlobalMeta(header.plan(), 1, header.global_weight_at(0), "fedavg")
    file = model_file.write(tmp_path / "global", meta, {"a": np.full(3, 7, np.float32)})
    run.store.add(file.path)
    header.set_global_weight(file.cid, header.chain.nonce())
    site.contract.set_local_weight(1, late, site.chain.nonce())
    assert header.local_weight_at(1, 1) == late
    with pytest.raises(GaveUp, match="round 1 to close; learner 2"):
        factory.run_learner(site, lambda _: adder())
    assert header.local_weight_at(1, 1) not in {None, late}


@pytest.mark.parametrize("trained", [False, True], ids=["before it trains", "when it has trained"])
def test_a_file_that_a_reorganisation_moved_into_the_next_round_is_followed_by_that_rounds_own(
    run: Run, rpc: str, tmp_path: Path, trained: bool
) -> None:
    plan = PLAN.model_copy(update={"rounds": 2})
    names = {1: ALICE.address, 2: BOB.address}
    header = deploy(Chain(rpc, HEADER), run.store, tmp_path / "header", plan, names, adder())
    site = run.elsewhere(header, tmp_path / "other")
    site.folder.mkdir()
    local = model_file.LocalMeta(header.plan(), 1, 0, str(header.global_weight_at(0)), 1, 0.5, 0.5)
    moved = model_file.write(site.folder / "local-0.safetensors", local, {"a": np.full(3, 5, np.float32)})
    run.store.add(moved.path)
    meta = GlobalMeta(header.plan(), 1, header.global_weight_at(0), "fedavg")
    file = model_file.write(tmp_path / "global", meta, {"a": np.full(3, 7, np.float32)})
    run.store.add(file.path)
    # The block that closes round 0 has not the transaction, which the learner saw in another block.
    header.set_global_weight(file.cid, header.chain.nonce())
    if trained:
        with pytest.raises(GaveUp, match="round 1 to close; learner 2"):
            factory.run_learner(site, lambda _: adder())
    site.contract.set_local_weight(1, moved.cid, site.chain.nonce())
    assert (header.local_weight_at(0, 1), header.local_weight_at(1, 1)) == (None, moved.cid)
    with pytest.raises(GaveUp, match="round 1 to close; learner 2"):
        factory.run_learner(site, lambda _: adder())
    assert header.local_weight_at(1, 1) not in {None, moved.cid}


def test_a_learner_says_once_that_no_block_takes_its_weights_and_publishes_when_one_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fl_node")
    publish, tries = run.contract.set_local_weight, []

    def never_at_first(node_id: int, file_cid: str, nonce: int) -> Receipt | None:
        tries.append(nonce)
        return None if len(tries) < 3 else publish(node_id, file_cid, nonce)

    monkeypatch.setattr(run.contract, "set_local_weight", never_at_first)
    run.play(adder())
    assert len(tries) == 3
    said = [(one["event"], one.get("reason") or one.get("cid")) for one in logged(caplog)]
    name = published(run).cid
    assert said[said.index(("local_weights_written", name)) + 1 :] == [
        ("file_stored", name),
        ("waiting", "block"),
        ("local_weights_published", name),
        ("waiting", "round_end"),
    ]


def test_a_learner_whose_weights_no_block_takes_gives_up_in_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.contract, "set_local_weight", lambda *_: None)
    with pytest.raises(GaveUp, match="was waiting: a block with the local weights of round 0"):
        factory.run_learner(run.site, lambda _: adder())


def killed(run: Run) -> Path:
    """Train as a learner that is killed before it publishes, and return its file."""
    meta = model_file.LocalMeta(
        run.contract.plan(), 1, 0, str(run.contract.global_weight_at(0)), partition.shard_size(PLAN, 1), 0.5, 0.5
    )
    return model_file.write(run.site.folder / "local-0.safetensors", meta, {"a": np.full(3, 5, np.float32)}).path


def test_what_was_trained_before_a_kill_is_published_without_training_again(run: Run) -> None:
    killed(run)
    again = adder()
    run.play(again)
    assert again.trainings == []
    assert published(run).tensor("a").tolist() == [5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.write_bytes(b"")],
    ids=["cut short", "empty"],
)
def test_what_was_damaged_by_a_kill_is_trained_again(run: Run, damage: Callable[[Path], object]) -> None:
    damage(killed(run))
    again = adder()
    run.play(again)
    assert len(again.trainings) == 1
    assert published(run).tensor("a").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        (adder(trained=float("nan")), "diverged to values that are not finite"),
        (adder(trained=float("inf")), "diverged to values that are not finite"),
        (adder(loss=float("nan")), "diverged to values that are not finite"),
        (adder(trained=3e38), "are invalid: tensor a has a value of size 3e+38"),
        (adder(trained=9e5), "are invalid: the update has the norm"),
    ],
)
def test_a_learner_that_can_make_nothing_of_global_weights_waits_for_others_and_says_why(
    run: Run, trainer: StubTrainer, reason: str
) -> None:
    with pytest.raises(GaveUp, match=re.escape(reason)):
        factory.run_learner(run.site, lambda _: trainer)
    # It is deterministic: the same round trained again would end the same way.
    assert len(trainer.trainings) == 1
    assert run.contract.local_weight_at(0, 1) is None
    assert not list(run.site.folder.glob("local-*"))
    assert not list(run.site.folder.glob("trained-*"))


def test_a_learner_goes_on_with_the_next_global_weights_that_it_can_train(run: Run, rpc: str, tmp_path: Path) -> None:
    def diverge_from_large(plan: Plan, given: Tensors, samples: Any, seed: int, on_epoch: Any) -> Tensors:
        trained = add(1.0)(plan, given, samples, seed, on_epoch)
        return trained if abs(given["a"]).max() < 100 else {"a": np.full(3, np.nan, np.float32)}

    plan = PLAN.model_copy(update={"rounds": 3})
    names = {1: ALICE.address, 2: BOB.address}
    header = deploy(Chain(rpc, HEADER), run.store, tmp_path / "header", plan, names, adder())

    def publish(round_: int, value: float) -> None:
        meta = GlobalMeta(header.plan(), round_, header.global_weight_at(round_ - 1), "fedavg")
        file = model_file.write(tmp_path / "global", meta, {"a": np.full(3, value, np.float32)})
        run.store.add(file.path)
        header.set_global_weight(file.cid, header.chain.nonce())

    site = run.elsewhere(header, tmp_path / "other")
    publish(1, 3e38)
    trainer = StubTrainer(PLAN, {"a": (3,)}, diverge_from_large)
    one = factory.learner_of(site, plan, trainer)
    site.folder.mkdir()
    for _ in range(3):
        assert getattr(one.step(), "reason", "") == "valid_weights"
    assert len(trainer.trainings) == 1
    publish(2, 3.0)
    assert one.step() is None
    assert one.step() is None
    assert header.local_weight_at(2, 1) is not None


def test_a_learner_says_that_global_weights_are_bad_and_waits_for_good_ones(run: Run, rpc: str) -> None:
    header = Chain(rpc, HEADER)
    contract = header.contract(str(header.deploy(run.contract.plan(), OPEN).contract))
    contract.register_learner(1, ALICE.address, header.nonce())
    meta = GlobalMeta(contract.plan(), 0, None, "initial")
    file = model_file.write(run.folder / "bad", meta, {"a": np.full(3, np.nan, np.float32)})
    run.store.add(file.path)
    contract.set_global_weight(file.cid, header.nonce())
    site = run.elsewhere(contract, run.folder / "other")
    trainer = adder()
    with pytest.raises(GaveUp, match=r"global weights 0 .* are invalid: tensor a has values that are not finite"):
        factory.run_learner(site, lambda _: trainer)
    assert trainer.trainings == []


def test_a_learner_that_is_not_registered_waits_for_that(run: Run, rpc: str) -> None:
    header = Chain(rpc, HEADER)
    contract = header.contract(str(header.deploy(run.contract.plan(), OPEN).contract))
    site = run.elsewhere(contract, run.folder / "other")
    with pytest.raises(GaveUp, match=f"the header to register {ALICE.address}"):
        factory.run_learner(site, lambda _: adder())


def test_a_learner_ends_with_the_run(run: Run) -> None:
    run.header.set_global_weight(str(run.contract.global_weight_at(0)), run.header.chain.nonce())
    trainer = adder()
    factory.run_learner(run.site, lambda _: trainer)
    assert trainer.trainings == []


@pytest.mark.parametrize(("mode", "rule"), [("sync", "fedavg"), ("async", "fedasync")])
def test_a_plan_with_attacks_is_refused_before_data_is_loaded_unless_they_are_allowed(
    run: Run, rpc: str, tmp_path: Path, mode: str, rule: str
) -> None:
    attack = {"learners": [2], "update": "sign_flip"}
    plan = Plan.model_validate(
        {"name": "test", "data": {"name": "digits"}, "mode": mode, "aggregation": {"rule": rule}, "attack": attack}
    )
    names = {1: ALICE.address, 2: BOB.address}
    header = deploy(Chain(rpc, HEADER), run.store, tmp_path / "header", plan, names, adder())
    site = run.elsewhere(header, tmp_path / "other")
    loaded: list[Plan] = []

    def make(plan: Plan) -> StubTrainer:
        loaded.append(plan)
        return adder()

    with pytest.raises(ConfigError, match=r"\[attack\]"):
        factory.run_learner(site, make)
    assert loaded == []
    with pytest.raises(ConfigError, match=r"\[attack\]"):
        factory.learner_of(site, plan, adder())
    assert factory.learner_of(site, plan, adder(), allow_attacks=True) is not None
