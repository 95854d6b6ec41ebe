"""Notes how learners judged global weights, and which rejections were wrong."""

from __future__ import annotations

from collections.abc import Iterable

from fl_node.audit.result import PrunedRound
from fl_node.protocol.history import History
from fl_node.protocol.names import learner_label, learners_label
from fl_node.protocol.verdicts import header_changes
from fl_node.protocol.verification.case import Case

WITHDRAWN, WRONG_REJECTION = "withdrawn", "wrong_rejection"
"""Codes of notes."""


def check_verdicts(case: Case, past: History, pruned: Iterable[PrunedRound] = ()) -> None:
    """Note withdrawn global weights, changes of the header, and rejections of weights that this audit found correct.

    Parameters
    ----------
    case
        The run, with the findings in its rounds.
    past
        The run's history.
    pruned
        The rounds that this audit did not recompute.
    """
    # Of weights that were not recomputed it is not known whether they are correct.
    unknown = {one.round + 1 for one in pruned}
    rounds_with_findings = {finding.round for finding in case.result.findings} | unknown
    correct = {(one.number, one.started.cid) for one in past.rounds if one.number not in rounds_with_findings}
    for withdrawn in past.withdrawn:
        learners = [entry.node_id for entry in withdrawn.rejections if entry.node_id is not None]
        codes = ", ".join(sorted({str(entry.code) for entry in withdrawn.rejections}))
        reason = (
            f"withdrawn: rejected by {learners_label(learners)} ({codes})"
            if learners
            else "withdrawn together with the weights it was based on"
        )
        file_cid = str(withdrawn.started.cid)
        # If the same bits were published again and are correct, nothing was wrong with them.
        again = ", although they are correct" if (withdrawn.number, file_cid) in correct else ""
        message = f"global weights {withdrawn.number}: {file_cid} was {reason}{again}"
        case.result.note(message, WITHDRAWN, withdrawn.number, file_cid)
    for change in header_changes(past):
        case.result.note(f"the header changed to {change.account}, {change.node}")
    for past_round in past.rounds:
        if past_round.number in rounds_with_findings:
            continue
        for entry in past_round.rejections:
            if entry.node_id is not None:
                learner, weights = learner_label(entry.node_id), f"correct global weights {past_round.number}"
                message = f"{learner} rejected {weights} ({entry.code}), without a majority"
                case.result.note(message, WRONG_REJECTION, past_round.number, learner)
