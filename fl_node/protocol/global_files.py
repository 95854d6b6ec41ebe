"""The files of global weights: what header, audit and report make of the same local files, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fl_node.aggregation import Aggregate
from fl_node.aggregation.ensemble import WEIGHTS, Evidence, evidence_name, member_weights
from fl_node.aggregation.fedavg import fedavg
from fl_node.artifacts.model_file import (
    GlobalMeta,
    Input,
    Rejection,
    Shapes,
    Tensor,
    Tensors,
    WeightsFile,
    write,
    write_stream,
)
from fl_node.plan.schema import Plan
from fl_node.protocol.budget import Spent
from fl_node.protocol.masked import usable_keys


def is_enough(plan: Plan, inputs: int) -> bool:
    """Return whether so many valid local files change the global weights.

    With fewer than the plan requires, the global weights stay as they are; the files have no share in them.
    """
    return inputs >= plan.required_learners


def needs_parent(plan: Plan, inputs: int) -> bool:
    """Return whether global weights are made of the last ones too, not of so many local weights alone."""
    # In an ensemble an architecture whose learners are all away keeps its weights; a compressed file has an update.
    kept = plan.mode == "ensemble" or plan.compression is not None
    return kept or plan.aggregation.uses_parent() or not is_enough(plan, inputs)


def global_shapes(plan: Plan, shapes: Shapes) -> Shapes:
    """Return names and shapes of the tensors of a global file: the model's, and what else the plan has there.

    That is what the rule carries along, and of an ensemble what each architecture counts for.
    """
    state = {f"{kind}/{name}": shape for kind in plan.aggregation.state for name, shape in shapes.items()}
    return {**shapes, **state, **_extra_shapes(plan)}


def local_shapes(plan: Plan, shapes: Shapes, node_id: int) -> Shapes:
    """Return the shapes of the tensors that a learner's local file has.

    Parameters
    ----------
    plan
        The run's plan.
    shapes
        The shapes of the model's tensors, or of those in a global file.
    node_id
        The learner's nodeId; in an ensemble it decides the architecture.
    """
    if plan.mode == "ensemble":
        prefix = f"{plan.architecture_of(node_id)}/"
        return {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    carried = tuple(f"{kind}/" for kind in plan.aggregation.state)
    return {name: shape for name, shape in shapes.items() if not name.startswith(carried)} if carried else shapes


def initial_file(
    path: Path, plan: Plan, plan_cid: str, tensors: Tensors, keys: Mapping[int, str] = MappingProxyType({})
) -> WeightsFile:
    """Write the file of initial weights; deployment, header and audit all call this.

    Parameters
    ----------
    path
        Where the file is written.
    plan
        The run's plan.
    plan_cid
        The CID of the plan.
    tensors
        The model's initial weights by name, float32.
    keys
        In a run with masks: the keys of round 0 that learners announced, in hexadecimal digits, by nodeId.
    """
    shapes = global_shapes(plan, {name: tensor.shape for name, tensor in tensors.items()})
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name not in tensors}
    if WEIGHTS in state:
        # Nothing is measured of models that know nothing yet.
        state[WEIGHTS] = np.full(shapes[WEIGHTS], 1 / len(plan.architectures), np.float32)
    announced = usable_keys(keys) if plan.is_masked else None
    meta = GlobalMeta(plan=plan_cid, round=0, parent=None, rule="initial", keys=announced)
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
    spent: Spent | None = None,
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
        The file of that CID; needed where :func:`needs_parent` says so.
    evidence
        Of an ensemble whose plan measures its members: what an architecture's weights say of the held-out images.
    refused, absent
        Learners whose file was not taken, and learners without one.
    spent
        What had been spent when the round closed, in a run with differential privacy.

    Raises
    ------
    ValueError
        The parent's file is needed.
    """
    if parent_file is None and needs_parent(plan, len(inputs)):
        raise ValueError("these global weights are made of the last ones too")
    inputs = sorted(inputs, key=lambda file: file.local_meta.node_id)
    samples = [file.local_meta.samples for file in inputs]
    counts = samples if plan.aggregation.weighting == "samples" else [1] * len(samples)
    last = parent_file.mapped() if parent_file else {}
    if parent_file is not None and not is_enough(plan, len(inputs)):
        made = Aggregate((0.0,) * len(inputs), parent_file.tensor)
    elif plan.mode == "ensemble":
        made = _ensemble(plan, inputs, counts, last, evidence)
    else:
        made = plan.aggregation.aggregate([file.mapped() for file in inputs], counts, last)
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
        spent=None if spent is None else spent.publications,
        epsilon=None if spent is None else spent.epsilon,
    )
    return write_stream(path, meta, shapes, made.tensor)


def _extra_shapes(plan: Plan) -> Shapes:
    """Return names and shapes of what an ensemble's global file has beside the models; nothing for other plans."""
    if plan.mode != "ensemble":
        return {}
    members = plan.architectures
    measured = members if plan.measures_members else ()
    return {WEIGHTS: (len(members),)} | {evidence_name(name): (plan.data.validation,) for name in measured}


def _ensemble(
    plan: Plan,
    inputs: Sequence[WeightsFile],
    counts: Sequence[int],
    parent: Tensors,
    measure: Evidence | None,
) -> Aggregate:
    """Average the local weights of each architecture, and say what each counts for.

    Parameters
    ----------
    plan
        The run's plan.
    inputs
        Checked local files in the order of nodeId, each with the tensors of its own architecture.
    counts
        What each counts for in the average of its architecture.
    parent
        The tensors of the last global file: an architecture of which no local weights came keeps its own.
    measure
        What averaged weights say of the held-out images; called once for each architecture, if the plan measures any.
    """
    mine = [plan.architecture_of(file.local_meta.node_id) for file in inputs]
    totals = {name: sum(count for other, count in zip(mine, counts, strict=True) if other == name) for name in mine}

    def averaged(name: str) -> Tensor:
        architecture = name.partition("/")[0]
        some = [(file, count) for file, count, of in zip(inputs, counts, mine, strict=True) if of == architecture]
        if not some:
            return parent[name]
        return fedavg((file.tensor(name) for file, _ in some), [count for _, count in some])

    @functools.cache
    def said(architecture: str) -> Tensor:
        if measure is None:
            raise ValueError(f"what {architecture} counts for is measured, and nothing measures it")
        prefix = f"{architecture}/"
        return measure(architecture, {name: averaged(name) for name in parent if name.startswith(prefix)})

    def tensor(name: str) -> Tensor:
        if name == WEIGHTS:
            members = plan.architectures
            measured = plan.measures_members
            return member_weights(
                plan.ensemble_model.weighting, [said(one) if measured else _NOTHING for one in members]
            )
        kind, _, rest = name.partition("/")
        return said(rest) if kind == "evidence" else averaged(name)

    return Aggregate(tuple(count / totals[name] for name, count in zip(mine, counts, strict=True)), tensor)


_NOTHING = np.empty(0, np.float32)
