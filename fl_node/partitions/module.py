"""Parts as a custom module decides them: each learner has what the module loads for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from fl_node.partitions.partition import Partition, Pool
from fl_node.runtime.tensors import Indices


class ByModule(Partition):
    """The module's shards, one after the other."""

    module: ClassVar[bool] = True

    partition: Literal["module"] = "module"

    @property
    def description(self) -> str:
        """How the samples are shared out."""
        return "partitioned by the plan's module"

    def sizes(self, pool: Pool) -> Sequence[int]:
        """Return the sizes that the plan says of the module's shards."""
        return pool.samples

    def parts(self, pool: Pool) -> list[Indices]:
        """Return the indices of each shard."""
        return np.split(np.arange(pool.count), np.cumsum(pool.samples)[:-1])
