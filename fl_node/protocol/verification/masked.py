"""Checks that a round with masks ends with the sum that its masked files and openings give."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fl_node.artifacts.model_file import WeightsFile
from fl_node.artifacts.store import WrongContent
from fl_node.errors import WeightsError
from fl_node.protocol import budget
from fl_node.protocol.masked import check_masked, keys_of, needed_members, reveal, unmasked_file
from fl_node.protocol.names import HEADER, MISSING, learner_label
from fl_node.protocol.opened import read_openings
from fl_node.protocol.verification.case import Case
from fl_node.protocol.verification.global_files import again, closing_file, report_difference
from fl_node.protocol.verification.members import Closing, check_members, is_published

LEARNER_LOST, NOT_OPENED, WRONG_OPENING = "learner_lost", "not_opened", "wrong_opening"
"""Codes of notes."""


def check_masked_closing(case: Case, closing: Closing, name: str) -> None:
    """Check the global weights that ended a round with masks.

    Parameters
    ----------
    case
        The run.
    closing
        The round.
    name
        The CID of the global file.
    """
    number, result = closing.number + 1, case.result
    file = closing_file(case, number, closing.parent, name)
    parent = case.parent(closing.number, closing.parent)
    if file is None or parent is None:
        return
    meta = file.global_meta
    check_members(case, closing, meta)
    good, bad = _files(case, closing, parent, {(one.node_id, one.cid) for one in meta.refused})
    if good is None:
        return
    for one in meta.inputs:
        if is_published(case, closing, one, "cid") and one.node_id in bad:
            case.unreadable(closing.number, learner_label(one.node_id), one.cid, bad[one.node_id])
    for refusal in meta.refused:
        if not is_published(case, closing, refusal, "refused"):
            continue
        if refusal.node_id in bad:
            text = f"({refusal.reason}); this verification: {bad[refusal.node_id]}"
            case.note_rejection(closing.number, refusal, text)
        else:
            text = f"{refusal.cid} is valid, but was rejected: {refusal.reason}"
            result.find(closing.number, learner_label(refusal.node_id), "refused", text)
    if len(good) < needed_members(case.plan):
        text = f"has {len(good)} members; should have at least {needed_members(case.plan)}"
        result.find(number, HEADER, "inputs", text)
        return
    openings, faults = read_openings(case.reader, case.plan_cid, closing.openings)
    revealed = reveal(case.plan, parent, good, openings)
    for fault in (*faults, *revealed.faults):
        who = learner_label(fault.node_id)
        result.note(f"round {closing.number}: {who} {fault.text}", WRONG_OPENING, closing.number, who)
    _note_lost(case, closing, parent, good)
    if revealed.lacking:
        who = ", ".join(map(str, revealed.lacking))
        text = f"the openings that are available do not remove the masks of learner {who}"
        result.find(number, HEADER, "openings", text, proven=False)
        return
    expected = unmasked_file(
        again(case),
        case.plan,
        case.plan_cid,
        parent=parent,
        files=good,
        seeds=revealed.seeds,
        announced=closing.keys,
        refused=meta.refused,
        absent=meta.absent,
        spent=budget.spent(case.plan, closing.spent, meta.epsilon),
    )
    report_difference(case, number, file, expected, "its masked files and openings give")


def _note_lost(case: Case, closing: Closing, parent: WeightsFile, good: Mapping[int, WeightsFile]) -> None:
    """Note who announced a key and is not in the sum, and who is in the sum and did not open the round."""
    for node_id in sorted(keys_of(parent).keys() - good.keys()):
        who = learner_label(node_id)
        text = f"round {closing.number}: {who} is not in the sum; members opened the seeds in common with it"
        case.result.note(text, LEARNER_LOST, closing.number, who)
    for node_id in sorted(good.keys() - closing.openings.keys()):
        who = learner_label(node_id)
        text = f"round {closing.number}: {who} did not open the round before its sum was published"
        case.result.note(text, NOT_OPENED, closing.number, who)


def _files(
    case: Case, closing: Closing, parent: WeightsFile, refused: Collection[tuple[int, str]]
) -> tuple[dict[int, WeightsFile] | None, dict[int, WeightsError]]:
    """Return the valid files of a round by nodeId, and why the others are invalid; no files if one is missing.

    Content that does not match its CID is invalid where the header says so too; else the store may be damaged.
    """
    good: dict[int, WeightsFile] = {}
    bad: dict[int, WeightsError] = {}
    for node_id, name in sorted(closing.published.items()):
        try:
            file = case.file(name, node_id)
            check_masked(file, case.plan, case.plan_cid, node_id, parent)
        except WeightsError as error:
            is_other = isinstance(error.__cause__, WrongContent) and (node_id, name) in refused
            if error.code == MISSING and not is_other:
                case.unreadable(closing.number, learner_label(node_id), name, error)
                return None, bad
            bad[node_id] = error
        else:
            good[node_id] = file
    return good, bad
