"""Decides from the chain whether the privacy budget ends a run; header and learners decide alike."""

from __future__ import annotations

from collections.abc import Sequence

from fl_node import events
from fl_node.chain.contract import Contract, LogEntry, State
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.budget import Budget
from fl_node.runtime.logs import emit


class BudgetWatch:
    """Reads the spent privacy budget of a run; does nothing for a plan without a limit."""

    def __init__(self, contract: Contract, plan: Plan) -> None:
        self._contract = contract
        self._plan = plan
        self._limit = plan.dp.limit if plan.dp is not None else None
        self._seen: tuple[int, str | None, str | None] | None = None
        self._over = False

    def is_over(self, state: State) -> bool:
        """Return whether the run ends because too few learners may publish in the current round.

        Parameters
        ----------
        state
            What the contract says now. Of a synchronous round the answer stays the same as long as it is open: who
            has published in it counts as one who may.
        """
        if self._limit is None or state.closed or state.global_cid is None:
            return False
        seen = state.round, state.global_cid, state.header
        if self._seen != seen:
            budget = self._budget(self._contract.log())
            was_over, self._over, self._seen = self._over, budget.is_over(), seen
            if self._over and not was_over:
                emit(events.BudgetSpent(round=state.round, epsilon=budget.epsilon, limit=self._limit))
        return self._over

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
        budget = self._budget(log)
        if not budget.is_spent(node_id) or any((entry.node_id, entry.cid) == (node_id, name) for entry in log):
            return True
        emit(events.LearnerBudgetSpent(round=round_, epsilon=budget.epsilons()[node_id], limit=self._limit))
        return False

    def _budget(self, log: Sequence[LogEntry]) -> Budget:
        return Budget.of(self._plan, history.arrange("", "", log))
