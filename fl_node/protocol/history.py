"""The history of a run: the events in the log of its contract, by round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fl_node.chain.contract import (
    ATTESTED,
    GLOBAL_WEIGHT_SET,
    HEADER_CHANGED,
    KEY_ANNOUNCED,
    LEARNER_REGISTERED,
    LOCAL_WEIGHT_SET,
    MASKS_OPENED,
    REJECTED,
    ROUND_CLOSED,
    WITHDRAWN,
    Contract,
    LogEntry,
)
from fl_node.errors import LogError


@dataclass(frozen=True)
class Round:
    """The events of a round.

    ``started`` published the global weights that it started from. ``closed`` closed it, and ``members`` are the
    learners registered then; an open round and rounds of asynchronous runs have neither. ``attestations`` and
    ``rejections`` are of the global weights that it started from. With masks, ``openings`` published the shares that
    remove them, and ``keys`` announced the keys for the next round in separate transactions.
    """

    number: int
    started: LogEntry
    published: tuple[LogEntry, ...] = ()
    closed: LogEntry | None = None
    members: frozenset[int] = frozenset()
    attestations: tuple[LogEntry, ...] = ()
    rejections: tuple[LogEntry, ...] = ()
    openings: tuple[LogEntry, ...] = ()
    keys: tuple[LogEntry, ...] = ()

    def latest(self) -> dict[int, LogEntry]:
        """Return the last publication of each learner in this round, by nodeId."""
        return {entry.node_id: entry for entry in self.published if entry.node_id is not None}


@dataclass(frozen=True)
class History:
    """All events of a run; ``rounds[r]`` is round r.

    ``deployer`` is the address of the first header, and ``headers`` are the events that changed it. ``withdrawn`` has
    the rounds whose global weights the learners withdrew, and ``publications`` all publications of local weights,
    including those in withdrawn rounds; both are in the order of the log.
    """

    plan_cid: str
    deployer: str
    learners: dict[int, LogEntry] = field(default_factory=dict)
    rounds: tuple[Round, ...] = ()
    withdrawn: tuple[Round, ...] = ()
    headers: tuple[LogEntry, ...] = ()
    publications: tuple[LogEntry, ...] = ()
    first_keys: tuple[LogEntry, ...] = ()
    """The events that announced keys for round 0."""

    def withdrawn_cids(self) -> frozenset[str]:
        """Return the CIDs of all withdrawn global weights; some may have been published again later."""
        return frozenset(str(withdrawn.started.cid) for withdrawn in self.withdrawn)

    def header_at(self, entry: LogEntry) -> str:
        """Return the address of the header at the time of an event."""
        earlier = [str(change.account) for change in self.headers if change < entry]
        return earlier[-1] if earlier else self.deployer

    def attested(self, round_: int) -> frozenset[int]:
        """Return the learners that attested the global weights of a round or later ones, by nodeId.

        A learner that rejected the weights of this round is left out, even if it attested later ones.
        """
        attesting = [entry.node_id for later in self.rounds[round_:] for entry in later.attestations]
        rejecting = {entry.node_id for past in self.rounds[round_ : round_ + 1] for entry in past.rejections}
        return frozenset(node_id for node_id in attesting if node_id is not None and node_id not in rejecting)

    def is_finalized(self, round_: int) -> bool:
        """Return whether more than half of the registered learners attested the global weights of a round."""
        return 2 * len(self.attested(round_)) > len(self.learners)


def read(contract: Contract) -> History:
    """Read a run's history from the log of its contract."""
    return arrange(contract.plan(), contract.deployer(), contract.log())


def read_from(contract: Contract, first: int, block: int) -> History:
    """Read the history of a run from a round on; earlier rounds have no events and no CIDs.

    Parameters
    ----------
    contract
        The run's contract.
    first
        The round.
    block
        The number of a block up to which the round had not started.

    Raises
    ------
    LogError
        The round started before, on the chain that there is now.
    """
    known = [
        *(LogEntry(0, node_id, LEARNER_REGISTERED, "", node_id=node_id) for node_id in contract.learners()),
        *(LogEntry(0, number, GLOBAL_WEIGHT_SET, "", round=number) for number in range(first)),
    ]
    log, count = list[LogEntry](), first
    for entry in contract.log(block):
        if entry.name == GLOBAL_WEIGHT_SET and entry.round is not None:
            if entry.round < count:
                continue  # the block may also have the weights of earlier rounds, which are known
            count = entry.round + 1
        elif entry.name == WITHDRAWN and entry.round is not None:
            count = min(count, entry.round)
        log.append(entry)
    past = arrange("", "", [*known, *log])
    if any(started.started.round != started.number for started in past.rounds):
        raise LogError(f"the log from block {block} on does not begin with round {first}; blocks were replaced")
    return past


def sitting_out(current: Round) -> tuple[int, ...]:
    """Return the learners that can't publish in a round with masks, for they have no key of it.

    Such a learner, which lost its folder or comes back, announces a key for the next round on its own.

    Parameters
    ----------
    current
        The round.
    """
    published = current.latest()
    return tuple(sorted({int(entry.node_id) for entry in current.keys if entry.node_id} - published.keys()))


@dataclass
class _Building:
    started: LogEntry
    published: list[LogEntry] = field(default_factory=list)
    closed: LogEntry | None = None
    members: frozenset[int] = frozenset()
    attestations: list[LogEntry] = field(default_factory=list)
    rejections: list[LogEntry] = field(default_factory=list)
    openings: list[LogEntry] = field(default_factory=list)
    keys: list[LogEntry] = field(default_factory=list)

    def round(self, number: int) -> Round:
        return Round(
            number,
            self.started,
            tuple(self.published),
            self.closed,
            self.members,
            tuple(self.attestations),
            tuple(self.rejections),
            tuple(self.openings),
            tuple(self.keys),
        )


def arrange(plan_cid: str, deployer: str, log: Iterable[LogEntry]) -> History:
    """Arrange the events of a run by round.

    Parameters
    ----------
    plan_cid
        The CID of the run's plan.
    deployer
        The address of the account that deployed the contract.
    log
        The events in the order of the chain.
    """
    learners: dict[int, LogEntry] = {}
    rounds: list[_Building] = []
    withdrawn: list[Round] = []
    headers: list[LogEntry] = []
    publications: list[LogEntry] = []
    first_keys: list[LogEntry] = []
    for entry in log:
        # The log of a contract with other code may contain rounds that do not exist.
        of_round = rounds[entry.round] if entry.round is not None and entry.round < len(rounds) else None
        if entry.name == LEARNER_REGISTERED and entry.node_id is not None:
            learners[entry.node_id] = entry
        elif entry.name == GLOBAL_WEIGHT_SET:
            rounds.append(_Building(entry))
        elif entry.name == HEADER_CHANGED:
            headers.append(entry)
        elif entry.name == LOCAL_WEIGHT_SET:
            publications.append(entry)
            if of_round is not None:
                of_round.published.append(entry)
        elif entry.name == KEY_ANNOUNCED and entry.round == 0:
            first_keys.append(entry)
        elif entry.name == KEY_ANNOUNCED:
            # The key is for the round after the current one.
            if entry.round is not None and entry.round <= len(rounds):
                rounds[entry.round - 1].keys.append(entry)
        elif of_round is None:
            continue
        elif entry.name == MASKS_OPENED:
            of_round.openings.append(entry)
        elif entry.name == ROUND_CLOSED:
            of_round.closed, of_round.members = entry, frozenset(learners)
        elif entry.name == ATTESTED:
            of_round.attestations.append(entry)
        elif entry.name == REJECTED:
            of_round.rejections.append(entry)
        elif entry.name == WITHDRAWN:
            first = rounds.index(of_round)
            withdrawn += [building.round(first + offset) for offset, building in enumerate(rounds[first:])]
            del rounds[first:]
    return History(
        plan_cid,
        deployer,
        dict(sorted(learners.items())),
        tuple(building.round(number) for number, building in enumerate(rounds)),
        tuple(withdrawn),
        tuple(headers),
        tuple(publications),
        tuple(first_keys),
    )
