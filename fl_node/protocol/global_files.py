"""Writes the files of global weights; header, audit and report get the same bits from the same local files."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fl_node.aggregation import Aggregate
from fl_node.aggregation.ensemble import WEIGHTS, Evidence, evidence_name, member_weights
from fl_node.aggregation.fedavg import fedavg
from fl_node.aggregation.rule import by_value
from fl_node.artifacts.model_file import (
    GlobalMeta,
    Input,
    Rejection,
    Shapes,
    Tensor,
    Tensors,
    WeightsFile,
    write_blocks,
)
from fl_node.plan.schema import Plan
from fl_node.protocol.budget import Spent
from fl_node.protocol.masked import usable_keys
from fl_node.runtime.tensors import blocks_of, flat, shape_of


def is_enough(plan: Plan, inputs: int) -> bool:
    """Return whether this number of valid local files changes the global weights.

    With fewer than the plan requires, the global weights stay the same, and the files have no share in them.
    """
    return inputs >= plan.required_learners


def needs_parent(plan: Plan, inputs: int) -> bool:
    """Return whether the last global weights are needed, besides the local weights, to compute the next ones."""
    # In an ensemble an architecture whose learners are all away keeps its weights; a compressed file has an update.
    kept = plan.mode == "ensemble" or plan.compression is not None
    return kept or plan.aggregation.uses_parent() or not is_enough(plan, inputs)


def global_shapes(plan: Plan, shapes: Shapes) -> Shapes:
    """Return the shapes of the tensors in a global file, by name: those of the model, and those that the plan adds.

    These are the state of the rule, and the weights and evidence of an ensemble's architectures.
    """
    state = {f"{kind}/{name}": shape for kind in plan.aggregation.state for name, shape in shapes.items()}
    return {**shapes, **state, **_extra_shapes(plan)}


def local_shapes(plan: Plan, shapes: Shapes, node_id: int) -> Shapes:
    """Return the shapes of the tensors in a learner's local file, by name.

    Parameters
    ----------
    plan
        The run's plan.
    shapes
        The shapes of the model's tensors, or of those in a global file.
    node_id
        The learner's nodeId, which determines the architecture in an ensemble.
    """
    if plan.mode == "ensemble":
        prefix = f"{plan.architecture_of(node_id)}/"
        return {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    state = tuple(f"{kind}/" for kind in plan.aggregation.state)
    return {name: shape for name, shape in shapes.items() if not name.startswith(state)} if state else shapes


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
        In a run with masks: the keys that learners announced for round 0, in hexadecimal digits, by nodeId.
    """
    shapes = global_shapes(plan, {name: shape_of(tensors, name) for name in tensors})

    def blocks(name: str) -> Iterator[Tensor]:
        # Untrained models are not evaluated; all architectures start with equal weights.
        value = np.float32(1 / len(plan.architectures) if name == WEIGHTS else 0)
        for start, stop in blocks_of(shapes[name]):
            yield flat(tensors, name, start, stop) if name in tensors else np.full(stop - start, value)

    announced = usable_keys(keys) if plan.is_masked else None
    meta = GlobalMeta(plan=plan_cid, round=0, parent=None, rule="initial", keys=announced)
    return write_blocks(path, meta, shapes, blocks)


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
    """Write the global file that the plan's rule computes from local files; header and audit both call this.

    Parameters
    ----------
    path
        Where to write the file.
    plan, plan_cid
        The run's plan and its CID.
    round_
        The round that will start from the new global weights.
    parent
        The CID of the global weights that the local files were trained from.
    inputs
        Checked local files of one model.
    parent_file
        The file of that CID; required if :func:`needs_parent` returns true.
    evidence
        Returns the likelihoods of the held-out images for an architecture's weights; for ensembles that measure
        their members.
    refused, absent
        The rejected files, and the learners without a file.
    spent
        The privacy budget spent when the round closed, in a run with differential privacy.

    Raises
    ------
    ValueError
        The parent's file is needed.
    """
    if parent_file is None and needs_parent(plan, len(inputs)):
        raise ValueError("these global weights also depend on the last ones; parent_file is required")
    inputs = sorted(inputs, key=lambda file: file.local_meta.node_id)
    samples = [file.local_meta.samples for file in inputs]
    counts = samples if plan.aggregation.weighting == "samples" else [1] * len(samples)
    last = parent_file.on_demand() if parent_file else {}
    if parent_file is not None and not is_enough(plan, len(inputs)):
        aggregate = by_value((0.0,) * len(inputs), lambda name, _inputs, parent: parent[name], [], last)
    elif plan.mode == "ensemble":
        aggregate = _ensemble(plan, inputs, counts, last, evidence)
    else:
        aggregate = plan.aggregation.aggregate([file.on_demand() for file in inputs], counts, last)
    # Files that were checked have the shapes that the plan gives them.
    shapes = parent_file.shapes if parent_file else global_shapes(plan, inputs[0].shapes)
    meta = GlobalMeta(
        plan=plan_cid,
        round=round_,
        parent=parent,
        rule=plan.aggregation.rule,
        inputs=tuple(
            Input(file.local_meta.node_id, file.cid, file.local_meta.samples, share)
            for file, share in zip(inputs, aggregate.shares, strict=True)
        ),
        refused=tuple(sorted(refused, key=lambda refusal: refusal.node_id)),
        absent=tuple(sorted(absent)),
        spent=None if spent is None else spent.publications,
        epsilon=None if spent is None else spent.epsilon,
    )
    return write_blocks(path, meta, shapes, aggregate.values)


def _extra_shapes(plan: Plan) -> Shapes:
    """Return the shapes of the additional tensors in an ensemble's global file, by name; empty for other plans."""
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
    """Average the local weights of each architecture, and compute the architectures' weights in the ensemble.

    Parameters
    ----------
    plan
        The run's plan.
    inputs
        Checked local files in the order of nodeId, each with the tensors of its own architecture.
    counts
        The weight of each file in the average of its architecture.
    parent
        The tensors of the last global file, which an architecture without local files keeps.
    measure
        Returns the likelihoods of the held-out images for averaged weights; called once for each architecture, if the
        plan measures its members.
    """
    architectures = [plan.architecture_of(file.local_meta.node_id) for file in inputs]
    totals = dict.fromkeys(architectures, 0)
    for architecture, count in zip(architectures, counts, strict=True):
        totals[architecture] += count

    def averaged(name: str) -> Tensor:
        architecture = name.partition("/")[0]
        files = [
            (file, count)
            for file, count, trained in zip(inputs, counts, architectures, strict=True)
            if trained == architecture
        ]
        if not files:
            return parent[name]
        return fedavg((file.tensor(name) for file, _ in files), [count for _, count in files])

    @functools.cache
    def likelihoods(architecture: str) -> Tensor:
        if measure is None:
            raise ValueError(f"the weight of {architecture} is measured; evidence is required")
        prefix = f"{architecture}/"
        return measure(architecture, {name: averaged(name) for name in parent if name.startswith(prefix)})

    def tensor(name: str) -> Tensor:
        if name == WEIGHTS:
            members = plan.architectures
            measured = plan.measures_members
            return member_weights(
                plan.ensemble_model.weighting,
                [likelihoods(member) if measured else _NO_LIKELIHOODS for member in members],
            )
        kind, _, architecture = name.partition("/")
        return likelihoods(architecture) if kind == "evidence" else averaged(name)

    shares = tuple(count / totals[name] for name, count in zip(architectures, counts, strict=True))
    return Aggregate(shares, tensor)


_NO_LIKELIHOODS = np.empty(0, np.float32)
