"""Decides from chain and files whether the privacy budget ends a run; header and learners decide alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from fl_node import events
from fl_node.artifacts.model_file import WeightsFile
from fl_node.chain.contract import Contract, LogEntry, State
from fl_node.errors import WeightsError
from fl_node.plan.schema import Plan
from fl_node.protocol import budget, history
from fl_node.protocol.budget import Budget
from fl_node.runtime.logs import emit

ReadGlobal = Callable[[int, str], WeightsFile]
"""Returns the global weights of a round with this CID."""


class BudgetWatch:
    """Reads the spent privacy budget of a run; does nothing for a plan without a limit.

    Parameters
    ----------
    contract, plan
        The run's contract and plan.
    read
        Reads the newest global weights: in an asynchronous run they say which publications are accepted or rejected.
    """

    def __init__(self, contract: Contract, plan: Plan, read: ReadGlobal) -> None:
        self._contract = contract
        self._plan = plan
        self._read = read
        self._limit = plan.dp.limit if plan.dp is not None else None
        self._seen: tuple[int, str | None, str | None, int] | None = None
        self._over = False

    def is_over(self, state: State) -> bool:
        """Return whether the run ends because too few learners may publish in the current round.

        Parameters
        ----------
        state
            What the contract says now. Of a synchronous round the answer stays the same as long as it is open: who
            has published in it counts as one who may.

        Raises
        ------
        StoreError
            All learners of an asynchronous run have spent their budget, and its newest global weights are missing.
        """
        if self._limit is None or state.closed or state.global_cid is None:
            return False
        is_async = self._plan.mode == "async"
        log = self._contract.log() if is_async else ()
        seen = state.round, state.global_cid, state.header, len(log)
        if self._seen != seen:
            past = history.arrange("", "", log or self._contract.log())
            taken = self._taken(past, state.round, state.global_cid) if is_async else None
            budget_ = Budget.of(self._plan, past, taken)
            was_over, self._over, self._seen = self._over, budget_.is_over(), seen
            if self._over and not was_over:
                emit(events.BudgetSpent(round=state.round, epsilon=budget_.epsilon, limit=self._limit))
        return self._over

    def spent_learners(self) -> list[int]:
        """Return the learners that publish nothing more, by nodeId."""
        return self._budget(self._contract.log()).spent_learners() if self._limit is not None else []

    def may_publish(self, node_id: int, round_: int, name: str | None = None) -> bool:
        """Return whether a learner may publish; log it if not.

        Parameters
        ----------
        node_id
            The learner.
        round_
            The round that the log names.
        name
            The CID of what it wants to publish; what it has published before costs nothing again.
        """
        if self._limit is None:
            return True
        log = self._contract.log()
        spent = self._budget(log)
        if not spent.is_spent(node_id) or any((entry.node_id, entry.cid) == (node_id, name) for entry in log):
            return True
        emit(events.LearnerBudgetSpent(round=round_, epsilon=spent.epsilons()[node_id], limit=self._limit))
        return False

    def _budget(self, log: Sequence[LogEntry]) -> Budget:
        return Budget.of(self._plan, history.arrange("", "", log))

    def _taken(self, past: history.History, round_: int, name: str) -> Mapping[int, int] | None:
        """Return what the newest global weights accept or reject, if that can end the run; None if it is unknown."""
        plan = self._plan
        spent = Budget.of(plan, past).spent_learners()
        if plan.learners - len(spent) >= budget.needed_learners(plan):
            return None
        # Wrong weights end nothing: the learners reject them.
        with suppress(WeightsError):
            return dict(self._read(round_, name).global_meta.taken or ())
        return None
