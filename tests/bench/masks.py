"""What masks cost: rounds with and without them, on the same nodes one after the other."""

from __future__ import annotations

from pathlib import Path

from fl_node.protocol.names import learner_name
from tests.bench.coordination import measured_rounds
from tests.bench.nodes import Nodes, nodes
from tests.bench.results import Part, Row

MODEL = "small"
FEW, MANY = 3, 16
LIMITS = {FEW: 2.0, MANY: 2.5}
"""How many times as long a round with masks may take, by the number of learners."""
BYTES = 1.1
"""How many times as many bytes a learner may publish in a round."""


def measure(*, quick: bool, profiles: Path | None = None) -> Part:
    """Measure rounds of 3 and of 16 learners; all verify, as masks need."""
    part = Part("Masks: a round with them beside one without")
    for learners, rounds in ((FEW, 3 if quick else 20), (MANY, 2 if quick else 8)):
        with nodes(learners, 2) as network:
            plain = measured_rounds(network, MODEL, rounds, None, profiles, "all")
            sizes = [_published(network)]
            masked = measured_rounds(network, MODEL, rounds, None, profiles, "all", masks=True)
            sizes.append(_published(network))
        part.rows += [plain, masked]
        detail = {"load": part.load}
        times = masked.figure / plain.figure
        part.rows.append(Row(f"{learners} learners: time with masks", times, "×", LIMITS[learners], detail))
        cpu = [sum(row.detail["cpu"].values()) for row in (plain, masked)]
        part.rows.append(Row(f"{learners} learners: processor time of all with masks", cpu[1] / cpu[0], "×"))
        part.rows.append(Row(f"{learners} learners: bytes of a learner with masks", sizes[1] / sizes[0], "×", BYTES))
        part.notes.append(f"{learners} learners: {sizes[0]:,} and {sizes[1]:,} bytes of a learner in a round")
    return part


def _published(network: Nodes) -> int:
    """Return the bytes that the first learner published in its last round: its file, and what it opened."""
    name = learner_name(1)
    last = [network.files(name, pattern)[-1:] for pattern in ("local-*.safetensors", "opening-*.json")]
    return sum(path.stat().st_size for found in last for path in found)
