"""Whether a learner verifies global weights, in a run where a committee does it for the others."""

from __future__ import annotations

from dataclasses import dataclass

from fl_node.artifacts import cid
from fl_node.chain.contract import View
from fl_node.plan.schema import Plan
from fl_node.protocol.committee import Committee, committee_of
from fl_node.protocol.names import learners_label
from fl_node.roles.loop import Site, Waiting, patience_of

DRAW_AGAIN = 1.0
"""Seconds between two draws of a committee."""


@dataclass
class _Drawn:
    """The committee of certain global weights, and what this learner has to do with it."""

    round: int
    weights: str
    committee: Committee
    is_on: bool
    """Whether this learner verifies the weights."""
    at: float
    """Time of the last draw, on the role's clock."""
    since: float | None = None
    """Start of the wait for the committee, on the role's clock."""
    is_outdated: bool = False
    """Whether another committee is to be drawn: sealers have replaced the block, or only now is there one."""


class CommitteeDuty:
    """Whether this learner verifies, or waits until the committee has attested; without committees all verify.

    Parameters
    ----------
    site
        The learner's node.
    plan
        The run's plan.
    timeout
        Seconds that the committee has to attest before all others verify too.
    """

    def __init__(self, site: Site, plan: Plan, timeout: float) -> None:
        self._site = site
        self._plan = plan
        self._timeout = timeout
        self._drawn: _Drawn | None = None

    @property
    def is_relied_on(self) -> bool:
        """Whether this learner leaves the verification to the committee."""
        return self._drawn is not None and not self._drawn.is_on

    @property
    def awaited(self) -> list[int]:
        """The members on whose attestations this learner waits; empty if it verifies."""
        return sorted(self._drawn.committee.members) if self._drawn is not None and not self._drawn.is_on else []

    def is_on(self, view: View, node_id: int, global_cid: str) -> bool:
        """Return whether this learner verifies these global weights.

        In a run with committees: if it is a member, if a learner rejected them, or if the committee is silent for too
        long.

        Parameters
        ----------
        view
            What the contract says now.
        node_id
            This learner's.
        global_cid
            The global weights of the round.
        """
        if self._plan.verifiers != "committee":
            return True
        contract, round_, now = self._site.contract, view.state.round, self._site.timing.clock.monotonic()
        drawn = self._drawn if self._drawn is not None and self._drawn.weights == global_cid else None
        # Sealers may replace the block that it was drawn by, and then another committee is to verify.
        if drawn is None or (not drawn.is_on and (drawn.is_outdated or now - drawn.at > DRAW_AGAIN)):
            committee = committee_of(contract, round_, global_cid, view.learners, self._plan.committee)
            since = None if drawn is None else drawn.since
            drawn = self._drawn = _Drawn(round_, global_cid, committee, node_id in committee.members, now, since)
        if not drawn.is_on:
            waited = 0.0 if drawn.since is None else now - drawn.since
            drawn.is_on = waited > self._timeout or view.record.rejections > 0
        return drawn.is_on

    def take_on(self) -> None:
        """Verify the current global weights, whoever is in the committee."""
        if self._drawn is not None:
            self._drawn.is_on = True

    def end(self) -> None:
        """Rely on no committee any more: the last global weights are verified by all."""
        self._drawn = None

    def wait(self, view: View) -> Waiting | None:
        """Return the wait for the committee; None if it has attested, or if this learner verifies.

        Parameters
        ----------
        view
            What the contract says now, with the attestations of :attr:`awaited`.
        """
        drawn, now = self._drawn, self._site.timing.clock.monotonic()
        if drawn is None or drawn.is_on:
            return None
        members = sorted(drawn.committee.members)
        if view.attested.keys() >= drawn.committee.members:
            silent = [node_id for node_id in members if not view.attested[node_id]]
        else:  # it was drawn after the state was read
            silent = sorted(drawn.committee.members - self._site.contract.attested_by(members, view.block))
        if not silent and members:
            return None
        if drawn.since is None:
            drawn.since = now
        if members:
            detail = f"the committee to attest the global weights; no attestation by {learners_label(silent)} yet"
        else:
            detail = f"a block with the global weights {drawn.weights}, whose hash draws the committee"
        return Waiting(
            "attestation",
            detail,
            learners=tuple(silent),
            until=drawn.since + self._timeout,
            # One attestation of several is no reason to read everything again.
            watch=lambda: self._is_over(drawn),
            seen=False,
            look_again_factor=patience_of(len(view.learners)),
        )

    def _is_over(self, drawn: _Drawn) -> bool:
        """Return whether the committee has attested, a learner has rejected, or another committee is to be drawn."""
        contract, committee = self._site.contract, drawn.committee
        if committee.block is None:
            drawn.is_outdated = contract.published_in(drawn.round, cid.to_digest(drawn.weights)) is not None
            return drawn.is_outdated
        verdicts = contract.verdicts_on(drawn.round, sorted(committee.members), committee.block)
        drawn.is_outdated = verdicts is None
        if verdicts is None:
            return True
        attested, rejections = verdicts
        return attested == committee.members or rejections > 0
