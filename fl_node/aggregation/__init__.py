"""Rules by which the header makes global weights from the learners' local weights.

A rule is a class of settings and a pure function of arrays, one file each, named as its paper names it. It is
canonical: inputs come in the order of nodeId, arithmetic is float64 in a fixed order, and the result is rounded once.
So anyone with the local files gets the global file bit for bit. Files are read and written block by block, so neither
the size of a model nor the number of learners decides how much memory a rule takes.

To add a rule, write a file with a subclass of :class:`Rule`, and add its line here.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_node.aggregation.fedasync import FedAsync as FedAsync
from fl_node.aggregation.fedavg import FedAvg as FedAvg
from fl_node.aggregation.fedbuff import FedBuff as FedBuff
from fl_node.aggregation.fedopt import FedAdam as FedAdam
from fl_node.aggregation.fedopt import FedAvgM as FedAvgM
from fl_node.aggregation.krum import Krum as Krum
from fl_node.aggregation.krum import MultiKrum as MultiKrum
from fl_node.aggregation.median import Median as Median
from fl_node.aggregation.norm_clipping import NormClipping as NormClipping
from fl_node.aggregation.rule import Aggregate as Aggregate
from fl_node.aggregation.rule import Rule as Rule
from fl_node.aggregation.trimmed_mean import TrimmedMean as TrimmedMean
from fl_node.runtime.settings import Choice, variants_of

RULE_CHOICE = Choice("rule", variants_of(Rule, globals()), "fedavg", implied=True)
"""All rules that are imported above, by their names."""

RULES: Mapping[str, type[Rule]] = {
    name: rule for name, rule in RULE_CHOICE.variants.items() if issubclass(rule, Rule)
}
"""The classes of the rules by their names."""
