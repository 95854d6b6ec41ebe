"""The bounds on local weights, whatever the rule: no huge value, and no huge step away from the global weights.

The average of values near float32's largest is finite, but training from it gives NaN. So such a file is rejected.
The bounds are far wider than the attacks of :mod:`fl_node.attacks`, which the rules are there to withstand.
"""

from __future__ import annotations

import math

import numpy as np

from fl_node.aggregation.rule import in_order, names_of, pieces
from fl_node.artifacts.model_file import WeightsFile
from fl_node.errors import WeightsError
from fl_node.plan.schema import Plan


def check_bounds(file: WeightsFile, start: WeightsFile, plan: Plan) -> None:
    """Check that local weights are within the plan's bounds; header, audit and learner all call this.

    The length of the update is summed in a fixed order in float64, so everybody comes to the same verdict.

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
    squares = 0.0
    both = [file.mapped(), start.mapped()]
    for name in names_of(file.shapes):
        for own, before in pieces(both, name):
            largest = float(np.abs(own).max(initial=0.0))
            if not largest <= plan.bounds.value:
                raise WeightsError(
                    f"tensor {name} has a value of size {largest:g}; should be at most {plan.bounds.value:g} "
                    "(the plan's bounds.value)",
                    "bounds",
                )
            difference = np.subtract(own, before, dtype=np.float64)
            squares += in_order(np.multiply(difference, difference))
    length = math.sqrt(squares)
    if not length <= plan.bounds.update:
        raise WeightsError(
            f"the update has the norm {length:g}; should be at most {plan.bounds.update:g} "
            "(the plan's bounds.update)",
            "bounds",
        )
