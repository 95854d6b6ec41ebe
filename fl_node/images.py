"""Images that people have, made like those that the model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fl_node.data import Images
from fl_node.errors import DataError
from fl_node.plan import SIDE

DIGIT_SIDE = 20


def read(path: Path, *, invert: bool | None = None) -> Images:
    """Return an image of one digit as MNIST has them.

    MNIST's digits are light on dark, fitted into 20 × 20 pixels and centred by their mass in 28 × 28
    (http://yann.lecun.com/exdb/mnist/). An image of 28 × 28 is taken as it is.

    Parameters
    ----------
    path
        A PNG, JPEG or BMP file.
    invert
        Whether the digit is dark on light; if None, it is where the border is light.

    Returns
    -------
    uint8 array
        Shape ``(28, 28)``.

    Raises
    ------
    DataError
        The file is no image, or shows nothing.
    """
    try:
        with Image.open(path) as image:
            grey = _grey(image)
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise DataError(f"image {path}: not a picture that can be read: {error}") from error
    return as_mnist(np.asarray(grey), f"image {path}", invert=invert)


def as_mnist(pixels: Images, name: str, *, invert: bool | None = None) -> Images:
    """Return grey pixels of one digit as MNIST has them; arguments and errors are those of :func:`read`.

    Parameters
    ----------
    pixels
        uint8, shape ``(height, width)``.
    name
        What to call the image in an error.
    """
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if invert if invert is not None else border.mean() > 127:
        pixels = 255 - pixels
    if pixels.max() == pixels.min():
        raise DataError(f"{name} shows nothing: all of its pixels are alike")
    fitted = pixels if pixels.shape == (SIDE, SIDE) else _fit(pixels)
    if fitted is None:
        raise DataError(f"{name} shows nothing: specks that are too small for a digit")
    return fitted


def _grey(image: Image.Image) -> Image.Image:
    """Return a picture in grey; a transparent one on white paper, or on black if nothing can be seen on that."""
    if not image.has_transparency_data:
        return image.convert("L")
    for paper in ("white", "black"):
        sheet = Image.new("RGBA", image.size, paper)
        sheet.alpha_composite(image.convert("RGBA"))
        low, high = sheet.convert("L").getextrema()
        if low != high:
            break
    return sheet.convert("L")


def _fit(pixels: Any) -> Images | None:
    ink = pixels > (int(pixels.max()) + int(pixels.min())) // 2
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    digit = Image.fromarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = DIGIT_SIDE / max(digit.size)
    digit = digit.resize((max(round(digit.width * scale), 1), max(round(digit.height * scale), 1)))
    small = np.asarray(digit, dtype=np.float64)
    if not small.any():
        return None
    y, x = (float((small.sum(axis=1 - a) * np.arange(small.shape[a])).sum() / small.sum()) for a in (0, 1))
    top = int(np.clip(round(SIDE / 2 - y), 0, SIDE - small.shape[0]))
    left = int(np.clip(round(SIDE / 2 - x), 0, SIDE - small.shape[1]))
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small.astype(np.uint8)
    return canvas
