"""How the learners share the training samples: who has which, without overlap.

To add a partition, write a file with a subclass of :class:`Partition`, and add its line here.
"""

from __future__ import annotations

from fl_node.partitions.dirichlet import Dirichlet as Dirichlet
from fl_node.partitions.equal import Equal as Equal
from fl_node.partitions.labels import FewLabels as FewLabels
from fl_node.partitions.module import ByModule as ByModule
from fl_node.partitions.partition import Partition as Partition
from fl_node.partitions.partition import Pool as Pool
from fl_node.partitions.quantity import Quantity as Quantity
from fl_node.runtime.settings import Choice, variants_of

PARTITION_CHOICE = Choice("partition", variants_of(Partition, globals()), "equal", implied=True, flat=True)
