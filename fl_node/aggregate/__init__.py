"""Rules by which the header makes one global tensor from the learners' local tensors.

A rule is a pure function of arrays, one file each. It is called tensor by tensor, so that memory does not grow
with the number of learners. It is canonical: inputs come in the order of nodeId, sums are in float64 in that
order, and the result is rounded once. So whoever has the local files gets the global file bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fl_node.aggregate.fedavg import fedavg
from fl_node.plan import Plan
from fl_node.weights import GlobalMeta, Input, Refusal, WeightsFile, write_stream

Tensor = npt.NDArray[np.float32]
Rule = Callable[[Iterable[Tensor], Sequence[int]], Tensor]

RULES: dict[str, Rule] = {"fedavg": fedavg}

__all__ = ["RULES", "Rule", "fedavg", "global_file"]


def global_file(
    path: Path,
    plan: Plan,
    plan_cid: str,
    *,
    round_: int,
    parent: str,
    inputs: Sequence[WeightsFile],
    refused: Sequence[Refusal] = (),
    absent: Sequence[int] = (),
) -> WeightsFile:
    """Write the global file that a plan's rule makes of local files; header and audit both call this.

    Parameters
    ----------
    path
        Where to write.
    plan, plan_cid
        The run's plan and the CID it is published by.
    round_
        The round that will start from the new global weights.
    parent
        The CID of the global weights that the local files were trained from.
    inputs
        Checked local files of one model.
    refused, absent
        Learners whose file was not taken, and learners without one.
    """
    inputs = sorted(inputs, key=lambda file: file.local_meta.node_id)
    samples = [file.local_meta.samples for file in inputs]
    counts = samples if plan.aggregation.weighting == "samples" else [1] * len(samples)
    rule = RULES[plan.aggregation.rule]
    meta = GlobalMeta(
        plan=plan_cid,
        round=round_,
        parent=parent,
        rule=plan.aggregation.rule,
        inputs=tuple(
            Input(file.local_meta.node_id, file.cid, file.local_meta.samples, count / sum(counts))
            for file, count in zip(inputs, counts, strict=True)
        ),
        refused=tuple(sorted(refused, key=lambda refusal: refusal.node_id)),
        absent=tuple(sorted(absent)),
    )
    return write_stream(
        path, meta, inputs[0].shapes, lambda name: rule((file.tensor(name) for file in inputs), counts)
    )
