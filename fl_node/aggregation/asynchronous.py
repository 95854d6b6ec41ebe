"""FedAsync and FedBuff: global weights from updates that began at different rounds.

Xie et al., "Asynchronous Federated Optimization", 2019, https://arxiv.org/abs/1903.03934 (FedAsync); Nguyen et al.,
"Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, https://arxiv.org/abs/2106.06639 (FedBuff).

An update that began s rounds ago counts less: 1, (s + 1)^-a, or 1 / (slope · (s - grace) + 1) beyond the grace. The
order in which updates came is not foreseen by any plan; the global file names them in theirs, with the round that
each began at, so whoever has the files makes the same again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_node.aggregation.rule import rounded
from fl_node.artifacts.model_file import GlobalMeta, Input, Rejection, Tensor, WeightsFile, write_stream
from fl_node.plan.schema import AggregationPlan, Plan

DIGITS = 12
"""Decimals of a weight. A power may differ in its last bit between machines; this far it does not."""


@dataclass(frozen=True)
class Update:
    """Local weights, and the global weights that they were trained from."""

    local: WeightsFile
    start: WeightsFile


def discount(settings: AggregationPlan, staleness: int) -> float:
    """Return how much an update counts that began ``staleness`` rounds ago: 1 if it is fresh, else less, never 0."""
    if settings.staleness == "polynomial":
        return round(math.pow(staleness + 1, -(settings.exponent or 0.0)), DIGITS)
    if settings.staleness == "hinge" and staleness > (settings.grace or 0):
        return round(1.0 / ((settings.slope or 1.0) * (staleness - (settings.grace or 0)) + 1.0), DIGITS)
    return 1.0


def asynchronous_file(
    path: Path,
    plan: Plan,
    plan_cid: str,
    *,
    parent: WeightsFile,
    updates: Sequence[Update],
    refused: Sequence[Rejection],
    taken: Sequence[tuple[int, int]],
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
        How many publications of each learner are now taken or refused, by nodeId.
    """
    settings, round_ = plan.aggregation, parent.global_meta.round
    counts = [discount(settings, round_ - update.local.local_meta.round) for update in updates]
    if settings.rule == "fedasync":
        shares = [round((settings.mixing or 1.0) * count, DIGITS) for count in counts]
    else:
        shares = [round(count / len(updates), DIGITS) for count in counts]
    meta = GlobalMeta(
        plan=plan_cid,
        round=round_ + 1,
        parent=parent.cid,
        rule=settings.rule,
        inputs=tuple(
            Input(
                update.local.local_meta.node_id,
                update.local.cid,
                update.local.local_meta.samples,
                share,
                update.local.local_meta.round,
            )
            for update, share in zip(updates, shares, strict=True)
        ),
        refused=tuple(refused),
        taken=tuple(sorted(taken)),
    )

    def mixed(name: str) -> Tensor:
        """Return (1 - α) · global + α · local."""
        share = np.float64(shares[0])
        return rounded((1 - share) * parent.tensor(name) + share * updates[0].local.tensor(name))

    def buffered(name: str) -> Tensor:
        """Return global + rate · Σ share · (local - start)."""
        change = np.zeros(parent.shapes[name])
        for update, share in zip(updates, shares, strict=True):
            change += np.float64(share) * np.subtract(
                update.local.tensor(name), update.start.tensor(name), dtype=np.float64
            )
        return rounded(parent.tensor(name) + np.float64(settings.server_learning_rate or 1.0) * change)

    return write_stream(path, meta, parent.shapes, mixed if settings.rule == "fedasync" else buffered)
