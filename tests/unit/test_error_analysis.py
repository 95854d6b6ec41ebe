"""What a model gets wrong."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
from PIL import Image

from fl_node.models.error_analysis import analyze_errors

IMAGES = np.arange(6 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(6, 28, 28)
LABELS = np.array([0, 1, 2, 3, 4, 5])


def probabilities(*predictions: tuple[int, float]) -> np.ndarray:
    """What was said of each image and how surely; what is left goes to the label."""
    rows = np.zeros((len(predictions), 10), np.float32)
    for row, label, (predicted, sure) in zip(rows, LABELS, predictions, strict=True):
        row[label] += 1 - sure
        row[predicted] += sure
    return rows


SAID = probabilities((0, 1.0), (7, 0.6), (2, 0.9), (9, 0.99), (4, 1.0), (9, 0.8))


def test_the_confusion_matrix_has_a_row_a_label_and_a_column_for_what_was_said() -> None:
    analysis = analyze_errors(3, lambda images: SAID, IMAGES, LABELS)
    assert (analysis.round, analysis.count, analysis.wrong) == (3, 6, 3)
    matrix = np.array(analysis.confusion)
    assert matrix.shape == (10, 10)
    assert matrix.sum() == 6
    assert sorted(zip(*np.nonzero(matrix), strict=True)) == [(0, 0), (1, 7), (2, 2), (3, 9), (4, 4), (5, 9)]


def test_the_worst_mistakes_come_first_and_no_more_than_asked_for() -> None:
    analysis = analyze_errors(3, lambda images: SAID, IMAGES, LABELS, worst=2)
    assert [(mistake.index, mistake.label, mistake.said) for mistake in analysis.worst] == [(3, 3, 9), (5, 5, 9)]
    assert analysis.worst[0].probability == np.float32(0.99)


def test_a_model_without_mistakes_has_none_to_show() -> None:
    analysis = analyze_errors(1, lambda images: probabilities(*((int(n), 1.0) for n in LABELS)), IMAGES, LABELS)
    assert (analysis.wrong, analysis.worst) == (0, ())


def test_a_picture_is_the_image_dark_on_light() -> None:
    (worst, *_) = analyze_errors(3, lambda images: SAID, IMAGES, LABELS).worst
    head, _, content = worst.picture().partition(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) == 255 - IMAGES[3]).all()


def test_as_json_it_has_no_pixels() -> None:
    content = json.loads(json.dumps(analyze_errors(3, lambda images: SAID, IMAGES, LABELS).as_content()))
    assert content["confusion"][3][9] == 1
    assert set(content["worst"][0]) == {"index", "label", "said", "probability", "of_label"}
