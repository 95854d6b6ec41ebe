"""What the learners of a run said of its global weights, and who was the header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_node.protocol.history import History, Round
from fl_node.protocol.names import HEADER, learner_label


@dataclass(frozen=True)
class Verdict:
    """What was said of the global weights that a round starts from.

    ``attested`` are the learners that attested these weights, or later ones; ``rejected`` says by nodeId what a
    learner found wrong. Weights are ``finalized`` when more than half of the learners attested them, and
    ``withdrawn`` when more than half rejected them.
    """

    round: int
    cid: str
    attested: tuple[int, ...] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    finalized: bool = False
    withdrawn: bool = False

    def words(self, learners: int) -> str:
        """Return the verdict in words, such as ``attested by 2 of 3 learners, finalized``."""
        parts = [f"attested by {len(self.attested)} of {learners} learners"] if self.attested else []
        if self.rejected:
            by = "; ".join(f"{learner_label(n)}: {code}" for n, code in self.rejected.items())
            parts.append(f"rejected ({by})")
        if self.withdrawn:
            parts.append("withdrawn")
        elif self.finalized:
            parts.append("finalized")
        return ", ".join(parts) or "nobody attested them"


@dataclass(frozen=True)
class HeaderChange:
    """The learners made another account the header: by whose node, and in which block."""

    account: str
    node: str
    block: int


def verdicts(past: History) -> tuple[Verdict, ...]:
    """Return what was said of all global weights of a run, withdrawn ones too, in the order of their rounds."""

    def of(one: Round, attested: frozenset[int], *, withdrawn: bool) -> Verdict:
        return Verdict(
            one.number,
            str(one.started.cid),
            tuple(sorted(attested)),
            {entry.node_id: str(entry.code) for entry in one.rejections if entry.node_id is not None},
            not withdrawn and past.is_finalized(one.number),
            withdrawn,
        )

    standing = [of(one, past.attested(one.number), withdrawn=False) for one in past.rounds]
    gone = [
        of(one, frozenset(e.node_id for e in one.attestations if e.node_id is not None), withdrawn=True)
        for one in past.withdrawn
    ]
    # What was withdrawn stands before what took its place.
    return tuple(sorted([*gone, *standing], key=lambda one: one.round))


def header_changes(past: History) -> tuple[HeaderChange, ...]:
    """Return who became the header, in the order of the chain."""
    return tuple(
        HeaderChange(
            str(change.account),
            learner_label(change.node_id) if change.node_id else f"the first {HEADER}",
            change.block,
        )
        for change in past.headers
    )
