"""The loop that header and learner have in common: it looks, does the next thing, waits, and gives up in time."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import cid
from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.news import Mark, News
from fl_node.errors import (
    ChainError,
    ChainUnreachable,
    ConfigError,
    ContractError,
    FileMissing,
    GaveUp,
    PlanError,
    StoreError,
    StoreUnreachable,
    WeightsError,
)
from fl_node.nodes.backends import EmbeddedBackend
from fl_node.plan.schema import Plan
from fl_node.roles.loop import Done, Site, Timing, Waiting, fetch_plan, reconcile
from fl_node.runtime.waiting import wait_until
from tests.helpers.accounts import ALICE, FUNDED, HEADER
from tests.helpers.chain import OPEN
from tests.helpers.clock import FakeClock
from tests.helpers.logged import logged
from tests.helpers.reporter import Reporter
from tests.helpers.waiting import eventually

PLAN = Plan.model_validate({"name": "test", "data": {"name": "digits"}})
TIMING = Timing()
Waits = Callable[[], list[tuple[str, str]]]
FOREVER = 10_000.0
"""Seconds that no test lasts."""
HANG = 300.0
"""Seconds after which a role that nobody kills has hung."""
LONG = 200
"""Looks at the chain in a long wait."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def site(rpc: str, tmp_path: Path, clock: FakeClock) -> Site:
    """What a header has at hand, with a new contract, and a clock of the test's own."""
    chain = Chain(rpc, HEADER)
    store = FolderStore(tmp_path / "store")
    (tmp_path / "plan.json").write_bytes(PLAN.to_bytes())
    contract = chain.contract(str(chain.deploy(store.add(tmp_path / "plan.json"), OPEN).contract))
    return Site(chain, contract, store, tmp_path / "work", timing=Timing(clock=clock))


@pytest.fixture
def waits(caplog: pytest.LogCaptureFixture) -> Waits:
    """Return a function that gives the reasons and details of the waits that were logged, in order."""
    caplog.set_level(logging.INFO, "fl_node")

    def waits() -> list[tuple[str, str]]:
        return [(event["reason"], event["detail"]) for event in logged(caplog) if event["event"] == "waiting"]

    return waits


def patient(site: Site, seconds: float) -> Site:
    return replace(site, patience=seconds)


def steps(clock: FakeClock, *results: object) -> tuple[Callable[[], Waiting | None], list[float]]:
    """Return a step that gives or raises these one after the other, then Done, and the times of its calls."""
    left, called = iter(results), []

    def step() -> Waiting | None:
        called.append(clock.monotonic())
        result = next(left, Done())
        if isinstance(result, Exception):
            raise result
        assert result is None or isinstance(result, Waiting)
        return result

    return step, called


def test_a_step_that_did_something_is_followed_by_the_next_without_a_pause(site: Site, clock: FakeClock) -> None:
    step, called = steps(clock, *[None] * 20)
    reconcile(site, step)
    assert called == [called[0]] * 21


def test_a_new_block_ends_a_wait(site: Site, waits: Waits) -> None:
    site = replace(site, timing=Timing(look_again=FOREVER))
    registered = site.chain.nonce()

    def register() -> None:
        eventually(lambda: bool(waits()), 120.0)
        site.contract.register_learner(1, ALICE.address, registered)

    threading.Thread(target=register, daemon=True).start()

    def step() -> Waiting | None:
        if site.contract.learners():
            raise Done
        return Waiting("updates", "learner 1 to be registered")

    reconcile(site, step)
    assert waits() == [("updates", "learner 1 to be registered")]


def test_a_block_that_came_during_a_step_is_not_slept_through(site: Site, clock: FakeClock) -> None:
    def step() -> Waiting | None:
        if site.contract.learners():
            raise Done
        site.contract.register_learner(1, ALICE.address, site.chain.nonce())
        return Waiting("updates", "learner 1 to be registered")

    start = clock.now
    reconcile(site, step)
    assert clock.now - start <= TIMING.first_pause


def test_a_wait_with_an_end_ends_there_without_a_block(site: Site, clock: FakeClock) -> None:
    step, called = steps(clock, Waiting("round_end", "the end of the round", until=clock.now + 0.2))
    reconcile(site, step)
    assert called[1] - called[0] == pytest.approx(0.2)


def test_everything_is_looked_at_again_after_a_while_without_a_block(site: Site, clock: FakeClock) -> None:
    step, called = steps(clock, *[Waiting("updates", "nothing")] * 3)
    reconcile(site, step)
    assert np.diff(called) == pytest.approx([TIMING.look_again] * 3)


class _Quiet:
    """A node's reports that say nothing."""

    is_alive, newest = True, None

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def mark(self) -> Mark:
        return Mark(0, 0, 0)

    def wait(self, since: Mark, timeout: float, *, for_events: bool = False) -> bool:
        self._clock.sleep(timeout)
        return False


@pytest.mark.parametrize(("reports", "factor"), [(True, 8), (False, 1)])
def test_where_many_wait_each_looks_less_often_if_its_node_reports_what_happens(
    site: Site, clock: FakeClock, *, reports: bool, factor: int
) -> None:
    if reports:
        site.chain.news = _Quiet(clock)  # type: ignore[assignment]
    step, called = steps(clock, *[Waiting("round_end", "nothing", look_again_factor=8)] * 3)
    reconcile(site, step)
    assert np.diff(called) == pytest.approx([factor * TIMING.look_again] * 3)


class _Stuck(Chain):
    """A chain that holds a transaction back until the next block."""

    stuck_at: int | None = None

    def holds_back(self) -> bool:
        return self.stuck_at == self.block_number()


class _Distrusted(News):
    """Counts how often the node's reports were found to lack a block."""

    times = 0

    def distrust(self) -> None:
        self.times += 1
        super().distrust()


@pytest.mark.parametrize("has_blocks", [True, False], ids=["a block is lacking", "none is"])
def test_a_node_is_distrusted_only_if_its_reports_lack_a_block(
    site: Site, clock: FakeClock, has_blocks: bool
) -> None:
    reporter = Reporter()
    news = site.chain.news = _Distrusted(reporter.url, site.contract.address, ["0xt"])
    news.start()
    assert news.wait_until_alive(HANG)
    looks = 0

    def step() -> Waiting | None:
        nonlocal looks
        looks += 1
        if looks > 2:
            raise Done
        site.contract.view(HEADER.address)
        if has_blocks:
            Chain(site.chain.rpc, ALICE).send_noop()
        return Waiting("updates", "nothing", until=clock.now)

    try:
        reconcile(site, step)
    finally:
        news.close()
        reporter.close()
    assert news.times == int(has_blocks)


def test_a_chain_that_is_stuck_gets_a_noop(site: Site, clock: FakeClock) -> None:
    chain = _Stuck(site.chain.rpc, HEADER)
    chain.stuck_at = before = chain.block_number()
    calls = 0

    def step() -> Waiting | None:
        nonlocal calls
        calls += 1
        if chain.block_number() > before + 1 or calls > 20:
            raise Done
        return Waiting("updates", "learner 1 to publish")

    reconcile(replace(site, chain=chain), step)
    assert chain.block_number() == before + 1, "one no-op: the block that it made ended that"


def test_a_role_that_waits_for_long_sends_noops_again_and_again_ever_more_seldom(
    site: Site, clock: FakeClock
) -> None:
    # One no-op may come while a line is still cut; then only another brings two chains together.
    before = site.chain.block_number()
    step, called = steps(clock, *[Waiting("updates", "learner 1 to publish")] * LONG)
    reconcile(site, step)
    waited = called[-1] - called[0]
    assert 2 <= site.chain.block_number() - before <= 1 + math.log2(waited / TIMING.quiet)


def test_a_role_that_acts_between_waits_sends_a_noop_as_soon_in_the_second(site: Site, clock: FakeClock) -> None:
    before = site.chain.block_number()
    once = int(1.5 * TIMING.quiet / TIMING.look_again)
    waits = [[Waiting("updates", f"learner {n} to publish")] * once for n in (1, 2)]
    step, _ = steps(clock, *waits[0], None, *waits[1])
    reconcile(site, step)
    assert site.chain.block_number() == before + 2


def test_what_is_waited_for_is_said_once_until_it_changes(site: Site, waits: Waits, clock: FakeClock) -> None:
    first, second = Waiting("updates", "learner 1"), Waiting("updates", "learner 2")
    step, _ = steps(clock, first, first, second, second, first, None, first)
    reconcile(site, step)
    assert waits() == [("updates", f"learner {n}") for n in (1, 2, 1, 1)]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (ChainError("chain: missing trie node"), "chain_error"),
        (ChainUnreachable("chain: no node"), "chain_unreachable"),
        (StoreUnreachable("IPFS is down"), "store_unreachable"),
        (StoreError("IPFS fails"), "store_error"),
        (FileMissing("nobody has it"), "file_missing"),
        (WeightsError("not finite"), "file_rejected"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_trouble_with_chain_or_store_is_said_and_waited_for(
    site: Site, waits: Waits, clock: FakeClock, trouble: Exception, reason: str
) -> None:
    step, called = steps(clock, trouble, trouble, None)
    reconcile(site, step)
    assert len(called) == 4
    assert waits() == [(reason, str(trouble))]


def test_a_full_disk_is_said_and_waited_for(site: Site, waits: Waits, clock: FakeClock) -> None:
    step, _ = steps(clock, OSError(28, "No space left on device", "work/global-1"))
    reconcile(site, step)
    assert waits() == [("disk", "work/global-1: No space left on device")]


@pytest.mark.parametrize(
    "error",
    [ContractError("NotHeader"), PlanError("bad"), ConfigError("bad"), ValueError("a mistake in a program")],
    ids=lambda error: type(error).__name__,
)
def test_what_no_waiting_mends_ends_the_role(site: Site, clock: FakeClock, error: Exception) -> None:
    step, called = steps(clock, error)
    with pytest.raises(type(error)):
        reconcile(site, step)
    assert len(called) == 1


def test_a_role_gives_up_when_nothing_changes_and_says_what_it_waited_for(site: Site, clock: FakeClock) -> None:
    start = clock.now
    with pytest.raises(GaveUp, match=r"gave up after 30 s .*waiting: learner 2 to publish"):
        reconcile(patient(site, 30), lambda: Waiting("updates", "learner 2 to publish"))
    assert 30 < clock.now - start <= 30 + TIMING.look_again


def test_patience_begins_anew_with_each_change(site: Site, clock: FakeClock) -> None:
    waits = [Waiting("updates", "something")] * 14
    step, called = steps(clock, *waits, None, *waits, None, *waits)
    reconcile(patient(site, 30), step)
    assert called[-1] - called[0] > 2 * 30


def test_blocks_that_bring_nothing_are_no_change(site: Site, clock: FakeClock) -> None:
    """Roles that wait send no-op transactions, so that blocks come whatever is amiss."""
    end = clock.now + 100

    def step() -> Waiting:
        assert clock.now < end
        clock.sleep(0.1)
        site.chain.send_noop()
        raise StoreUnreachable("IPFS can't be reached")

    with pytest.raises(GaveUp, match=r"gave up after 3 s .*waiting: IPFS can't be reached"):
        reconcile(patient(site, 3), step)


def test_a_chain_that_is_down_is_given_up_too(clock: FakeClock, tmp_path: Path, free_port: Callable[[], int]) -> None:
    chain = Chain(f"http://127.0.0.1:{free_port()}", ALICE)
    site = Site(chain, Contract(chain, ALICE.address), FolderStore(tmp_path), tmp_path, 20, Timing(clock=clock))
    with pytest.raises(GaveUp, match="can't be reached; is the node running"):
        reconcile(site, lambda: Waiting("updates", str(site.contract.state())))


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[EmbeddedBackend]:
    """A chain in a process of its own."""
    backend = EmbeddedBackend(tmp_path / "nodes", {"header": FUNDED[0].address})
    yield backend
    backend.stop()


def test_a_role_survives_a_chain_that_is_killed_and_comes_back(
    tmp_path: Path, backend: EmbeddedBackend, waits: Waits
) -> None:
    chain = Chain(backend.start()["header"].rpc, HEADER)
    contract = chain.contract(str(chain.deploy(cid.of_bytes(b"plan"), OPEN).contract))
    site = Site(chain, contract, FolderStore(tmp_path), tmp_path, HANG)
    seen: list[int] = []

    def step() -> Waiting | None:
        seen.append(contract.state().round)
        if contract.state().started:
            raise Done
        return Waiting("updates", "the initial weights")

    thread = threading.Thread(target=reconcile, args=(site, step))
    thread.start()
    try:
        assert wait_until(lambda: waits() == [("updates", "the initial weights")], 120.0)
        assert backend._child is not None
        backend._child.process.kill()
        backend._child.process.wait(120)
        assert wait_until(lambda: waits()[-1][0] == "chain_unreachable", 120.0)
        backend.check()
        restarted = Chain(chain.rpc, HEADER)
        restarted.contract(contract.address).set_global_weight(cid.of_bytes(b"weights"), restarted.nonce())
    finally:
        thread.join(120)
    assert not thread.is_alive()


def test_the_plan_that_the_contract_names_is_fetched_and_checked(site: Site) -> None:
    assert fetch_plan(site) == PLAN
    assert (site.folder / "plan.json").read_bytes() == PLAN.to_bytes()


def test_the_plan_is_in_this_hosts_store_even_if_that_of_the_one_who_deployed_it_is_lost(
    site: Site, tmp_path: Path
) -> None:
    class Swarm(FolderStore):
        """Fetches from the store of another host."""

        def fetch(self, *arguments: Any, **options: Any) -> None:
            site.store.fetch(*arguments, **options)

    mine = FolderStore(tmp_path / "mine")
    assert fetch_plan(replace(site, store=Swarm(tmp_path / "mine"))) == PLAN
    mine.fetch(site.contract.plan(), tmp_path / "kept", 10_000, 1.0)
    assert (tmp_path / "kept").read_bytes() == PLAN.to_bytes()


def test_a_plan_that_nobody_has_is_missing(rpc: str, tmp_path: Path) -> None:
    chain = Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(cid.of_bytes(b"nobody has this"), OPEN).contract))
    with pytest.raises(FileMissing, match="the plan: "):
        fetch_plan(Site(chain, contract, FolderStore(tmp_path), tmp_path), 0.0)


def test_a_plan_that_is_none_ends_the_role(rpc: str, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"{}")
    store, chain = FolderStore(tmp_path / "store"), Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(store.add(tmp_path / "junk"), OPEN).contract))
    site = Site(chain, contract, store, tmp_path / "work", 5.0)
    with pytest.raises(PlanError, match=cid.of_bytes(b"{}")):
        reconcile(site, lambda: Waiting("updates", str(fetch_plan(site))))
