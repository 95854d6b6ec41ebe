"""The files of global weights in an asynchronous run.

The order of updates depends on when they arrive, so the global file lists them in order, with the round that each
started from. Anyone with the files can recompute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_node.aggregation import Aggregate, asynchronous
from fl_node.artifacts.model_file import GlobalMeta, Input, Rejection, WeightsFile, write_blocks
from fl_node.plan.schema import Plan
from fl_node.protocol import budget


@dataclass(frozen=True)
class Update:
    """Local weights, and the global weights that they were trained from."""

    local: WeightsFile
    start: WeightsFile


def asynchronous_file(
    path: Path,
    plan: Plan,
    plan_cid: str,
    *,
    parent: WeightsFile,
    updates: Sequence[Update],
    refused: Sequence[Rejection],
    taken: Sequence[tuple[int, int]],
    stated: float | None = None,
) -> WeightsFile:
    """Write the global file that results from applying updates to the last global weights.

    Header and audit both call this.

    Parameters
    ----------
    path
        Where to write the file.
    plan, plan_cid
        The run's plan and its CID.
    parent
        The last global weights.
    updates
        Checked files, in the order of their publication, as many as the rule takes; fewer after a timeout, or if no
        learner can add more. Without any the weights stay as they are.
    refused
        The updates that were rejected since the last global weights.
    taken
        The number of publications of each learner that are accepted or rejected so far, by nodeId.
    stated
        The ε in the file that is recomputed, if any; see :func:`fl_node.protocol.budget.spent`.
    """
    spent = budget.spent(plan, dict(taken), stated)
    rule, round_ = plan.asynchronous_rule, parent.global_meta.round
    inputs = [
        asynchronous.Update(
            update.local.on_demand(), update.start.on_demand(), round_ - update.local.local_meta.round
        )
        for update in updates
    ]
    aggregate = rule.apply(parent.on_demand(), inputs) if inputs else Aggregate((), parent.tensor)
    meta = GlobalMeta(
        plan=plan_cid,
        round=round_ + 1,
        parent=parent.cid,
        rule=rule.rule,
        inputs=tuple(
            Input(
                update.local.local_meta.node_id,
                update.local.cid,
                update.local.local_meta.samples,
                share,
                update.local.local_meta.round,
            )
            for update, share in zip(updates, aggregate.shares, strict=True)
        ),
        refused=tuple(refused),
        taken=tuple(sorted(taken)),
        spent=None if spent is None else spent.publications,
        epsilon=None if spent is None else spent.epsilon,
    )
    return write_blocks(path, meta, parent.shapes, aggregate.values)
