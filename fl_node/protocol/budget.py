"""What a run with differential privacy has spent, by plan and chain alone.

Each publication of local weights spends what its training spent: the weights are out, whether the header accepts or
rejects them, their learner replaces them, or their round is withdrawn. So all publications of a learner compose, each
hash once. Learners have different examples, so what one spends costs the others nothing: the ε of a run is that
of the learner that spent most. All else that a run publishes is computed from these publications.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fl_node.chain.contract import GLOBAL_WEIGHT_SET, LOCAL_WEIGHT_SET, LogEntry
from fl_node.data.partition import shard_size
from fl_node.plan.schema import Plan
from fl_node.privacy import accounting
from fl_node.privacy.dp import Sampling, sampling
from fl_node.protocol.history import History

TOLERANCE = 0.0015
"""ε in a global file may differ from the recomputed one by so much: processors round in different ways."""
SLACK = 1e-9
LARGEST = 1e9
"""What is more stands in files as this."""
MOST = 2**20
"""Publications that no run reaches."""


@dataclass(frozen=True)
class Spent:
    """What has been spent at some moment of a run.

    ``publications`` counts the different local weights of each learner, by nodeId; ``epsilon`` is the largest ε of a
    learner, rounded up.
    """

    publications: tuple[tuple[int, int], ...]
    epsilon: float


def sampling_of(plan: Plan, node_id: int) -> Sampling:
    """Return how often the training of a learner looks at its examples in one round."""
    return sampling(shard_size(plan, node_id), plan.training.batch_size, plan.training.epochs)


def epsilon(plan: Plan, node_id: int, publications: int) -> float:
    """Return the ε of a learner for the plan's δ.

    Parameters
    ----------
    plan
        The run's plan, complete.
    node_id
        The learner's nodeId.
    publications
        How many different local weights it has published.

    Raises
    ------
    ValueError
        The plan has no differential privacy, or no noise multiplier yet.
    """
    dp = plan.dp
    if dp is None or dp.noise_multiplier is None:
        raise ValueError("what is spent is known of a complete plan with differential privacy")
    one = sampling_of(plan, node_id)
    return min(accounting.epsilon(dp.noise_multiplier, one.rate, one.steps * publications, dp.delta), LARGEST)


@functools.lru_cache(maxsize=1024)
def most_publications(plan: Plan, node_id: int) -> int | None:
    """Return how often a learner may publish within the plan's limit; None if there is no limit."""
    if plan.dp is None or plan.dp.limit is None:
        return None
    limit = plan.dp.limit * (1 + SLACK)
    low, high = 0, 1
    while epsilon(plan, node_id, high) <= limit:
        low, high = high, 2 * high
        if high > MOST:
            return MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon(plan, node_id, middle) <= limit else (low, middle)
    return low


def publications(log: Iterable[LogEntry], before: LogEntry | None = None) -> dict[int, int]:
    """Return how many different local weights each learner published, by nodeId.

    Parameters
    ----------
    log
        Events of the run, in any order.
    before
        The event up to which they count; all count if None.
    """
    different: dict[int, set[str]] = {}
    for entry in log:
        if entry.name == LOCAL_WEIGHT_SET and entry.node_id is not None and (before is None or entry < before):
            different.setdefault(entry.node_id, set()).add(str(entry.cid))
    return {node_id: len(names) for node_id, names in sorted(different.items())}


def publications_at(log: Iterable[LogEntry], round_: int, name: str) -> dict[int, int]:
    """Return the publications before the global weights of a round were published.

    Parameters
    ----------
    log
        All events of the run.
    round_, name
        The round that starts from these weights, and their CID.
    """
    entries = list(log)
    ended = [e for e in entries if (e.name, e.round, e.cid) == (GLOBAL_WEIGHT_SET, round_, name)]
    return publications(entries, max(ended, default=None))


def spent(plan: Plan, published: Mapping[int, int], stated: float | None = None) -> Spent | None:
    """Return what is spent after these publications; None for a plan without differential privacy.

    Parameters
    ----------
    plan
        The run's plan.
    published
        The number of publications by nodeId; those of unknown learners spend nothing, for they have no examples.
    stated
        ε as a file states it; it counts if it is as good as the same.
    """
    if plan.dp is None:
        return None
    known = [(n, count) for n, count in sorted(published.items()) if count and 1 <= n <= plan.learners]
    found = accounting.rounded(max((epsilon(plan, *one) for one in known), default=0.0))
    is_same = stated is not None and abs(stated - found) <= TOLERANCE
    return Spent(tuple(known), stated if is_same and stated is not None else found)


@dataclass(frozen=True)
class Budget:
    """How far the learners of a run are.

    ``published`` counts the different local weights of each learner, by nodeId; ``current`` are the learners that
    have published in the round that is open.
    """

    plan: Plan
    published: Mapping[int, int] = field(default_factory=dict)
    current: frozenset[int] = frozenset()

    @classmethod
    def of(cls, plan: Plan, past: History) -> Budget:
        """Return what is spent by all that was published in a run, in withdrawn rounds too.

        Parameters
        ----------
        plan, past
            The run's plan, and its history by the log.
        """
        current = past.rounds[-1].latest() if past.rounds else {}
        return cls(plan, publications(past.publications), frozenset(current))

    def is_spent(self, node_id: int) -> bool:
        """Return whether a learner may publish nothing new any more."""
        most = most_publications(self.plan, node_id) if 1 <= node_id <= self.plan.learners else None
        return most is not None and self.published.get(node_id, 0) >= most

    def is_over(self) -> bool:
        """Return whether too few learners are left that can publish in the round that is open, or was last.

        An asynchronous run does not end so: no learner publishes more than once per round of the plan there.
        """
        if self.plan.dp is None or self.plan.dp.limit is None or self.plan.mode == "async":
            return False
        nodes = range(1, self.plan.learners + 1)
        able = sum(node_id in self.current or not self.is_spent(node_id) for node_id in nodes)
        return able < self.plan.required_learners

    def epsilons(self) -> dict[int, float]:
        """Return the ε of each learner of the plan, rounded up."""
        return {
            node_id: accounting.rounded(epsilon(self.plan, node_id, self.published.get(node_id, 0)))
            for node_id in range(1, self.plan.learners + 1)
        }

    @property
    def epsilon(self) -> float:
        """The largest of them."""
        return max(self.epsilons().values())

    def overspent(self) -> list[int]:
        """Return the learners that published more than they may."""
        return [
            node_id
            for node_id, count in self.published.items()
            if 1 <= node_id <= self.plan.learners
            and (most := most_publications(self.plan, node_id)) is not None
            and count > most
        ]


def planned(plan: Plan) -> dict[int, float]:
    """Return the ε of each learner at the end of a run without withdrawn rounds, rounded up."""
    return Budget(plan, dict.fromkeys(range(1, plan.learners + 1), plan.rounds)).epsilons()
