"""What the learners said of global weights: whether their attestations and rejections were right."""

from __future__ import annotations

from fl_node.protocol.history import History
from fl_node.protocol.names import learner_label
from fl_node.protocol.verdicts import header_changes
from fl_node.protocol.verification.case import Case


def check_verdicts(case: Case, past: History) -> None:
    """Name who rejected weights that this audit found correct, what was withdrawn, and what is finalized.

    Parameters
    ----------
    case
        The run; its findings are those of the rounds that stand.
    past
        The run's history by the log.
    """
    wrong = {finding.round for finding in case.result.findings}
    for one in past.withdrawn:
        who = ", ".join(str(entry.node_id) for entry in one.rejections)
        codes = ", ".join(sorted({str(entry.code) for entry in one.rejections}))
        what = (
            f"{one.started.cid} was withdrawn: rejected by learner {who} ({codes})"
            if who
            else (f"{one.started.cid} was withdrawn together with the weights it was based on")
        )
        case.result.note(f"global weights {one.number}: {what}")
    for change in header_changes(past):
        case.result.note(f"the header changed to {change.account}, {change.node}")
    for one in past.rounds:
        for entry in one.rejections:
            if one.number not in wrong and entry.node_id is not None:
                who, what = learner_label(entry.node_id), f"correct global weights {one.number} ({entry.code})"
                case.result.note(f"{who} rejected {what}, without a majority")
