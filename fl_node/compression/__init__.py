"""How a learner's update becomes a smaller file: with fewer bits for each value, or with fewer values.

An update is local minus global weights. What a compressed file does not say of it, the learner adds to its next
update (error feedback: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
ICML 2019, https://arxiv.org/abs/1901.09847).

To add a kind, write a file with a subclass of :class:`Compression`, and add its line here.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_node.compression.compression import Compression as Compression
from fl_node.compression.float16 import Float16 as Float16
from fl_node.compression.int8 import Int8 as Int8
from fl_node.compression.topk import TopK as TopK
from fl_node.runtime.settings import Choice, variants_of

COMPRESSION_CHOICE = Choice("kind", variants_of(Compression, globals()))
KINDS: Mapping[str, type[Compression]] = {
    kind: variant for kind, variant in COMPRESSION_CHOICE.variants.items() if issubclass(variant, Compression)
}
"""The classes by the names of their kinds."""
