"""What the chain says happened in a run, put in order by rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fl_node.chain.contract import GLOBAL_WEIGHT_SET, LEARNER_REGISTERED, LOCAL_WEIGHT_SET, Contract, LogEntry

MOST_PUBLICATIONS = 8
"""What a learner may publish in one round; an honest one publishes once or twice. More is rejected unread."""
TOO_OFTEN = f"more than {MOST_PUBLICATIONS} publications in one round"
"""The reason of that rejection."""


def too_often(published: Iterable[LogEntry], node_id: int, round_: int) -> bool:
    """Return whether a learner published more often in a round than is allowed; header and audit call this.

    Parameters
    ----------
    published
        Events of the run's log.
    node_id
        The learner.
    round_
        The round.
    """
    mine = (
        one for one in published if one.name == LOCAL_WEIGHT_SET and (one.node_id, one.round) == (node_id, round_)
    )
    return sum(1 for _ in mine) > MOST_PUBLICATIONS


@dataclass(frozen=True)
class Round:
    """One round: the global weights that it started from and all local weights published in it."""

    number: int
    started: LogEntry
    published: tuple[LogEntry, ...] = ()

    def latest(self) -> dict[int, LogEntry]:
        """Return each learner's last publication in this round, by nodeId."""
        return {entry.node_id: entry for entry in self.published if entry.node_id is not None}


@dataclass(frozen=True)
class History:
    """All events of a run; ``rounds[r]`` is round r."""

    plan_cid: str
    header: str
    learners: dict[int, LogEntry] = field(default_factory=dict)
    rounds: tuple[Round, ...] = ()


def read(contract: Contract) -> History:
    """Read a run's history from the log of its contract."""
    return arrange(contract.plan(), contract.header(), contract.log())


def arrange(plan_cid: str, header: str, log: Iterable[LogEntry]) -> History:
    """Arrange the events of a run by round.

    Parameters
    ----------
    plan_cid
        The CID of the run's plan.
    header
        The address of the header's account.
    log
        The events in the order of the chain.
    """
    learners: dict[int, LogEntry] = {}
    started: list[LogEntry] = []
    published: dict[int, list[LogEntry]] = {}
    for entry in log:
        if entry.name == LEARNER_REGISTERED and entry.node_id is not None:
            learners[entry.node_id] = entry
        elif entry.name == GLOBAL_WEIGHT_SET:
            started.append(entry)
        elif entry.round is not None:
            published.setdefault(entry.round, []).append(entry)
    rounds = tuple(Round(number, entry, tuple(published.get(number, ()))) for number, entry in enumerate(started))
    return History(plan_cid, header, dict(sorted(learners.items())), rounds)
