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

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta, Tensors
from fl_node.chain.client import Chain
from fl_node.chain.contract import ATTESTED, REJECTED, Contract
from fl_node.chain.transactions import Receipt
from fl_node.data import partition
from fl_node.errors import ConfigError, GaveUp
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.global_files import global_file
from fl_node.protocol.terms import terms_of
from fl_node.roles import factory
from fl_node.roles.deploy import deploy
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Done, Site, Timing, Waiting
from fl_node.runtime.waiting import wait_until
from fl_node.seeds import derive
from tests.helpers.accounts import ALICE, BOB, HEADER, MALLORY
from tests.helpers.clock import FakeClock
from tests.helpers.logged import logged
from tests.helpers.stub import StubTrainer, add

# A verification takes time that no test's clock knows, so most tests do without.
PLAN = Plan.model_validate(
    {"name": "test", "rounds": 1, "data": {"name": "digits"}, "fetch_timeout": 0.1, "verification": "none"}
)
VERIFIED = PLAN.model_copy(update={"verification": "all"})
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

    def another(self, rpc: str, folder: Path, plan: Plan) -> Contract:
        """Begin another run with the same two learners, and return its contract as the header sees it."""
        names = {1: ALICE.address, 2: BOB.address}
        return deploy(Chain(rpc, HEADER), self.store, folder / "header", plan, names, adder())

    def spoiled(self, rpc: str, folder: Path, plan: Plan) -> Contract:
        """Begin a run with both learners whose initial weights are no numbers."""
        (folder / "plan.json").write_bytes(plan.to_bytes())
        chain = Chain(rpc, HEADER)
        contract = chain.contract(str(chain.deploy(self.store.add(folder / "plan.json"), terms_of(plan)).contract))
        for node_id, account in ((1, ALICE), (2, BOB)):
            contract.register_learner(node_id, account.address, chain.nonce())
        meta = GlobalMeta(contract.plan(), 0, None, "initial")
        file = model_file.write(folder / "bad", meta, {"a": np.full(3, np.nan, np.float32)})
        self.store.add(file.path)
        contract.set_global_weight(file.cid, chain.nonce())
        return contract

    def next_round(self, header: Contract, value: float) -> None:
        """Let each learner publish that has not, and then the header these global weights of no learner's making."""
        round_ = header.round()
        for node_id, account in ((1, ALICE), (2, BOB)):
            if header.local_weight_at(round_, node_id) is None:
                chain = Chain(header.chain.rpc, account)
                chain.contract(header.address).set_local_weight(node_id, cid.of_bytes(b"any"), chain.nonce())
        meta = GlobalMeta(header.plan(), round_ + 1, header.global_weight_at(round_), "fedavg")
        file = model_file.write(self.folder / "global", meta, {"a": np.full(3, value, np.float32)})
        self.store.add(file.path)
        assert header.set_global_weight(file.cid, header.chain.nonce()) is not None

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


@pytest.mark.parametrize("trained", [False, True], ids=["before it trains", "when it has trained"])
def test_a_file_that_comes_too_late_for_its_round_is_in_no_round_and_the_next_rounds_own_is(
    run: Run, rpc: str, tmp_path: Path, trained: bool
) -> None:
    header = run.another(rpc, tmp_path, PLAN.model_copy(update={"rounds": 2}))
    site = run.elsewhere(header, tmp_path / "other")
    with pytest.raises(GaveUp, match="round 0 to close; learner 2"):
        factory.run_learner(site, lambda _: adder())
    late, parent = str(header.local_weight_at(0, 1)), str(header.global_weight_at(0))
    run.next_round(header, 7.0)
    if trained:
        with pytest.raises(GaveUp, match="round 1 to close; learner 2"):
            factory.run_learner(site, lambda _: adder())
    # As a process does that was stopped before it sent this, or a block that takes the place of another.
    assert site.contract.set_local_weight(1, late, site.chain.nonce(), trained_from=(0, parent)) is None
    assert (header.local_weight_at(0, 1), header.local_weight_at(1, 1) == late) == (late, False)
    if not trained:
        with pytest.raises(GaveUp, match="round 1 to close; learner 2"):
            factory.run_learner(site, lambda _: adder())
    assert header.local_weight_at(1, 1) not in {None, late}


def test_a_learner_says_once_that_no_block_takes_its_weights_and_publishes_when_one_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fl_node")
    publish, tries = run.contract.set_local_weight, []

    def never_at_first(node_id: int, file_cid: str, nonce: int, **more: Any) -> Receipt | None:
        tries.append(nonce)
        return None if len(tries) < 3 else publish(node_id, file_cid, nonce, **more)

    monkeypatch.setattr(run.contract, "set_local_weight", never_at_first)
    run.play(adder())
    assert len(tries) == 3
    steps = [(event["event"], event.get("reason") or event.get("cid")) for event in logged(caplog)]
    name = published(run).cid
    assert steps[steps.index(("local_weights_written", name)) + 1 :] == [
        ("file_stored", name),
        ("waiting", "block"),
        ("local_weights_published", name),
        ("waiting", "round_end"),
    ]


def test_a_learner_whose_weights_no_block_takes_gives_up_in_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.contract, "set_local_weight", lambda *_, **__: None)
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
    header = run.another(rpc, tmp_path, plan)
    site = run.elsewhere(header, tmp_path / "other")
    run.next_round(header, 3e38)
    trainer = StubTrainer(PLAN, {"a": (3,)}, diverge_from_large)
    learner = factory.learner_of(site, plan, trainer)
    site.folder.mkdir()
    for _ in range(3):
        assert getattr(learner.step(), "reason", "") == "valid_weights"
    assert len(trainer.trainings) == 1
    run.next_round(header, 3.0)
    assert learner.step() is None
    assert learner.step() is None
    assert header.local_weight_at(2, 1) is not None


def test_a_learner_says_that_global_weights_are_bad_and_waits_for_good_ones(
    run: Run, rpc: str, tmp_path: Path
) -> None:
    site = run.elsewhere(run.spoiled(rpc, tmp_path, PLAN), run.folder / "other")
    trainer = adder()
    with pytest.raises(GaveUp, match=r"global weights 0 .* are invalid: tensor a has values that are not finite"):
        factory.run_learner(site, lambda _: trainer)
    assert trainer.trainings == []


def settle(learner: Learner) -> Waiting:
    """Let a learner work until it waits for something else than its own verification."""
    while True:
        waiting = learner.step()
        if waiting is None:
            continue
        if waiting.reason != "verification" or waiting.watch is None:
            return waiting
        assert wait_until(lambda watch=waiting.watch: watch() is True, 60)


def test_a_learner_that_verifies_rejects_bad_global_weights_once_and_trains_nothing(
    run: Run, rpc: str, tmp_path: Path
) -> None:
    contract = run.spoiled(rpc, tmp_path, VERIFIED)
    site = run.elsewhere(contract, run.folder / "other")
    site.folder.mkdir()
    for _ in range(2):
        learner = factory.learner_of(site, VERIFIED, trainer := adder())
        # It sees that it cannot train from them before it has verified them.
        assert wait_until(lambda learner=learner: "rejected: " in settle(learner).detail, 60)
        learner.close()
        assert trainer.trainings == []
    rejections = [entry for entry in contract.log() if entry.name == REJECTED]
    assert [(entry.round, entry.node_id, entry.cid, entry.code) for entry in rejections] == [
        (0, 1, contract.global_weight_at(0), "file")
    ]
    assert contract.local_weight_at(0, 1) is None
    assert contract.header() == HEADER.address


def test_a_learner_that_verifies_attests_by_publishing_and_the_last_weights_by_a_call(
    run: Run, rpc: str, tmp_path: Path
) -> None:
    header = run.another(rpc, tmp_path, VERIFIED)
    site = run.elsewhere(header, tmp_path / "other")
    site.folder.mkdir()
    learner = factory.learner_of(site, VERIFIED, adder())
    assert settle(learner).reason == "round_end"
    assert history.read(header).attested(0) == {1}

    # Bob has the same weights, so their average is Alice's file but for what is said of it.
    bob = Chain(rpc, BOB)
    meta = model_file.LocalMeta(
        header.plan(), 2, 0, str(header.global_weight_at(0)), partition.shard_size(VERIFIED, 2), 0.5, 0.5
    )
    mine = model_file.write(tmp_path / "bob", meta, {"a": np.ones(3, np.float32)})
    run.store.add(mine.path)
    bob.contract(header.address).set_local_weight(2, mine.cid, bob.nonce())
    name = str(header.local_weight_at(0, 1))
    run.store.fetch(name, tmp_path / "alice", 10_000, 0.0)
    closing = global_file(
        tmp_path / "closing",
        VERIFIED,
        header.plan(),
        round_=1,
        parent=str(header.global_weight_at(0)),
        inputs=[model_file.read(tmp_path / "alice", adder().shapes()), mine],
    )
    run.store.add(closing.path)
    header.set_global_weight(closing.cid, header.chain.nonce())

    with pytest.raises(Done):
        settle(learner)
    learner.close()
    assert history.read(header).attested(1) == {1}
    assert [(entry.round, entry.cid) for entry in header.log() if entry.name == ATTESTED and entry.node_id == 1] == [
        (0, header.global_weight_at(0)),
        (1, closing.cid),
    ]


def test_a_learner_that_is_not_registered_waits_for_that(run: Run, rpc: str) -> None:
    header = Chain(rpc, HEADER)
    contract = header.contract(str(header.deploy(run.contract.plan(), terms_of(PLAN)).contract))
    site = run.elsewhere(contract, run.folder / "other")
    with pytest.raises(GaveUp, match=f"the header to register {ALICE.address}"):
        factory.run_learner(site, lambda _: adder())


def test_a_learner_ends_with_the_run(run: Run, rpc: str, tmp_path: Path) -> None:
    header = run.another(rpc, tmp_path, PLAN)
    run.next_round(header, 7.0)
    trainer = adder()
    factory.run_learner(run.elsewhere(header, tmp_path / "other"), lambda _: trainer)
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


def test_a_learner_whose_place_another_account_has_does_not_wait_for_one(rpc: str, run: Run) -> None:
    header = Chain(rpc, HEADER)
    contract = header.contract(str(header.deploy(run.contract.plan(), terms_of(PLAN)).contract))
    site = replace(run.site, contract=run.site.chain.contract(contract.address))
    contract.register_learner(1, MALLORY.address, header.nonce())
    learner = Learner(site, PLAN, adder())
    waiting = learner.step()
    assert waiting is not None
    assert waiting.reason == "registration"
    contract.register_learner(2, BOB.address, header.nonce())
    with pytest.raises(ConfigError, match=f"all 2 learners are registered, and none of them with .*{ALICE.address}"):
        learner.step()
