"""Rules by which the header makes one global tensor from the learners' local tensors.

A rule is a pure function of arrays, one file each. It is called tensor by tensor, so that memory does not grow
with the number of learners. It is canonical: inputs come in the order of nodeId, sums are in float64 in that
order, and the result is rounded once. So whoever has the local files gets the global file bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fl_node.aggregate.fedavg import fedavg

Tensor = npt.NDArray[np.float32]
Rule = Callable[[Iterable[Tensor], Sequence[int]], Tensor]

RULES: dict[str, Rule] = {"fedavg": fedavg}

__all__ = ["RULES", "Rule", "fedavg"]
