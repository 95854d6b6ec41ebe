"""The learners' verdicts on the global weights of a run, and the changes of the header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_node.protocol.history import History, Round
from fl_node.protocol.names import HEADER, learner_label
from fl_node.wording import counted


@dataclass(frozen=True)
class Verdict:
    """The verdict on the global weights from which a round starts.

    ``attested`` has the learners that attested these weights or later ones; ``rejected`` has the codes of rejections
    by nodeId. Weights are ``finalized`` when more than half of the learners attested them, and ``withdrawn`` when
    more than half rejected them.
    """

    round: int
    cid: str
    attested: tuple[int, ...] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    finalized: bool = False
    withdrawn: bool = False

    def words(self, learners: int) -> str:
        """Return the verdict in words, such as ``attested by 2 of 3 learners, finalized``."""
        parts = [f"attested by {len(self.attested)} of {counted(learners, 'learner')}"] if self.attested else []
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
    """A change of the header by the learners' votes: the new account, its node, and the block."""

    account: str
    node: str
    block: int


def verdicts(past: History) -> tuple[Verdict, ...]:
    """Return the verdicts on all global weights of a run, including withdrawn ones, in the order of their rounds."""

    def verdict(judged: Round, attested: frozenset[int], *, withdrawn: bool) -> Verdict:
        return Verdict(
            judged.number,
            str(judged.started.cid),
            tuple(sorted(attested)),
            {entry.node_id: str(entry.code) for entry in judged.rejections if entry.node_id is not None},
            not withdrawn and past.is_finalized(judged.number),
            withdrawn,
        )

    current = [verdict(judged, past.attested(judged.number), withdrawn=False) for judged in past.rounds]
    withdrawn = [
        verdict(
            judged,
            frozenset(entry.node_id for entry in judged.attestations if entry.node_id is not None),
            withdrawn=True,
        )
        for judged in past.withdrawn
    ]
    # The sort is stable: withdrawn weights come before those that replaced them.
    return tuple(sorted([*withdrawn, *current], key=lambda listed: listed.round))


def header_changes(past: History) -> tuple[HeaderChange, ...]:
    """Return the changes of the header, in the order of the log."""
    return tuple(
        HeaderChange(
            str(change.account),
            learner_label(change.node_id) if change.node_id else f"the first {HEADER}",
            change.block,
        )
        for change in past.headers
    )
