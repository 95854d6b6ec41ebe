"""The loop of header and learner: read the state, take the next step, and repeat.

All state is on the chain and in the store. A step reads it afresh, so a process that is killed anywhere is
started again and goes on; the folder of a role holds copies only.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fl_node import events
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.artifacts.prefetch import Prefetch
from fl_node.artifacts.store import Store
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract, View
from fl_node.chain.news import Mark
from fl_node.errors import (
    ChainError,
    ChainUnreachable,
    ContractError,
    FileMissing,
    GaveUp,
    StoreError,
    StoreUnreachable,
    WeightsError,
)
from fl_node.events import Wait
from fl_node.plan.schema import Plan
from fl_node.protocol.reader import Reader
from fl_node.roles.journal import Recorder
from fl_node.runtime.logs import emit

MAX_PREFETCHED = 4
"""The most learners whose files are fetched before a block has their transactions. With 16, the pending transactions
that every role is told of take more time than the fetches save (docs/benchmarks.md)."""

FEW = 16
"""The most learners that each look at the contract as often as a header while they wait."""


class Clock(Protocol):
    """A clock that can sleep, such as the module :mod:`time`."""

    def monotonic(self) -> float:
        """Return monotonic seconds."""

    def sleep(self, seconds: float, /) -> None:
        """Sleep for a number of seconds."""


@dataclass(frozen=True)
class Timing:
    """The timing of a role, in seconds, and its clock."""

    first_pause: float = 0.01
    last_pause: float = 0.25
    pause_share: float = 0.05
    """A pause as a share of the time waited so far, so a wait ends at most 5 % or 0.25 s late."""
    look_again: float = 2.0
    """Time after which everything is read again without a new block."""
    stuck: float = 2.0
    """Time that a transaction may be pending before the role sends a no-op transaction."""
    quiet: float = 45.0
    """A role that waits sends a no-op transaction after this time, whatever its node says; then after twice as long.

    By then a peer that was lost has been dialled again; but if the line was still cut, only a later block brings two
    chains together, for a node looks at another's chain when it hears of a new block there.
    """
    clock: Clock = time


@dataclass(frozen=True)
class Site:
    """The resources of a role on its host."""

    chain: Chain
    contract: Contract
    store: Store
    folder: Path
    """Folder for copies of files; lost files are fetched or computed again."""
    patience: float = 0.0
    """Seconds after which a role gives up a wait without progress; 0 means never."""
    timing: Timing = field(default_factory=Timing)
    secret: Path | None = None
    """The file of the host's secret, created on first use; None refuses private runs."""
    journal: Recorder | None = None
    """Records each round as the role sees it, signed; None in a simulation."""

    def see(self, view: View, plan: Plan) -> None:
        """Record the contract's state in the journal, if it is new."""
        if self.journal is not None:
            self.journal.see(view, plan)

    def ring(self) -> None:
        """Wake the role's loop after a change that no block shows."""
        if self.chain.news is not None:
            self.chain.news.ring()

    def prefetch(self, plan: Plan, *functions: str) -> None:
        """Fetch files as soon as a transaction publishes them, before its block; not in a run of many learners.

        Each role then hears of each transaction, so the work would grow with the square of the learners.

        Parameters
        ----------
        plan
            The run's plan.
        functions
            The contract's functions that publish the files which the role needs.
        """
        store = self.store
        if self.chain.news is not None and isinstance(store, IpfsStore) and plan.learners <= MAX_PREFETCHED:
            self.contract.listen(Prefetch(store), functions)

    def close(self) -> None:
        """Stop background work."""
        if self.chain.news is not None:
            self.chain.news.close()
        if self.journal is not None:
            self.journal.close()


@dataclass(frozen=True)
class Waiting:
    """The role can't act now: the reason, and the latest end of the wait (seconds on the role's clock).

    Any new block ends the wait, or else only that ``watch`` returns another value than ``seen``.
    """

    reason: Wait
    detail: str
    """For people."""
    round: int | None = None
    learners: tuple[int, ...] | None = None
    """The learners whose work is missing."""
    arriving: dict[str, float] | None = None
    """The received share of the files that are arriving, 0 to 1, by nodeId."""
    until: float | None = None
    watch: Callable[[], object] | None = None
    seen: object = None
    by_event: bool = False
    """Whether only an event of the contract can change what ``watch`` returns, so that other blocks need no look.

    An event other than published or attested local weights; see :data:`fl_node.chain.contract.TURNS`.
    """
    look_again_factor: int = 1
    """How many times :attr:`Timing.look_again` the wait may last without a report, if the node sends reports.

    For roles of which many wait, see :func:`patience_of`: their looks would take more time than their work.
    """

    def event(self) -> events.Waiting:
        """Return the event that the role logs."""
        return events.Waiting(
            reason=self.reason,
            detail=self.detail,
            round=self.round,
            learners=self.learners,
            arriving=self.arriving,
        )


def patience_of(learners: int) -> int:
    """Return the factor by which each of many waiting learners looks less often than one of few.

    Parameters
    ----------
    learners
        The number of registered learners. Up to :data:`FEW` look as often as a header.
    """
    return math.ceil(learners / FEW)


class Done(Exception):
    """The run has ended."""


Step = Callable[[], Waiting | None]


def reconcile(site: Site, step: Step) -> None:
    """Repeat ``step`` until it raises :class:`Done`.

    A step takes at most one action. It returns None to be called again at once, or what it waits for; then the loop
    calls it again when there is a new block. The loop also waits for a node that can't be reached.

    Raises
    ------
    ContractError
        The contract reverted a transaction.
    GaveUp
        For ``site.patience`` seconds it took no action and waited for the same thing. New blocks alone do not count,
        because waiting roles send no-op transactions.
    """
    timing, clock = site.timing, site.timing.clock
    said: events.Waiting | None = None
    quiet = timing.quiet
    newest = functools.partial(_newest, site.chain)
    compared: tuple[Mark, int] | None = None
    acted = changed = went_on = clock.monotonic()
    while True:
        mark, before, seen = _mark(site.chain), newest(), site.chain.seen
        try:
            waiting = step()
        except Done:
            return
        except ContractError:
            raise
        except (ChainError, StoreError, WeightsError) as error:
            # Also what stands on the chain may be better in the next round: bad weights are no reason to end.
            waiting = Waiting(_reason(error), str(error))
        except OSError as error:  # such as a disk that is full
            problem = f"{error.filename or site.folder}: {error.strerror or error}"
            waiting = Waiting("disk", problem)
        if waiting is None:
            said, quiet, acted = None, timing.quiet, clock.monotonic()
            changed = went_on = acted
            continue
        if (event := waiting.event()) != said:
            emit(event)
            said, went_on = event, clock.monotonic()
        if not waiting.watch:
            waiting = replace(waiting, watch=newest, seen=before)
        if _wait(site, waiting, acted, mark) or newest() != before:
            changed = clock.monotonic()
        elif (long := clock.monotonic() - acted > quiet) or _is_stuck(site, changed):
            quiet *= 2 if long else 1
            with contextlib.suppress(ChainError):
                site.chain.send_noop()
        if site.chain.seen is not seen:  # the step read it
            compared = _compared(site.chain, mark, compared)
        if site.patience and clock.monotonic() - went_on > site.patience:
            raise GaveUp(
                f"gave up after {site.patience:g} s without progress; was waiting: {waiting.detail}", waiting.reason
            )


def fetch_plan(site: Site, timeout: float = 5.0) -> Plan:
    """Return the contract's plan, and add it to this host's store.

    Raises
    ------
    PlanError
        The file is not a valid plan.
    FileMissing
        Nothing of the file arrived in time.
    StoreError
        The store fails, or the file does not match its CID.
    """
    name = site.contract.plan()
    site.folder.mkdir(parents=True, exist_ok=True)
    try:
        plan = Reader(site.store, site.folder).read_plan(name, timeout, site.folder / "plan.json")
    except FileMissing as error:
        raise FileMissing(f"the plan: {error}") from error
    # So that the run outlives the host that deployed it.
    site.store.add(site.folder / "plan.json")
    return plan


def _reason(error: Exception) -> Wait:
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    raise error


_REASONS: dict[type[Exception], Wait] = {
    ChainUnreachable: "chain_unreachable",
    ChainError: "chain_error",
    StoreUnreachable: "store_unreachable",
    FileMissing: "file_missing",
    StoreError: "store_error",
    WeightsError: "file_rejected",
}


def _mark(chain: Chain) -> Mark | None:
    """Return the number of the node's reports; None if it sends none."""
    return chain.news.mark() if chain.news is not None and chain.news.is_alive else None


def _newest(chain: Chain) -> object:
    try:
        return chain.newest()
    except ChainError:
        return None


def _compared(chain: Chain, mark: Mark | None, last: tuple[Mark, int] | None) -> tuple[Mark, int] | None:
    """Return what the node has reported, and its height; its reports are dropped if they lack a block."""
    if chain.news is None or mark is None or chain.seen is None:
        return None
    now = mark, chain.seen.number
    if last is not None and last[0].blocks == mark.blocks and last[1] != now[1]:
        chain.news.distrust()
    return now


def _is_stuck(site: Site, changed: float) -> bool:
    try:
        return site.timing.clock.monotonic() - changed > site.timing.stuck and site.chain.holds_back()
    except ChainError:
        return False


def _wait(site: Site, waiting: Waiting, since: float, mark: Mark | None) -> bool:
    """Return True as soon as there is news, False when it is time to read the state anyway."""
    timing, clock, news = site.timing, site.timing.clock, site.chain.news
    factor = waiting.look_again_factor if mark is not None else 1
    end = clock.monotonic() + factor * timing.look_again
    if waiting.until is not None:
        end = min(end, waiting.until)
    while (now := clock.monotonic()) < end:
        if news is not None and news.is_alive and mark is not None:
            if not news.wait(mark, end - now, for_events=waiting.by_event):
                continue
            mark = news.mark()
        else:
            pause = min(max(timing.pause_share * (now - since), timing.first_pause), timing.last_pause)
            clock.sleep(min(pause, end - now))
            mark = _mark(site.chain)
        try:
            if waiting.watch is None or waiting.watch() != waiting.seen:
                return True
        except ChainError:
            return True
    return False
