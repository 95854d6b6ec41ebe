"""Publications of local weights: their order, their limits, and the checks of updates.

Header and audit both use this, so they reject the same publications.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from fl_node.aggregation.asynchronous import AsynchronousRule
from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import WeightsFile
from fl_node.chain.contract import LOCAL_WEIGHT_SET, Contract, LogEntry
from fl_node.data.partition import shard_size
from fl_node.errors import WeightsError
from fl_node.plan.schema import Plan
from fl_node.protocol import budget


@dataclass(frozen=True)
class Publication:
    """A publication of a learner: its number among the learner's publications, from 1, and its event."""

    node_id: int
    number: int
    entry: LogEntry

    @property
    def cid(self) -> str:
        """The CID that was published."""
        return str(self.entry.cid)


def publications(log: Sequence[LogEntry]) -> list[Publication]:
    """Return all publications of local weights in the order of the log, each with its number."""
    counts: dict[int, int] = {}
    numbered = []
    for entry in sorted(log):
        if entry.name == LOCAL_WEIGHT_SET and entry.node_id is not None:
            counts[entry.node_id] = counts.get(entry.node_id, 0) + 1
            numbered.append(Publication(entry.node_id, counts[entry.node_id], entry))
    return numbered


def samples_of(plan: Plan, node_id: int) -> int:
    """Return the number of samples in a learner's shard, which is the weight of its local weights.

    Parameters
    ----------
    plan
        The run's plan.
    node_id
        The learner's nodeId; a header can register any number.

    Raises
    ------
    WeightsError
        The plan has no shard for this learner.
    """
    if not 1 <= node_id <= plan.learners:
        raise WeightsError(f"learner {node_id} has no shard; the plan has shards 1 to {plan.learners}", "shard")
    return shard_size(plan, node_id)


def check_origin(file: WeightsFile, plan: Plan, plan_cid: str, node_id: int, *, round_: int, parent: str) -> None:
    """Check that a file contains a learner's local weights, trained from the global weights of a round.

    Parameters
    ----------
    file
        A checked local file.
    plan
        The run's plan.
    plan_cid
        The CID of the plan.
    node_id
        The learner that published the file.
    round_
        The round that it should have been trained in.
    parent
        The CID of the global weights of that round.

    Raises
    ------
    WeightsError
        The metadata differ; the message names the field. Or the plan has no shard for this learner.
    """
    model_file.check_local(
        file, plan=plan_cid, node_id=node_id, round_=round_, parent=parent, samples=samples_of(plan, node_id)
    )


def check_update(
    file: WeightsFile,
    contract: Contract,
    plan: Plan,
    plan_cid: str,
    node_id: int,
    newest: int,
    withdrawn: Container[str] = (),
) -> WeightsFile:
    """Check that a file contains local weights trained from the global weights of a round up to the newest.

    Parameters
    ----------
    file
        A checked local file.
    contract
        The run's contract.
    plan
        The run's plan.
    plan_cid
        The CID of the plan.
    node_id
        The learner that published the file.
    newest
        The newest round whose global weights it may have started from.
    withdrawn
        The CIDs of global weights that the learners withdrew.

    Raises
    ------
    WeightsError
        The metadata differ; the message names the field. Or the global weights that it started from were withdrawn.
    """
    began, start = file.local_meta.round, file.local_meta.parent
    is_current = began <= newest and contract.global_weight_at(began) == start
    if not is_current and start in withdrawn:
        raise WeightsError(f"was trained from global weights {began} ({start}), which were withdrawn", "withdrawn")
    if began > newest:
        raise WeightsError(f"metadata: round is {began}; should be at most {newest}", "metadata.round")
    check_origin(file, plan, plan_cid, node_id, round_=began, parent=str(contract.global_weight_at(began)))
    return file


def check_share(node_id: int, counted: Sequence[int], rule: AsynchronousRule) -> None:
    """Check that another update of a learner does not exceed its share of the last accepted updates.

    Parameters
    ----------
    node_id
        The learner.
    counted
        The learners of the accepted updates, in order; the last ``share_window`` are enough.
    rule
        The plan's rule.

    Raises
    ------
    WeightsError
        The learner would have more than the rule's ``max_share``.
    """
    before = rule.share_window - 1
    share = 1 + list(counted[max(len(counted) - before, 0) :]).count(node_id)
    if share > rule.most_of_one:
        raise WeightsError(
            f"would be number {share} of its learner among the last {rule.share_window} accepted updates; "
            f"should be at most {rule.most_of_one} (the plan's max_share)",
            "max_share",
        )


def is_done(
    plan: Plan,
    node_id: int,
    parent: str,
    taken: Sequence[Publication],
    *,
    new: int,
    counts: bool,
    began: Callable[[Publication], str | None],
) -> bool:
    """Return whether a learner can add nothing more to the next global weights of an asynchronous run.

    So a round that no learner can add to need not wait for its last updates: all have published what they trained
    from its global weights, or have spent their privacy budget, and too many updates were rejected.

    Parameters
    ----------
    plan
        The run's plan.
    node_id
        The learner.
    parent
        The CID of the last global weights.
    taken
        Its publications that are accepted or rejected so far, in order.
    new
        How many of them are so since the last global weights.
    counts
        Whether an update of it is among the next.
    began
        Returns the CID of the global weights that a publication was trained from; None if its file is missing or is
        no local file of this run.
    """
    if counts and plan.asynchronous_rule.takes_one_of_each:
        return True
    if budget.is_spent(plan, node_id, len({one.cid for one in taken})):
        return True
    return new > 0 and began(taken[-1]) in (None, parent)


def check_newer(began: int, last: int | None) -> None:
    """Check that an update was trained from newer global weights than the learner's last accepted update.

    So a learner that publishes more often does not count more often.

    Parameters
    ----------
    began
        The round of the global weights that it was trained from.
    last
        The same round for the learner's last accepted update; None if there is none.

    Raises
    ------
    WeightsError
        The update is not newer.
    """
    if last is not None and began <= last:
        raise WeightsError(
            f"was trained from global weights {began}; should be newer than {last}, those of the learner's last "
            "accepted update",
            "not_newer",
        )
