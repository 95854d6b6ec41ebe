"""The end of a run for its header and standbys: after the plan's rounds or its privacy budget, finalized or not."""

from __future__ import annotations

from fl_node import events
from fl_node.chain.contract import State
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.names import learners_have
from fl_node.roles.budget_watch import BudgetWatch, ReadGlobal
from fl_node.roles.loop import Site, Waiting
from fl_node.runtime.logs import emit


class Ending:
    """Tells when a run ends, and waits until its last weights are attested.

    Parameters
    ----------
    site, plan
        The role's node and the run's plan.
    read
        Reads the newest global weights.
    """

    def __init__(self, site: Site, plan: Plan, read: ReadGlobal) -> None:
        self._site = site
        self._plan = plan
        self._budget = BudgetWatch(site.contract, plan, read)
        self._since: tuple[str, float] | None = None  # the last weights of the run, and when they were seen first
        self._given_up = ""  # the weights that too few attested in time

    def is_last(self, state: State) -> bool:
        """Return whether the current global weights are the last of the run."""
        return state.round >= self._plan.rounds or self._budget.is_over(state)

    def wait_for_attestations(self, state: State) -> Waiting | None:
        """Return the wait until more than half of the learners attest the last weights.

        Parameters
        ----------
        state
            What the contract says now.
        """
        plan, contract, now = self._plan, self._site.contract, self._site.timing.clock.monotonic()
        if not plan.is_verified or (past := history.read(contract)).is_finalized(state.round):
            return None
        name = str(state.global_cid)
        if self._since is None or self._since[0] != name:
            self._since = name, now
        attested = past.attested(state.round)
        if plan.round_timeout and now - self._since[1] > plan.round_timeout:
            # The plan does not want to wait for those who are gone.
            if self._given_up != name:
                self._given_up = name
                emit(events.RunNotFinalized(round=state.round, attestations=len(attested)))
            return None
        silent = tuple(node_id for node_id in sorted(past.learners) if node_id not in attested)
        text = f"more than half of the learners to attest global weights {state.round}; {learners_have(silent)} not"
        return Waiting("attestation", text, round=state.round, learners=silent)
