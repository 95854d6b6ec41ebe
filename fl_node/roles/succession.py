"""What a learner does while the header does not act: it closes a late round, and votes for another header."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fl_node import events
from fl_node.chain.contract import State, View
from fl_node.plan.schema import Plan
from fl_node.roles.loop import Site
from fl_node.roles.verifier import Verifier
from fl_node.runtime.logs import emit

CLOSE_AFTER_HEADER = 5.0
"""Seconds that the header has to close a round after its timeout, before a learner closes it."""


class Succession:
    """Measures how long the header does nothing, and acts then.

    Parameters
    ----------
    site
        The learner's node.
    plan
        The run's plan.
    timeout
        Seconds that the header has, once a round is closed.
    """

    def __init__(self, site: Site, plan: Plan, timeout: float) -> None:
        self._site = site
        self._plan = plan
        self._timeout = timeout
        self._seen: tuple[State, int] | None = None
        self._since = 0.0

    def see(self, state: State, openings: int = 0) -> None:
        """Take the contract's current state into account.

        Parameters
        ----------
        state
            What it says.
        openings
            How many members of a round with masks have opened it.
        """
        if (state, openings) != self._seen:
            self._seen, self._since = (state, openings), self._site.timing.clock.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds without a change of what :meth:`see` is told: a round started or closed, or the header changed."""
        return self._site.timing.clock.monotonic() - self._since

    @property
    def is_late(self) -> bool:
        """Whether the header of a closed round has done nothing for too long."""
        return self.seconds > self._timeout

    def push(
        self, view: View, node_id: int, published: Mapping[int, str], openings: int, verifier: Verifier | None
    ) -> None:
        """Close a round after its timeout, or vote for another header, if the header does not act.

        Parameters
        ----------
        view
            What the contract says now.
        node_id
            This learner's.
        published
            The CIDs of a closed round's local weights, by nodeId; needed once the header is late.
        openings
            How many members of a round with masks have opened it.
        verifier
            Fetches the files that the header needs; None if this learner verifies nothing.
        """
        contract, plan, state = self._site.contract, self._plan, view.state
        if not state.closed:
            # The header asks first.
            late = plan.round_timeout and self.seconds > math.ceil(plan.round_timeout) + CLOSE_AFTER_HEADER
            if late and view.record.published >= plan.required_learners:
                receipt = contract.close_round(view.nonce)
                if receipt is not None:
                    emit(events.RoundClosed(round=state.round, block=receipt.block, gas=receipt.gas))
            return
        if openings < plan.threshold:
            return  # the header can do nothing before learners have removed the masks
        if self.is_late and verifier is not None:
            verifier.fetch(published)
        # As long as a file arrives here, it may arrive at the header too.
        if self.is_late and (verifier is None or verifier.has_tried(published)):
            self.vote(view, node_id)

    def vote(self, view: View, node_id: int) -> None:
        """Vote for the next candidate, unless this learner has.

        Parameters
        ----------
        view
            What the contract says now.
        node_id
            This learner's.
        """
        contract, state = self._site.contract, view.state
        if contract.verdict_of(node_id).voted:
            return
        receipt = contract.vote(state.ballot, view.nonce)
        if receipt is not None:
            header = str(state.header)
            emit(events.HeaderVoted(round=state.round, header=header, block=receipt.block, gas=receipt.gas))
