"""Checks the evidence of an ensemble: the recorded likelihoods of the held-out images."""

from __future__ import annotations

from fl_node.aggregation import ensemble
from fl_node.artifacts.model_file import WeightsFile
from fl_node.data.datasets import DataSet
from fl_node.data.held_out import held_out
from fl_node.protocol.names import HEADER
from fl_node.protocol.verification.case import Case


def check_evidence(case: Case, number: int, file: WeightsFile) -> None:
    """Check the evidence in a global file by measuring it, if the held-out images are available.

    Parameters
    ----------
    case
        The run; a plan that measures no members has no evidence.
    number
        The round that starts from these global weights.
    file
        The global file.
    """
    plan, trainer, result = case.plan, case.trainer, case.result
    if not plan.measures_members:
        return
    weighting = plan.ensemble_model.weighting
    for member in plan.architectures:
        name = ensemble.evidence_name(member)
        if not ensemble.is_evidence(weighting, file.tensor(name)):
            result.find(number, HEADER, f"tensor {name}", "has values that are no likelihoods")
    if not isinstance(trainer.data, DataSet):
        result.note("the likelihoods of the held-out images were not checked: the data set is not available")
        return
    images, labels = held_out(plan, trainer.data)
    for member in plan.architectures:
        name, prefix = ensemble.evidence_name(member), f"{member}/"
        tensors = {name: file.tensor(name) for name in file.shapes if name.startswith(prefix)}
        wrong = ensemble.unexplained(weighting, file.tensor(name), trainer.predict(tensors, images), labels)
        if wrong:
            text = f"{wrong} recorded likelihoods differ from what {member} predicts"
            result.find(number, HEADER, f"tensor {name}", text)
