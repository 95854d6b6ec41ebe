"""What a malicious learner may do, for the laboratory: to its images before it trains, or to its weights after.

The plan says who attacks and how. A plan comes from the chain, so a learner obeys it only where its operator allows
attacks, as a laboratory does; real attackers ask nobody, and the rules of :mod:`fl_node.aggregation` are there for
them.

To add an attack, write a file with a subclass of :class:`DataAttack` or :class:`UpdateAttack`, and add its line here.
"""

from __future__ import annotations

from fl_node.attacks.attack import DataAttack as DataAttack
from fl_node.attacks.attack import UpdateAttack as UpdateAttack
from fl_node.attacks.backdoor import Backdoor as Backdoor
from fl_node.attacks.constant import Constant as Constant
from fl_node.attacks.copy import Copy as Copy
from fl_node.attacks.label_flip import LabelFlip as LabelFlip
from fl_node.attacks.noise import Noise as Noise
from fl_node.attacks.scale import Scale as Scale
from fl_node.attacks.sign_flip import SignFlip as SignFlip
from fl_node.runtime.settings import Choice, variants_of

DATA_CHOICE = Choice("data", variants_of(DataAttack, globals()), flat=True)
UPDATE_CHOICE = Choice("update", variants_of(UpdateAttack, globals()), flat=True)
