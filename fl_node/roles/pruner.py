"""Deletes files of old rounds in the background, as the plan's ``retention`` says.

A learner deletes what it published; it signs this in its journal first, so nothing goes without a record. A process
that is killed in between deletes the files when it is started again. Every role then lets its node's store free the
space, also that of copies of other nodes' files, at a moment when it waits for others itself.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from fl_node import events
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.errors import FLNodeError
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.retention import first_kept, prunable
from fl_node.roles.journal import Recorder
from fl_node.roles.loop import Site
from fl_node.runtime.logs import emit

MOST_ROUNDS = 16
"""Rounds that are deleted together at most, unless more have become old meanwhile."""
REORGANISED = 32
"""Blocks that another branch may replace."""


class Pruner:
    """Deletes a role's files of old rounds.

    Parameters
    ----------
    site
        The role's node.
    journal
        Where the role records what it deletes.
    rounds
        The plan's ``retention.rounds``.
    """

    def __init__(self, site: Site, plan: Plan, journal: Recorder, rounds: int) -> None:
        self._site = site
        self._plan = plan
        self._journal = journal
        self._rounds = rounds
        self._batch = max(min(rounds // 2, MOST_ROUNDS), 1)
        # The chain and its connection are this thread's own.
        self._contract = Contract(Chain(site.chain.rpc), site.contract.address)
        self._worker = ThreadPoolExecutor(1, "pruning")
        self._running: Future[events.RoundsPruned | None] | None = None
        self._next = 0
        self._block = 0  # round _next started after this block
        self._tried = -1
        self._problem = ""

    @staticmethod
    def of(site: Site, plan: Plan) -> Pruner | None:
        """Return the pruner of a role; None if the plan keeps all files, or in a simulation, which has no journal."""
        if plan.retention is None or site.journal is None:
            return None
        return Pruner(site, plan, site.journal, plan.retention.rounds)

    def look(self, round_: int, node_id: int | None) -> None:
        """Begin to delete files if enough rounds are old; call this when the role waits for others.

        Parameters
        ----------
        round_
            The current round.
        node_id
            The learner that this role is; None for a header, which has no local files.
        """
        if self._running is not None:
            if not self._running.done():
                return
            self._report(self._running)
        if round_ != self._tried and round_ - self._rounds - self._next >= self._batch:
            self._tried = round_
            self._running = self._worker.submit(self._prune, node_id)

    def finish(self, node_id: int | None) -> None:
        """Delete what is old at the end of the run."""
        if self._running is not None:
            self._report(self._running)
        self._report(self._worker.submit(self._prune, node_id))

    def close(self) -> None:
        """Stop background work."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _report(self, ended: Future[events.RoundsPruned | None]) -> None:
        """Log how a deletion ended; it has ended or is waited for."""
        self._running = None
        try:
            if (event := ended.result()) is not None:
                emit(event)
            self._problem = ""
        except (FLNodeError, OSError) as error:
            if (problem := " ".join(str(error).split())) != self._problem:
                emit(events.PruningFailed(detail=problem))
            self._problem = problem

    def _prune(self, node_id: int | None) -> events.RoundsPruned | None:
        """Delete this role's files of all old rounds, and return what it did; None if nothing is old.

        Raises
        ------
        FLNodeError
            The chain or the store fails.
        OSError
            The journal can't be written.
        """
        began, contract = time.monotonic(), self._contract
        block, self._block = self._block, 0  # after an error all is read again
        past = history.read_from(contract, self._next, block)
        end = first_kept(self._plan, past)
        if end <= self._next:
            self._block = block
            return None
        first, names, recorded = self._next, list[str](), list[tuple[int, str]]()
        if node_id is not None:
            for old in past.rounds[first:end]:
                if mine := list(prunable(past, old, node_id)):
                    names += mine
                    recorded.append((old.number, str(old.started.cid)))
            self._journal.prune(recorded, contract.chain.head())
            self._site.store.remove(names)
        self._site.store.collect()
        self._next, self._block = end, max(past.rounds[end].started.block - REORGANISED, 0)
        if not names:
            return None
        return events.RoundsPruned(
            first=recorded[0][0], last=recorded[-1][0], files=len(names), seconds=time.monotonic() - began
        )
