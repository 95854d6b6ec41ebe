"""The bounds on local weights, whatever the rule: no huge value, and no huge step away from the global weights.

The average of values near float32's largest is finite, but training from it gives NaN. So such a file is rejected.
The bounds are far wider than the attacks of :mod:`fl_node.attacks`, which the rules are there to withstand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fl_node.aggregation.rule import in_order, names_of, pieces
from fl_node.artifacts.model_file import Tensors, WeightsFile
from fl_node.errors import WeightsError
from fl_node.plan.schema import Plan

CLEARLY = 0.99
"""An update whose length, squared, is this share of the bound's is shorter, in whatever order it is summed."""


def check_bounds(file: WeightsFile, start: WeightsFile, plan: Plan) -> None:
    """Check that local weights are within the plan's bounds; header, audit and learner all call this.

    Near the bound the length of the update is summed in a fixed order in float64, so everybody comes to the same
    verdict. Sums in any order differ by less than 1e-6 of the length, which decides nothing further away.

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
            largest = float(max(own.max(initial=0.0), -own.min(initial=0.0)))
            if not largest <= plan.bounds.value:
                raise WeightsError(
                    f"tensor {name} has a value of size {largest:g}; should be at most {plan.bounds.value:g} "
                    "(the plan's bounds.value)",
                    "bounds",
                )
            difference = np.subtract(own, before, dtype=np.float64)
            squares += float(np.multiply(difference, difference).sum())
    if squares <= CLEARLY * plan.bounds.update**2:
        return
    length = _length(both)
    if not length <= plan.bounds.update:
        raise WeightsError(
            f"the update has the norm {length:g}; should be at most {plan.bounds.update:g} "
            "(the plan's bounds.update)",
            "bounds",
        )


def _length(both: Sequence[Tensors]) -> float:
    squares = 0.0
    for name in names_of(both[0]):
        for own, before in pieces(both, name):
            difference = np.subtract(own, before, dtype=np.float64)
            squares += in_order(np.multiply(difference, difference))
    return math.sqrt(squares)
