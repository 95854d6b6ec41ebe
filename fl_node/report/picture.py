"""A picture of who has which images, as an SVG file of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fl_node.runtime.templating import render

MARGIN, NAMES, COLUMN, ROW, SUM = 16, 90, 34, 28, 70
HEAD = 56
LARGEST = 12.5
"""Radius of the circle of the largest number."""


def shards(counts: Mapping[int, Sequence[int]], title: str) -> str:
    """Return a picture in which the area of a circle is how many images of a label a learner has.

    Parameters
    ----------
    counts
        Images of each label by nodeId, as :func:`fl_node.data.partition.label_counts` returns them.
    title
        Stands above it.
    """
    labels = len(next(iter(counts.values())))
    most = max(max(row) for row in counts.values()) or 1
    xs = [MARGIN + NAMES + COLUMN * label for label in range(labels)]

    def circles(row: Sequence[int]) -> list[dict[str, object]]:
        radii = [round(LARGEST * math.sqrt(count / most), 2) for count in row]
        return [
            {"x": xs[label], "r": radii[label], "label": label, "count": count}
            for label, count in enumerate(row)
            if count
        ]

    return render(
        "shards.svg.j2",
        title=title,
        margin=MARGIN,
        top=HEAD,
        width=xs[-1] + COLUMN // 2 + SUM + MARGIN,
        height=HEAD + ROW * len(counts) + MARGIN,
        labels=[{"x": x, "name": label} for label, x in enumerate(xs)],
        rows=[
            {"node_id": node_id, "y": HEAD + ROW * (place + 1) - 8, "circles": circles(row), "sum": sum(row)}
            for place, (node_id, row) in enumerate(counts.items())
        ],
    )
