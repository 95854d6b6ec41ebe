"""The privacy budget of a run with differential privacy, computed from plan and chain only.

Each publication of local weights costs the ε of its training: the weights are public, even if the header rejects
them, their learner replaces them, or their round is withdrawn. So all publications of a learner compose, each hash
once. Learners have disjoint examples, so the publications of a learner do not affect the ε of others; the ε of a run
is the largest ε of a learner. Everything else that a run publishes is computed from these publications.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fl_node.chain.contract import GLOBAL_WEIGHT_SET, LOCAL_WEIGHT_SET, LogEntry
from fl_node.data.sampling import sampling_of
from fl_node.plan.schema import Plan
from fl_node.privacy import accounting
from fl_node.protocol.history import History

TOLERANCE = 0.0015
"""Allowed difference between ε in a global file and the recomputed ε: processors round differently."""
SLACK = 1e-9
LARGEST = 1e9
"""Maximum ε in files; larger values are written as this."""
MAX_PUBLICATIONS = 2**20
"""A number of publications that no run reaches."""


@dataclass(frozen=True)
class Spent:
    """The privacy budget spent at some point of a run.

    ``publications`` counts the different local weights of each learner, by nodeId; ``epsilon`` is the largest ε of a
    learner, rounded up.
    """

    publications: tuple[tuple[int, int], ...]
    epsilon: float


def epsilon(plan: Plan, node_id: int, publications: int) -> float:
    """Return the ε of a learner for the plan's δ.

    Parameters
    ----------
    plan
        The run's plan, complete.
    node_id
        The learner's nodeId.
    publications
        The number of different local weights that it has published.

    Raises
    ------
    ValueError
        The plan has no differential privacy, or no noise multiplier yet.
    """
    dp = plan.dp
    if dp is None or dp.noise_multiplier is None:
        raise ValueError("ε needs a complete plan with differential privacy")
    per_round = sampling_of(plan, node_id)
    steps = per_round.steps * publications
    return min(accounting.epsilon(dp.noise_multiplier, per_round.rate, steps, dp.delta), LARGEST)


@functools.lru_cache(maxsize=1024)
def most_publications(plan: Plan, node_id: int) -> int | None:
    """Return the number of publications that the plan's limit allows a learner; None if there is no limit."""
    if plan.dp is None or plan.dp.limit is None:
        return None
    limit = plan.dp.limit * (1 + SLACK)
    low, high = 0, 1
    while epsilon(plan, node_id, high) <= limit:
        low, high = high, 2 * high
        if high > MAX_PUBLICATIONS:
            return MAX_PUBLICATIONS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon(plan, node_id, middle) <= limit else (low, middle)
    return low


def publications(log: Iterable[LogEntry], before: LogEntry | None = None) -> dict[int, int]:
    """Return the number of different local weights that each learner published, by nodeId.

    Parameters
    ----------
    log
        Events of the run, in any order.
    before
        The event before which publications count; all count if None.
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
    """Return the budget spent by these publications; None for a plan without differential privacy.

    Parameters
    ----------
    plan
        The run's plan.
    published
        The number of publications by nodeId; unknown learners are ignored, since they have no examples.
    stated
        The ε in a file; returned instead of the computed ε if they differ by at most :data:`TOLERANCE`.
    """
    if plan.dp is None:
        return None
    counts = [(n, count) for n, count in sorted(published.items()) if count and 1 <= n <= plan.learners]
    largest = accounting.rounded(max((epsilon(plan, node_id, count) for node_id, count in counts), default=0.0))
    is_same = stated is not None and abs(stated - largest) <= TOLERANCE
    return Spent(tuple(counts), stated if is_same and stated is not None else largest)


def is_spent(plan: Plan, node_id: int, published: int) -> bool:
    """Return whether a learner has reached its limit of publications; False without a limit.

    Parameters
    ----------
    plan
        The run's plan, complete.
    node_id
        The learner's nodeId.
    published
        The number of different local weights that it has published.
    """
    limit = most_publications(plan, node_id) if 1 <= node_id <= plan.learners else None
    return limit is not None and published >= limit


def needed_learners(plan: Plan) -> int:
    """Return how many learners must be able to publish in a round so that the run goes on."""
    if plan.mode == "async":
        # After its timeout a round takes fewer updates; and a buffer may have several of one learner.
        rule = plan.asynchronous_rule
        return rule.updates if rule.takes_one_of_each and not plan.round_timeout else 1
    # Without a timeout a round closes only when all have published.
    return plan.required_learners if plan.round_timeout else plan.learners


@dataclass(frozen=True)
class Budget:
    """The privacy budget of a run.

    ``published`` counts the different local weights of each learner, by nodeId; ``current`` has the learners whose
    publications may still count in the current round.
    """

    plan: Plan
    published: Mapping[int, int] = field(default_factory=dict)
    current: frozenset[int] = frozenset()

    @classmethod
    def of(cls, plan: Plan, past: History, taken: Mapping[int, int] | None = None) -> Budget:
        """Return the budget after all publications of a run, including those in withdrawn rounds.

        Parameters
        ----------
        plan, past
            The run's plan and history.
        taken
            Of an asynchronous run: how many publications of each learner the newest global file accepts or rejects,
            by nodeId. If None, all publications may still count.
        """
        if plan.mode == "async":
            every = Counter(entry.node_id for entry in past.publications if entry.node_id is not None)
            current = {node_id for node_id, count in every.items() if count > (taken or {}).get(node_id, 0)}
        else:
            current = set(past.rounds[-1].latest()) if past.rounds else set()
        return cls(plan, publications(past.publications), frozenset(current))

    def is_spent(self, node_id: int) -> bool:
        """Return whether a learner has reached its limit of publications."""
        return is_spent(self.plan, node_id, self.published.get(node_id, 0))

    def spent_learners(self) -> list[int]:
        """Return the learners that have reached their limit of publications, by nodeId."""
        return [node_id for node_id in range(1, self.plan.learners + 1) if self.is_spent(node_id)]

    def is_over(self) -> bool:
        """Return whether too few learners have published or can still publish in the current round."""
        unable = set(self.spent_learners()) - self.current
        return self.plan.learners - len(unable) < needed_learners(self.plan)

    def epsilons(self) -> dict[int, float]:
        """Return the ε of each learner of the plan, rounded up."""
        return {
            node_id: accounting.rounded(epsilon(self.plan, node_id, self.published.get(node_id, 0)))
            for node_id in range(1, self.plan.learners + 1)
        }

    @property
    def epsilon(self) -> float:
        """The largest ε of a learner."""
        return max(self.epsilons().values())

    def overspent(self) -> list[int]:
        """Return the learners that published more often than the limit allows."""
        return [
            node_id
            for node_id, count in self.published.items()
            if 1 <= node_id <= self.plan.learners
            and (limit := most_publications(self.plan, node_id)) is not None
            and count > limit
        ]


def planned(plan: Plan) -> dict[int, float]:
    """Return the ε of each learner at the end of a run without withdrawn rounds, rounded up."""
    return Budget(plan, dict.fromkeys(range(1, plan.learners + 1), plan.rounds)).epsilons()
