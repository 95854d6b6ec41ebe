"""What a model gets wrong: its confusion matrix, and the test images that it is worst at."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_node.data.datasets import Images, Labels

Predict = Callable[[Images], npt.NDArray[np.float32]]
"""Returns the probability of each class for each image, shape ``(count, classes)``."""

WORST = 12


@dataclass(frozen=True)
class Mistake:
    """A test image that was taken for something else."""

    index: int
    """In the plan's test images, from 0."""
    label: int
    said: int
    probability: float
    """Of what was said."""
    of_label: float
    """The probability that was given to the label."""
    pixels: Images
    """Shape ``(28, 28)``, 0 to 255."""

    def picture(self) -> str:
        """Return the image as a ``data:`` URI, dark on light as on paper."""
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(255 - self.pixels).save(stream, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@dataclass(frozen=True)
class ErrorAnalysis:
    """What global weights make of the test images.

    ``confusion[label][said]`` counts images; ``round`` is that of the weights.
    """

    round: int
    count: int
    confusion: tuple[tuple[int, ...], ...]
    worst: tuple[Mistake, ...]

    @property
    def wrong(self) -> int:
        """How many images were taken for something else."""
        return self.count - sum(self.confusion[label][label] for label in range(len(self.confusion)))

    def as_content(self) -> dict[str, Any]:
        """Return it without the pixels, for JSON."""
        content = asdict(self)
        for mistake in content["worst"]:
            del mistake["pixels"]
        return content


def analyze_errors(
    round_: int, predict: Predict, images: Images, labels: Labels, worst: int = WORST
) -> ErrorAnalysis:
    """Analyze the errors of a model.

    Parameters
    ----------
    round_
        Of its weights.
    predict
        The model.
    images, labels
        The test images, shape ``(count, 28, 28)``, and their labels, shape ``(count,)``.
    worst
        How many mistakes to keep at most: those in which the label got the least probability.
    """
    probabilities = predict(images)
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((probabilities.shape[1],) * 2, np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    of_label = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(of_label[wrong], kind="stable")][:worst]
    return ErrorAnalysis(
        round_,
        len(labels),
        tuple(tuple(row) for row in confusion.tolist()),
        tuple(
            Mistake(
                int(i),
                int(labels[i]),
                int(predicted[i]),
                float(probabilities[i, predicted[i]]),
                float(of_label[i]),
                images[i],
            )
            for i in order
        ),
    )
