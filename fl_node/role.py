"""What header and learner have in common: a loop that looks, does the next thing, and looks again.

All state is on the chain and in the store. A step reads it afresh, so a process that is killed anywhere is
started again and goes on; the folder of a role holds copies only.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_node import plan as plans
from fl_node.chain import Chain, Contract
from fl_node.errors import ChainError, ContractError, FileMissing, GaveUp, StoreError, WeightsError
from fl_node.logs import say
from fl_node.plan import Plan
from fl_node.store import Store

FIRST_PAUSE = 0.01
LAST_PAUSE = 0.25
PAUSE_SHARE = 0.05
"""A pause is this share of the time waited so far: what ends a wait is seen at most 5 % late or 0.25 s."""
LOOK_AGAIN = 2.0
"""Seconds after which everything is read again even if there was no new block."""
STUCK = 2.0
"""Seconds that a transaction may wait on the node for a block before the role nudges the chain."""
QUIET = 45.0
"""Seconds after which a role that waits nudges the chain, whatever its node says; then after twice as many, and on.

By then a peer that was lost has been dialled again; but if the line was still cut, only a later block brings two
chains together, for a node looks at another's chain when it hears of a new block there.
"""


@dataclass(frozen=True)
class Site:
    """What a role has at hand on its host."""

    chain: Chain
    contract: Contract
    store: Store
    folder: Path
    """For copies of files; what is lost there is fetched or made again."""
    patience: float = 0.0
    """Seconds after which a role that waits for the same gives up; 0 means never."""


@dataclass(frozen=True)
class Waiting:
    """Nothing can be done now: what is waited for, and until when (monotonic seconds) at the latest.

    Any new block ends the wait, or else only that ``watch`` returns another value than ``seen``.
    """

    what: str
    until: float | None = None
    watch: Callable[[], object] | None = None
    seen: object = None


class Done(Exception):
    """The run has ended."""


Step = Callable[[], Waiting | None]


def reconcile(site: Site, step: Step) -> None:
    """Repeat ``step`` until it raises :class:`Done`.

    A step does at most one thing and returns None to be called again at once, or says what it waits for; then
    it is called again when there is a new block. A node that can't be reached is waited for likewise.

    Raises
    ------
    GaveUp
        For ``site.patience`` seconds it did nothing and waited for the same. Blocks alone are no change: roles that
        wait nudge the chain.
    """
    said: str | None = None
    quiet = QUIET
    height = functools.partial(_height, site.chain)
    acted = changed = went_on = time.monotonic()
    while True:
        before = height()
        trouble = False
        try:
            waiting = step()
        except Done:
            return
        except ContractError:
            raise
        except (ChainError, StoreError, WeightsError) as error:
            # Also what stands on the chain may be better in the next round: bad weights are no reason to end.
            waiting, trouble = Waiting(str(error)), True
        except OSError as error:  # such as a disk that is full
            waiting, trouble = Waiting(f"{error.filename or site.folder}: {error.strerror or error}"), True
        if waiting is None:
            said, quiet, acted = None, QUIET, time.monotonic()
            changed = went_on = acted
            continue
        if waiting.what != said:
            level = logging.WARNING if trouble else logging.INFO
            say("waiting", f"waiting: {waiting.what}", level=level, what=waiting.what)
            said, went_on = waiting.what, time.monotonic()
        watch, seen = (waiting.watch, waiting.seen) if waiting.watch else (height, before)
        if _wait(watch, seen, acted, waiting.until) or height() != before:
            changed = time.monotonic()
        elif (long := time.monotonic() - acted > quiet) or _is_stuck(site.chain, changed):
            quiet *= 2 if long else 1
            with contextlib.suppress(ChainError):
                site.chain.nudge()
        if site.patience and time.monotonic() - went_on > site.patience:
            raise GaveUp(f"gave up after {site.patience:g} s without any change; was waiting: {waiting.what}")


def fetch_plan(site: Site, timeout: float = 5.0) -> Plan:
    """Return the plan that the contract names.

    Raises
    ------
    PlanError
        The file is not a valid plan.
    FileMissing, StoreError
        It can't be had now.
    """
    name = site.contract.plan()
    path = site.folder / "plan.json"
    site.folder.mkdir(parents=True, exist_ok=True)
    try:
        site.store.fetch(name, path, plans.MAX_PLAN_BYTES, timeout)
    except FileMissing as error:
        raise FileMissing(f"the plan: {error}") from error
    return plans.from_bytes(path.read_bytes(), f"plan {name}")


def _height(chain: Chain) -> int | None:
    try:
        return chain.block_number()
    except ChainError:
        return None


def _is_stuck(chain: Chain, changed: float) -> bool:
    try:
        return time.monotonic() - changed > STUCK and chain.holds_back()
    except ChainError:
        return False


def _wait(watch: Callable[[], object], seen: object, since: float, until: float | None) -> bool:
    """Return True as soon as there is something new to see, False when it is time to look anyway."""
    end = time.monotonic() + LOOK_AGAIN
    if until is not None:
        end = min(end, until)
    while (now := time.monotonic()) < end:
        pause = min(max(PAUSE_SHARE * (now - since), FIRST_PAUSE), LAST_PAUSE)
        time.sleep(min(pause, end - now))
        try:
            if watch() != seen:
                return True
        except ChainError:
            return True
    return False
