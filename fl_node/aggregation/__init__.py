"""Rules by which the header makes global weights from the learners' local weights.

A rule is a pure function of arrays, one file each, named as its paper names it. It is canonical: inputs come in the
order of nodeId, arithmetic is float64 in a fixed order, and the result is rounded once. So whoever has the local
files gets the global file bit for bit. Tensors are read from mapped files when they are asked for, one at a time, and
where a rule needs those of all learners at once, some rows at a time; so memory grows little with their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fl_node.aggregation import ensemble
from fl_node.aggregation.bounds import check_bounds
from fl_node.aggregation.clipping import norm_clipping
from fl_node.aggregation.ensemble import Evidence
from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.fedopt import fedadam, fedavgm
from fl_node.aggregation.krum import krum, multi_krum
from fl_node.aggregation.median import median
from fl_node.aggregation.rule import Aggregate, Rule, by_piece, by_tensor
from fl_node.aggregation.trimmed_mean import trimmed_mean
from fl_node.artifacts.model_file import (
    GlobalMeta,
    Input,
    Rejection,
    Shapes,
    Tensors,
    WeightsFile,
    write,
    write_stream,
)
from fl_node.plan.schema import Plan

RULES: dict[str, Rule] = {
    "fedavg": by_tensor(lambda tensors, counts, _settings: fedavg(tensors, counts)),
    "median": by_piece(lambda tensors, _counts, _settings: median(tensors)),
    "trimmed_mean": by_piece(lambda tensors, _counts, settings: trimmed_mean(tensors, settings.byzantine or 0)),
    "krum": krum,
    "multi_krum": multi_krum,
    "norm_clipping": norm_clipping,
    "fedavgm": fedavgm,
    "fedadam": fedadam,
}

STATE: Mapping[str, tuple[str, ...]] = {
    "fedavgm": ("momentum",),
    "fedadam": ("momentum", "second_momentum"),
}
"""What a rule carries from round to round: for each tensor of the model one more in the global file, under this name.

So the state is published and hashed with the weights, and whoever recomputes a round needs nothing else.
"""

FOLLOWS_PARENT = frozenset({"norm_clipping", *STATE})
"""Rules that need the global weights that the local weights were trained from; see :func:`follows_parent`."""

__all__ = [
    "FOLLOWS_PARENT",
    "RULES",
    "STATE",
    "Aggregate",
    "Evidence",
    "Rule",
    "check_bounds",
    "fedavg",
    "follows_parent",
    "global_file",
    "global_shapes",
    "initial_file",
    "local_shapes",
]


def follows_parent(plan: Plan) -> bool:
    """Return whether global weights are made of the last ones too, not of the local weights alone."""
    # In an ensemble an architecture whose learners are all away keeps its weights.
    return plan.aggregation.rule in FOLLOWS_PARENT or plan.mode == "ensemble"


def global_shapes(plan: Plan, shapes: Shapes) -> Shapes:
    """Return names and shapes of the tensors of a global file: the model's, and what else the plan has there.

    That is what the rule carries along, and of an ensemble what each architecture counts for.
    """
    state = {
        f"{kind}/{name}": shape for kind in STATE.get(plan.aggregation.rule, ()) for name, shape in shapes.items()
    }
    return {**shapes, **state, **ensemble.extra_shapes(plan)}


def local_shapes(plan: Plan, shapes: Shapes, node_id: int) -> Shapes:
    """Return those of a model's tensors, or of a global file's, that a learner's local file has."""
    if plan.mode == "ensemble":
        prefix = f"{plan.architecture_of(node_id)}/"
        return {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    carried = tuple(f"{kind}/" for kind in STATE.get(plan.aggregation.rule, ()))
    return {name: shape for name, shape in shapes.items() if not name.startswith(carried)} if carried else shapes


def initial_file(path: Path, plan: Plan, plan_cid: str, tensors: Tensors) -> WeightsFile:
    """Write the file of weights that a run starts from; deployment, header and audit all call this."""
    shapes = global_shapes(plan, {name: tensor.shape for name, tensor in tensors.items()})
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name not in tensors}
    if ensemble.WEIGHTS in state:
        # Nothing is measured of models that know nothing yet.
        state[ensemble.WEIGHTS] = np.full(shapes[ensemble.WEIGHTS], 1 / len(plan.architectures), np.float32)
    meta = GlobalMeta(plan=plan_cid, round=0, parent=None, rule="initial")
    return write(path, meta, {**tensors, **state})


def global_file(
    path: Path,
    plan: Plan,
    plan_cid: str,
    *,
    round_: int,
    parent: str,
    inputs: Sequence[WeightsFile],
    parent_file: WeightsFile | None = None,
    evidence: Evidence | None = None,
    refused: Sequence[Rejection] = (),
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
    parent_file
        The file of that CID; needed where :func:`follows_parent` says so.
    evidence
        Of an ensemble whose plan measures its members: what an architecture's weights say of the held-out images.
    refused, absent
        Learners whose file was not taken, and learners without one.
    """
    inputs = sorted(inputs, key=lambda file: file.local_meta.node_id)
    samples = [file.local_meta.samples for file in inputs]
    counts = samples if plan.aggregation.weighting == "samples" else [1] * len(samples)
    last = parent_file.mapped() if parent_file else {}
    if plan.mode == "ensemble":
        made = ensemble.ensemble(plan, inputs, counts, last, evidence)
    else:
        made = RULES[plan.aggregation.rule]([file.mapped() for file in inputs], counts, last, plan.aggregation)
    # Files that were checked have the shapes that the plan gives them.
    shapes = parent_file.shapes if parent_file else global_shapes(plan, inputs[0].shapes)
    meta = GlobalMeta(
        plan=plan_cid,
        round=round_,
        parent=parent,
        rule=plan.aggregation.rule,
        inputs=tuple(
            Input(file.local_meta.node_id, file.cid, file.local_meta.samples, share)
            for file, share in zip(inputs, made.shares, strict=True)
        ),
        refused=tuple(sorted(refused, key=lambda refusal: refusal.node_id)),
        absent=tuple(sorted(absent)),
    )
    return write_stream(path, meta, shapes, made.tensor)
