"""The files of global weights in an asynchronous run.

The order in which updates came is not foreseen by any plan; the global file names them in theirs, with the round that
each began at, so anyone with the files can recompute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_node.aggregation import asynchronous
from fl_node.artifacts.model_file import GlobalMeta, Input, Rejection, WeightsFile, write_stream
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
    """Write the global file that updates make of the last global weights; header and audit both call this.

    Parameters
    ----------
    path
        Where to write.
    plan, plan_cid
        The run's plan and the CID it is published by.
    parent
        The last global weights.
    updates
        Checked files, in the order in which they were published; one for FedAsync.
    refused
        What was not taken since the last global weights.
    taken
        How many publications of each learner are now accepted or rejected, by nodeId.
    stated
        ε as the file states it that is to be made again; see :func:`fl_node.protocol.budget.spent`.
    """
    spent = budget.spent(plan, dict(taken), stated)
    rule, round_ = plan.asynchronous_rule, parent.global_meta.round
    made = rule.apply(
        parent.mapped(),
        [
            asynchronous.Update(one.local.mapped(), one.start.mapped(), round_ - one.local.local_meta.round)
            for one in updates
        ],
    )
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
            for update, share in zip(updates, made.shares, strict=True)
        ),
        refused=tuple(refused),
        taken=tuple(sorted(taken)),
        spent=None if spent is None else spent.publications,
        epsilon=None if spent is None else spent.epsilon,
    )
    return write_stream(path, meta, parent.shapes, made.tensor)
