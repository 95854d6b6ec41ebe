"""The journal of a role: records the state of each round as the role sees it.

What a role has seen once, it can prove later (:mod:`fl_node.protocol.journal`). It also compares the chain's time
with its own clock: a sealer can date a block back, and a round closes by block time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fl_node import events
from fl_node.chain.contract import Contract, View
from fl_node.chain.node import Head
from fl_node.errors import StoreError
from fl_node.plan.schema import Plan
from fl_node.protocol import journal
from fl_node.protocol.journal import CLOCK_TOLERANCE, FIRST, Entry, Kind
from fl_node.runtime import files
from fl_node.runtime.logs import emit

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

Share = Callable[[Path, str], str]
"""Shares a copy of a file with other nodes under a name, and returns its CID."""


class Recorder:
    """Writes a role's journal: one signed line whenever a round opens or closes.

    Parameters
    ----------
    folder
        The role's folder for this run.
    contract
        The run's contract.
    role
        ``header`` or ``learner``.
    account
        The role's account, which signs.
    share
        Puts a copy of the journal into IPFS; None where others read the folder.
    clock
        Tells the time, in seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        role: str,
        account: LocalAccount,
        share: Share | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = folder / journal.FILE
        self._contract = contract
        self._role = role
        self._account = account
        self._clock = clock
        self._head = FIRST
        self._last: Entry | None = None
        self._state: Entry | None = None  # the last one that says what the chain showed
        self._pruned_before = 0  # of all earlier rounds with files it says that these were deleted
        self._lock = threading.Lock()
        self._top = 0  # the highest block that was seen
        self._newest = ""  # the hash of the block that was seen last
        self._looked: float | None = None  # when that was
        self._is_dated_back = False
        name = journal.name_of(contract.address, role, account.address)
        self._sharing = _Sharing(share, self.path, name) if share else None
        self._continue()

    def see(self, view: View, plan: Plan) -> None:
        """Record the contract's state, if it is new.

        Parameters
        ----------
        view
            What the contract shows.
        plan
            The run's plan.

        Raises
        ------
        OSError
            The journal can't be written, such as when the disk is full; the next call tries again.
        ChainError
            The chain can't be read.
        """
        with self._lock:
            self._see(view, plan)

    def _see(self, view: View, plan: Plan) -> None:
        now, state, head = self._clock(), view.state, view.head
        self._compare_time(view, now)
        if state.global_cid is not None:
            kind: Kind = "closed" if state.closed else "opened"
            last = self._state
            if last is None or (last.kind, last.round, last.cid) != (kind, state.round, state.global_cid):
                if kind == "closed":
                    self._check_closing(state.round, state.global_cid, plan, now)
                self._state = self._append(kind, state.round, state.global_cid, head, now)
                self._share()
                if last is not None and state.round <= last.round and state.global_cid != last.cid:
                    self._top = head.number  # of the chain that has taken the other's place
        self._top = max(self._top, head.number)
        self._newest, self._looked = head.hash, now

    def prune(self, rounds: Iterable[tuple[int, str]], head: Head) -> None:
        """Record that this role deletes its files of old rounds; call this before it does.

        Parameters
        ----------
        rounds
            Their numbers, in ascending order, and the CIDs of the global weights that they started from.
        head
            The newest block.

        Raises
        ------
        OSError
            The journal can't be written; nothing may be deleted then.
        """
        with self._lock:
            for number, name in rounds:
                if number >= self._pruned_before:
                    self._append("pruned", number, name, head, self._clock())
                    self._pruned_before = number + 1
            self._share()

    def close(self) -> None:
        """Wait until the last copy is shared or has failed."""
        if self._sharing is not None:
            self._sharing.close()

    def _continue(self) -> None:
        """Continue the journal of an earlier process; a damaged one is kept beside a new one."""
        if not self.path.exists():
            return
        earlier = journal.read(self.path)
        first = earlier.entries[0] if earlier.entries else None
        mine = (self._contract.address, self._role, self._account.address)
        problem = earlier.problem
        if first is not None and (first.contract, first.role, first.account) != mine:
            problem = "it is of another role or run"
        if problem:
            names = (self.path.with_name(f"damaged-{number}-{journal.FILE}") for number in itertools.count(1))
            kept = next(name for name in names if not name.exists())
            self.path.rename(kept)
            emit(events.JournalDamaged(file=kept.name, detail=problem))
            return
        self._head, self._last = earlier.head, earlier.entries[-1] if earlier.entries else None
        self._state = earlier.states[-1] if earlier.states else None
        self._pruned_before = max((entry.round + 1 for entry in earlier.pruned), default=0)
        self._top = max(self._last.height, self._last.top) if self._last else 0

    def _append(self, kind: Kind, round_: int, global_cid: str, head: Head, now: float) -> Entry:
        entry = Entry(
            number=self._last.number + 1 if self._last else 0,
            previous=self._head,
            contract=self._contract.address,
            role=self._role,
            account=self._account.address,
            kind=kind,
            round=round_,
            cid=global_cid,
            block=head.hash,
            height=head.number,
            sealed=head.time,
            seen=round(now, 3),
            before=None if self._looked is None else round(self._looked, 3),
            top=self._top,
        )
        line = journal.signed(entry, self._account)
        append_line(self.path, line)
        self._head, self._last = journal.digest(line), entry
        return entry

    def _share(self) -> None:
        if self._sharing is not None:
            self._sharing.share()

    def _check_closing(self, round_: int, global_cid: str, plan: Plan, now: float) -> None:
        """Report a round that was closed long before its timeout, by this role's own clock."""
        last = self._state
        if not plan.round_timeout or last is None or last.before is None:
            return
        if (last.kind, last.round, last.cid) != ("opened", round_, global_cid):
            return  # it was closed when this role looked first
        # It opened after the role had last looked before, so it was open for so long at most.
        longest = now - last.before
        is_early = longest + CLOCK_TOLERANCE < plan.round_timeout
        if is_early and self._contract.round_at(round_).published < plan.learners:
            emit(events.RoundClosedEarly(round=round_, seconds=longest, timeout=plan.round_timeout))

    def _compare_time(self, view: View, now: float) -> None:
        """Report a block whose time is before this role's last look, which did not see it."""
        if self._looked is None or view.head.hash == self._newest:
            return
        behind = self._looked - view.head.time
        is_dated_back = behind > CLOCK_TOLERANCE
        if is_dated_back and not self._is_dated_back:
            emit(events.BlockDatedBack(block=view.head.number, seconds=now - view.head.time))
        self._is_dated_back = is_dated_back


SHARED_BYTES_PER_SECOND = 100_000
"""How fast copies of a journal are shared on average, so that a long one is copied less often than it grows."""


class _Sharing:
    """Shares copies of a file in the background, one after the other; the last one at the end at the latest."""

    def __init__(self, share: Share, path: Path, name: str) -> None:
        self._share = share
        self._path = path
        self._name = name
        self._pool = ThreadPoolExecutor(1)
        self._waiting: Future[None] | None = None
        self._failed = False
        self._next = 0.0  # monotonic seconds, before which no further copy is shared
        self._ending = threading.Event()

    def share(self) -> None:
        """Schedule a copy of the file."""
        if self._waiting is not None:
            self._waiting.cancel()  # the next copy has all that this one would have
        self._waiting = self._pool.submit(self._work)

    def close(self) -> None:
        """Wait for the last copy."""
        self._ending.set()
        self._pool.shutdown()

    def _work(self) -> None:
        self._ending.wait(max(self._next - time.monotonic(), 0.0))
        copy = self._path.with_suffix(".copy")  # for the journal grows meanwhile
        try:
            content = self._path.read_bytes()
            files.write(copy, content)
            self._share(copy, self._name)
            self._next = time.monotonic() + len(content) / SHARED_BYTES_PER_SECOND
            self._failed = False
        except (StoreError, OSError) as error:
            if not self._failed:
                emit(events.JournalNotShared(detail=str(error)))
            self._failed = True
        finally:
            copy.unlink(missing_ok=True)


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file atomically, and wait until it is on disk.

    Parameters
    ----------
    path
        The file. Half a line at its end, which a process that was killed left behind, is removed.
    line
        The line, without a line break.

    Raises
    ------
    OSError
        It can't be written; what was there before stays.
    """
    with files.named(path), path.open("a+b", buffering=0) as file:
        size = _whole_lines(file.fileno())
        os.ftruncate(file.fileno(), size)
        content = line + b"\n"
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise


def _whole_lines(handle: int) -> int:
    """Return the number of bytes up to the last line break."""
    size = os.fstat(handle).st_size
    tail = os.pread(handle, journal.MAX_LINE, max(size - journal.MAX_LINE, 0))
    return size - len(tail) + tail.rfind(b"\n") + 1
