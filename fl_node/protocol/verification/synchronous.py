"""Checks that a round of a synchronous run ends with the weights that its local files give, without omissions.

The contract says when a round closed, who was registered then, and which local weights belong to it. The global file
that ends the round names every learner once: its local file as an input, its rejected file, or the learner itself as
missing. Rejections must be deserved, and the plan's rule must give the same global file again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection

from fl_node.aggregation import ensemble
from fl_node.artifacts.model_file import Input, Rejection, WeightsFile
from fl_node.errors import WeightsError
from fl_node.protocol import budget
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.compressed import decoded
from fl_node.protocol.global_files import global_file, needs_parent
from fl_node.protocol.names import HEADER, MISSING, learner_label
from fl_node.protocol.publications import check_origin
from fl_node.protocol.verification.case import Case
from fl_node.protocol.verification.evidence import check_evidence
from fl_node.protocol.verification.global_files import again, closing_file, report_difference
from fl_node.protocol.verification.masked import check_masked_closing
from fl_node.protocol.verification.members import Closing as Closing
from fl_node.protocol.verification.members import check_members, is_published


def check_closing(case: Case, closing: Closing, name: str, seen: Collection[str] = ()) -> None:
    """Check the global weights that ended a round.

    Parameters
    ----------
    case
        The run.
    closing
        The round.
    name
        The CID of the global file.
    seen
        Local files that this verifier had before the global weights were published: who calls one of them missing
        lies. Of others nobody can tell afterwards whether they were.
    """
    if case.plan.is_masked:
        check_masked_closing(case, closing, name)
        return
    number, file = closing.number + 1, closing_file(case, closing.number + 1, closing.parent, name)
    if file is None:
        return
    meta = file.global_meta
    check_members(case, closing, meta)
    parent = case.parent(closing.number, closing.parent)
    inputs = [_check_input(case, closing, input_, parent) for input_ in meta.inputs]
    for rejection in meta.refused:
        _check_rejection(case, closing, rejection, parent, seen)
    good = [file for file in inputs if file is not None]
    is_known = parent is not None or not needs_parent(case.plan, len(good))
    if len(good) == len(inputs) and is_known:
        expected = global_file(
            again(case),
            case.plan,
            case.plan_cid,
            round_=number,
            parent=closing.parent,
            inputs=good,
            parent_file=parent,
            # What the members said is taken from the file here, and measured below.
            evidence=lambda member, _weights: file.tensor(ensemble.evidence_name(member)),
            refused=meta.refused,
            absent=meta.absent,
            spent=budget.spent(case.plan, closing.spent, meta.epsilon),
        )
        report_difference(case, number, file, expected, "its local files give")
    check_evidence(case, number, file)


def check_pruned(case: Case, closing: Closing, name: str) -> None:
    """Check what can be checked of the global weights that ended a round whose local files are gone as agreed.

    Parameters
    ----------
    case
        The run.
    closing
        The round.
    name
        The CID of the global file.
    """
    number, file = closing.number + 1, closing_file(case, closing.number + 1, closing.parent, name)
    if file is None:
        return
    meta = file.global_meta
    check_members(case, closing, meta)
    for input_ in meta.inputs:
        is_published(case, closing, input_, "cid")
    for refused in meta.refused:
        is_published(case, closing, refused, "refused")
    spent = budget.spent(case.plan, closing.spent, meta.epsilon)
    if spent is not None:
        case.result.compare(number, HEADER, "spent", meta.spent, spent.publications)
        case.result.compare(number, HEADER, "epsilon", meta.epsilon, spent.epsilon)
    check_evidence(case, number, file)


def _check_input(case: Case, closing: Closing, input_: Input, parent: WeightsFile | None) -> WeightsFile | None:
    """Check an input of a global file, and return it if it can be read."""
    result, node, number = case.result, learner_label(input_.node_id), closing.number
    if not is_published(case, closing, input_, "cid"):
        return None
    try:
        file = case.file(input_.cid, input_.node_id)
        meta = file.local_meta
    except WeightsError as error:
        case.unreadable(number, node, input_.cid, error)
        return None
    result.compare(number, node, "plan", meta.plan, case.plan_cid)
    result.compare(number, node, "node_id", meta.node_id, input_.node_id)
    result.compare(number, node, "round", meta.round, number)
    result.compare(number, node, "parent", meta.parent, closing.parent)
    case.check_samples(number, input_.node_id, meta.samples)
    if parent is not None:
        try:
            file = decoded(file, parent, case.plan)
        except WeightsError as error:
            case.unreadable(number, node, input_.cid, error)
            return None
        case.check_bounds(number, node, file, parent)
    # In an ensemble its architecture goes by the node that it says; of another's nothing can be made.
    return file if case.plan.mode != "ensemble" or meta.node_id == input_.node_id else None


def _check_rejection(
    case: Case, closing: Closing, rejection: Rejection, parent: WeightsFile | None, seen: Collection[str]
) -> None:
    """Check that the header rejected a file rightly."""
    node = learner_label(rejection.node_id)
    if not is_published(case, closing, rejection, "refused"):
        return
    try:
        file = case.file(rejection.cid, rejection.node_id)
        check_origin(file, case.plan, case.plan_cid, rejection.node_id, round_=closing.number, parent=closing.parent)
        if parent is not None:
            check_bounds(decoded(file, parent, case.plan), parent, case.plan)
    except WeightsError as error:
        case.note_rejection(closing.number, rejection, f"({rejection.reason}); this verification: {error}")
        return
    if rejection.reason != MISSING:
        case.result.find(
            closing.number, node, "refused", f"{rejection.cid} is valid, but was rejected: {rejection.reason}"
        )
    elif rejection.cid in seen:
        text = f"{rejection.cid} was available before the round ended, but was rejected as missing"
        case.result.find(closing.number, node, "refused", text)
    else:
        # It may have been away then; nobody can tell afterwards.
        case.note_rejection(closing.number, rejection, "as missing, but is available now")
