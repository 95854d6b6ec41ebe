"""What a learner finds out about global weights during a run, on a real (embedded) chain and a folder of files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta, Rejection, WeightsFile
from fl_node.chain.client import Chain
from fl_node.data import partition
from fl_node.errors import StoreUnreachable
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_file
from fl_node.roles.deploy import deploy
from fl_node.roles.loop import Site, Timing
from fl_node.roles.verifier import TRY_AGAIN, Verdict, Verifier
from fl_node.runtime.waiting import wait_until
from tests.helpers.accounts import ALICE, BOB, HEADER
from tests.helpers.clock import FakeClock
from tests.helpers.logged import logged
from tests.helpers.stub import StubTrainer, add

PLAN = Plan.model_validate({"name": "test", "rounds": 5, "data": {"name": "digits"}, "fetch_timeout": 0.05})
ACCOUNTS = {1: ALICE, 2: BOB}
NOWHERE = cid.of_bytes(b"a file that nobody has")
PATIENCE = 600.0
"""Seconds of a machine that is very busy."""


class Run:
    """A run with two learners, whose files the test makes, and learner 1's place in it."""

    def __init__(self, rpc: str, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "store")
        self.trainer = StubTrainer(PLAN, {"a": np.zeros(3, np.float32)}, add(1.0))
        names = {node_id: account.address for node_id, account in ACCOUNTS.items()}
        self.contract = deploy(Chain(rpc, HEADER), self.store, folder / "header", PLAN, names, self.trainer)
        chain = Chain(rpc, ALICE)
        self.clock = FakeClock()
        (folder / "work").mkdir()
        mine = chain.contract(self.contract.address)
        self.site = Site(chain, mine, self.store, folder / "work", timing=Timing(clock=self.clock))

    @property
    def plan_cid(self) -> str:
        return self.contract.plan()

    def parent(self) -> str:
        """Return the CID of the current global weights."""
        return str(self.contract.state().global_cid)

    def local(self, node_id: int, value: float = 1.0, *, stored: bool = True, attests: bool = False) -> WeightsFile:
        """Let a learner publish weights that are all of one value."""
        round_, parent = self.contract.round(), self.parent()
        samples = partition.shard_size(PLAN, node_id)
        meta = LocalMeta(self.plan_cid, node_id, round_, parent, samples, 0.5, 0.5)
        path = self.folder / f"local-{round_}-{node_id}-{value}"
        file = model_file.write(path, meta, {"a": np.full(3, value, np.float32)})
        if stored:
            self.store.add(file.path)
        chain = Chain(self.contract.chain.rpc, ACCOUNTS[node_id])
        contract = chain.contract(self.contract.address)
        sent = contract.set_local_weight(
            node_id, file.cid, chain.nonce(), trained_from=(round_, parent), attests=attests
        )
        assert sent is not None
        return file

    def publish(self, file: WeightsFile, *, stored: bool = True) -> str:
        """Let the header publish global weights."""
        if stored:
            self.store.add(file.path)
        assert self.contract.set_global_weight(file.cid, self.contract.chain.nonce()) is not None
        return file.cid

    def aggregated(self, *inputs: WeightsFile, **more: Any) -> WeightsFile:
        """Return what the plan's rule makes of these files."""
        given: dict[str, Any] = {"round_": self.contract.round() + 1, "parent": self.parent(), **more}
        path = self.folder / f"global-{given['round_']}"
        return global_file(path, PLAN, self.plan_cid, inputs=inputs, **given)

    def forged(self, right: WeightsFile, **changes: Any) -> WeightsFile:
        """Return the same global file with other metadata, or with other values."""
        values = changes.pop("values", right.tensors())
        meta = replace(right.global_meta, **changes)
        return model_file.write(self.folder / "forged", meta, values)

    def round(self) -> str:
        """Let both learners publish and the header end the round as it should; return the CID of its file."""
        return self.publish(self.aggregated(self.local(1), self.local(2, 3.0)))


@pytest.fixture
def run(rpc: str, tmp_path: Path) -> Run:
    return Run(rpc, tmp_path)


@pytest.fixture
def started(run: Run) -> Iterator[Callable[[], Verifier]]:
    """A function that starts a verifier of learner 1, as a new process does."""
    verifiers: list[Verifier] = []

    def start() -> Verifier:
        verifiers.append(Verifier(run.site, PLAN, run.plan_cid, run.trainer))
        return verifiers[-1]

    yield start
    for verifier in verifiers:
        verifier.close()


def verdict(verifier: Verifier, round_: int, name: str) -> Verdict:
    """Return what a verifier finds, when it has found it."""
    verifier.start(round_, name, 1)
    assert wait_until(verifier.is_done, PATIENCE)
    result = verifier.verdict(round_, name)
    assert result is not None
    return result


def is_right(result: Verdict, round_: int, name: str) -> bool:
    assert (result.round, result.cid) == (result.of_round, result.of_cid) == (round_, name)
    return result.is_right


def code(result: Verdict) -> str:
    assert result.wrong is not None, result
    return result.wrong.field


Started = Callable[[], Verifier]


def test_right_initial_weights_are_right(run: Run, started: Started, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fl_node")
    result = verdict(started(), 0, run.parent())
    assert is_right(result, 0, run.parent())
    assert [
        (event["round"], event["cid"]) for event in logged(caplog) if event["event"] == "global_weights_verified"
    ] == [(0, run.parent())]


def test_weights_of_several_rounds_are_right_one_after_the_other_and_all_at_once(run: Run, started: Started) -> None:
    early = started()
    assert verdict(early, 0, run.parent()).is_right
    for number in range(1, 4):
        name = run.round()
        assert is_right(verdict(early, number, name), number, name)
    assert is_right(verdict(started(), 3, name), 3, name)


def test_a_verdict_is_of_the_weights_that_were_asked_for_and_of_no_others(run: Run, started: Started) -> None:
    verifier = started()
    first = run.parent()
    assert verifier.verdict(0, first) is None
    assert verifier.is_done()
    assert verdict(verifier, 0, first).is_right
    assert verifier.verdict(0, NOWHERE) is None
    assert verifier.verdict(1, first) is None


def _value(run: Run, right: WeightsFile) -> WeightsFile:
    values = right.tensors()
    values["a"] = np.nextafter(values["a"], np.float32(9))
    return run.forged(right, values=values)


def _share(run: Run, right: WeightsFile) -> WeightsFile:
    first, second = right.global_meta.inputs
    return run.forged(right, inputs=(replace(first, share=first.share / 2), second))


def _left_out(run: Run, right: WeightsFile) -> WeightsFile:
    return run.forged(right, inputs=right.global_meta.inputs[:1])


def _no_inputs(run: Run, right: WeightsFile) -> WeightsFile:
    return run.forged(right, inputs=())


def _called_missing(run: Run, right: WeightsFile) -> WeightsFile:
    return run.forged(right, inputs=right.global_meta.inputs[:1], absent=(2,))


def _rejected(run: Run, right: WeightsFile) -> WeightsFile:
    second = right.global_meta.inputs[1]
    return run.forged(right, inputs=right.global_meta.inputs[:1], refused=(Rejection(2, second.cid, "not nice"),))


def _other_file(run: Run, right: WeightsFile) -> WeightsFile:
    first, second = right.global_meta.inputs
    return run.forged(right, inputs=(first, replace(second, cid=first.cid)))


@pytest.mark.parametrize(
    ("forge", "field"),
    [
        (_value, "tensor a"),
        (_share, "share"),
        (_left_out, "inputs"),
        (_no_inputs, "inputs"),
        (_called_missing, "absent"),
        (_rejected, "refused"),
        (_other_file, "cid"),
        (lambda run, right: run.forged(right, parent=NOWHERE), "parent"),
        (lambda run, right: run.forged(right, rule="invented"), "rule"),
        (lambda run, right: run.forged(right, plan=NOWHERE), "plan"),
        (lambda run, right: run.forged(right, round=7), "round"),
        (lambda run, right: run.forged(right, values={"b": np.zeros(3, np.float32)}), "file"),
    ],
    ids=[
        "value",
        "share",
        "left out",
        "no inputs",
        "absent",
        "rejected",
        "other file",
        "parent",
        "rule",
        "plan",
        "round",
        "other model",
    ],
)
def test_a_lie_about_global_weights_is_proven(
    run: Run, started: Started, forge: Callable[[Run, WeightsFile], WeightsFile], field: str
) -> None:
    right = run.aggregated(run.local(1), run.local(2, 3.0))
    name = run.publish(forge(run, right))
    result = verdict(started(), 1, name)
    assert not result.is_right
    assert (result.round, result.cid, result.lacking, code(result)) == (1, name, "", field)


@pytest.mark.parametrize("values", [[0, 0, 1], [np.nan] * 3], ids=["others", "no numbers"])
def test_initial_weights_that_the_plan_does_not_give_are_wrong(
    run: Run, rpc: str, started: Started, values: list[float]
) -> None:
    meta = GlobalMeta(run.plan_cid, 0, None, "initial")
    file = model_file.write(run.folder / "initial", meta, {"a": np.array(values, np.float32)})
    run.store.add(file.path)
    result = verdict(started(), 0, file.cid)
    assert code(result) == ("file" if np.isnan(values[0]) else "tensor a")


def test_a_lie_in_an_earlier_round_is_found_and_named(run: Run, started: Started) -> None:
    wrong = run.publish(_value(run, run.aggregated(run.local(1), run.local(2, 3.0))))
    later = run.round()
    result = verdict(started(), 2, later)
    assert (result.round, result.cid, code(result)) == (1, wrong, "tensor a")


def test_a_file_called_missing_that_this_learner_had_is_a_lie(run: Run, started: Started) -> None:
    verifier = started()
    assert verdict(verifier, 0, run.parent()).is_right
    first, second = run.local(1), run.local(2, 3.0)
    published = {1: first.cid, 2: second.cid}
    verifier.fetch(published)
    assert wait_until(lambda: verifier.has_tried(published), PATIENCE)
    parent = model_file.read(run.folder / "header" / "global-0.safetensors", run.trainer.shapes())
    lie = run.aggregated(first, parent_file=parent, refused=[Rejection(2, second.cid, "missing")])
    name = run.publish(lie)
    assert code(verdict(verifier, 1, name)) == "refused"
    # Of whoever looks only afterwards nobody can tell that.
    assert verdict(started(), 1, name).is_right


def test_without_a_file_nothing_is_known_until_it_is_there(
    run: Run, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fl_node")
    first, second = run.local(1), run.local(2, 3.0, stored=False)
    name = run.publish(run.aggregated(first, second))
    verifier = started()
    result = verdict(verifier, 1, name)
    assert (result.is_right, result.wrong) == (False, None)
    assert second.cid in result.lacking
    assert [event["round"] for event in logged(caplog) if event["event"] == "verification_waiting"] == [1]

    run.store.add(second.path)
    # Not tried again at once.
    assert verdict(verifier, 1, name) == result
    run.clock.now += TRY_AGAIN
    assert verdict(verifier, 1, name).is_right


def test_weights_that_no_block_shows_yet_are_verified_again_with_the_next_block(run: Run, started: Started) -> None:
    made = run.aggregated(run.local(1), run.local(2, 3.0))
    run.store.add(made.path)
    verifier = started()
    early = verdict(verifier, 1, made.cid)
    assert (early.is_early, early.is_right, early.wrong) == (True, False, None)
    # Without another block there is nothing new to see.
    assert verdict(verifier, 1, made.cid) == early
    run.publish(made)
    assert verdict(verifier, 1, made.cid).is_right


def test_global_weights_that_nobody_has_are_right_if_their_hash_is(run: Run, started: Started) -> None:
    name = run.publish(run.aggregated(run.local(1), run.local(2, 3.0)), stored=False)
    assert is_right(verdict(started(), 1, name), 1, name)


def test_right_global_weights_are_in_this_hosts_store_even_if_the_headers_is_lost(
    run: Run, started: Started, tmp_path: Path
) -> None:
    verifier = started()
    name = run.publish(run.aggregated(run.local(1), run.local(2, 3.0)), stored=False)
    assert is_right(verdict(verifier, 1, name), 1, name)
    run.store.fetch(name, tmp_path / "kept", 10_000, 1.0)
    assert cid.of_file(tmp_path / "kept") == name


def test_a_hash_of_nothing_is_wrong_if_the_local_files_give_another(run: Run, started: Started) -> None:
    right = run.aggregated(run.local(1), run.local(2, 3.0))
    assert run.contract.set_global_weight(NOWHERE, run.contract.chain.nonce()) is not None
    result = verdict(started(), 1, NOWHERE)
    assert (result.round, result.cid, result.lacking, code(result)) == (1, NOWHERE, "", "file")
    assert result.evidence == right.cid


def test_global_weights_that_nobody_has_are_not_rejected_without_all_local_files(run: Run, started: Started) -> None:
    first, second = run.local(1), run.local(2, 3.0, stored=False)
    right = run.aggregated(first, second)
    assert run.contract.set_global_weight(NOWHERE, run.contract.chain.nonce()) is not None
    verifier = started()
    result = verdict(verifier, 1, NOWHERE)
    assert (result.is_right, result.wrong) == (False, None)
    assert NOWHERE in result.lacking
    run.store.add(second.path)
    run.clock.now += TRY_AGAIN
    result = verdict(verifier, 1, NOWHERE)
    assert (code(result), result.evidence) == ("file", right.cid)


def test_a_store_that_does_not_answer_proves_nothing(
    run: Run, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnreachable("the store is away")

    verifier = started()
    with monkeypatch.context() as patched:
        patched.setattr(run.store, "fetch", away)
        result = verdict(verifier, 0, run.parent())
    assert (result.wrong, result.lacking) == (None, "the store is away")
    run.clock.now += TRY_AGAIN
    assert verdict(verifier, 0, run.parent()).is_right


def test_after_a_restart_a_verification_begins_after_the_weights_that_were_attested(
    run: Run, started: Started
) -> None:
    for _ in range(2):
        files = run.local(1, attests=True), run.local(2, 3.0)
        name = run.publish(run.aggregated(*files))
    # The files of round 0 are gone; of round 1 only what ended it is needed.
    for file in run.folder.glob("local-0-*"):
        (Path(run.store.address) / cid.of_file(file)).unlink()
    assert verdict(started(), 2, name).is_right
    # Whoever has attested nothing can't tell.
    stranger = started()
    stranger.start(2, name, 2)
    assert wait_until(stranger.is_done, PATIENCE)
    result = stranger.verdict(2, name)
    assert result is not None
    assert (result.round, result.wrong) == (1, None)
    assert result.lacking


def test_weights_that_take_the_place_of_withdrawn_ones_are_verified(run: Run, started: Started) -> None:
    verifier = started()
    right = run.aggregated(run.local(1), run.local(2, 3.0))
    wrong = run.publish(_value(run, right))
    assert code(verdict(verifier, 1, wrong)) == "tensor a"
    for account in ACCOUNTS.values():
        chain = Chain(run.contract.chain.rpc, account)
        chain.contract(run.contract.address).reject(1, wrong, chain.nonce(), code="tensor a")
    assert run.contract.header() == ALICE.address
    run.store.add(right.path)
    run.site.contract.set_global_weight(right.cid, run.site.chain.nonce())
    assert is_right(verdict(verifier, 1, right.cid), 1, right.cid)


def test_files_are_fetched_while_a_round_is_open_and_a_missing_one_counts_as_tried(
    run: Run, started: Started
) -> None:
    verifier = started()
    first, second = run.local(1), run.local(2, 3.0, stored=False)
    published = {1: first.cid, 2: second.cid}
    assert not verifier.has_tried(published)
    assert verifier.has_tried({})
    verifier.fetch(published)
    assert wait_until(lambda: verifier.has_tried(published), PATIENCE)
    assert not verifier.has_tried({**published, 2: NOWHERE})
