"""What an ensemble's members count for, measured on the images that the plan holds out."""

from __future__ import annotations

from fl_node.aggregation import ensemble
from fl_node.aggregation.ensemble import Evidence
from fl_node.data.datasets import DataSet
from fl_node.data.held_out import held_out
from fl_node.errors import DataError
from fl_node.models.trainer import Trainer
from fl_node.plan.schema import Plan


def evidence(plan: Plan, trainer: Trainer) -> Evidence | None:
    """Return what measures an ensemble's members on the held-out images; None for a plan that measures none.

    Raises
    ------
    DataError
        The data set is not at hand, or is not the plan's.
    """
    if not plan.measures_members:
        return None
    if not isinstance(trainer.data, DataSet):
        raise DataError(f"model weights are fitted on held-out images of {plan.data.name}; the data set is missing")
    images, labels = held_out(plan, trainer.data)
    weighting = plan.ensemble_model.weighting
    return lambda _name, tensors: ensemble.evidence(weighting, trainer.predict(tensors, images), labels)
