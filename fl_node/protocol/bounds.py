"""The bounds of local weights under every rule: the size of a value, and the norm of the update.

The average of values near the maximum of float32 is finite, but training from it gives NaN, so such files are
rejected. The bounds are far wider than the attacks of :mod:`fl_node.attacks`; these are the task of the rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fl_node.aggregation.rule import in_order, names_of, pieces
from fl_node.artifacts.distance import measure
from fl_node.artifacts.model_file import Tensors, WeightsFile
from fl_node.errors import WeightsError
from fl_node.plan.schema import Plan

CLEARLY = 0.99
"""An update whose squared norm is at most this share of the squared bound is within it in any order of summation."""


def check_bounds(file: WeightsFile, start: WeightsFile, plan: Plan) -> None:
    """Check that local weights are within the plan's bounds; header, audit and learner all call this.

    Near the bound, the norm of the update is summed in a fixed order in float64, so all nodes get the same result.
    Sums in other orders differ by less than 1e-6 of the norm, so any order suffices for smaller norms.

    Parameters
    ----------
    file
        A checked local file.
    start
        The checked global file that it was trained from.
    plan
        The run's plan.

    Raises
    ------
    WeightsError
        A value or the update is too large; the message names the bound.
    """
    distance = file.distance
    if distance is None or distance.start != start.cid:
        distance = measure(file.on_demand(), start.on_demand(), start.cid)
    for name, largest in sorted(distance.largest.items()):
        if not largest <= plan.bounds.value:
            raise WeightsError(
                f"tensor {name} has a value of size {largest:g}; should be at most {plan.bounds.value:g} "
                "(the plan's bounds.value)",
                "bounds",
            )
    if distance.squares <= CLEARLY * plan.bounds.update**2:
        return
    norm = _norm([file.on_demand(), start.on_demand()])
    if not norm <= plan.bounds.update:
        raise WeightsError(
            f"the update has the norm {norm:g}; should be at most {plan.bounds.update:g} (the plan's bounds.update)",
            "bounds",
        )


def _norm(tensors: Sequence[Tensors]) -> float:
    squares = 0.0
    for name in names_of(tensors[0]):
        for local_values, global_values in pieces(tensors, name):
            difference = np.subtract(local_values, global_values, dtype=np.float64)
            squares += in_order(np.multiply(difference, difference))
    return math.sqrt(squares)
