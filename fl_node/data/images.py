"""Images that people have, made like those that the model was trained on."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from fl_node.data.datasets import Images
from fl_node.errors import DataError
from fl_node.plan.data_sets import SIDE

DIGIT_SIDE = 20
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "ICO", "PCX", "PSD", "QOI")
"""What is read, by Pillow's names; others may start programs (EPS) or take anything for a picture."""
LARGE = 1600
"""Pictures of a longer side are reduced to this first."""
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
"""The brands of a file's first box (ISO/IEC 23008-12)."""
NO_PIXELS = {
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"<?xml": "SVG or another XML",
    b"<!DO": "a web page",
}
MARGIN = 0.02
"""The share of a picture's side that counts as its border."""
PAPER_SIDE = 96
"""The side to which a picture is reduced to find out how it is lit; a digit's lines are thinner than a third."""
TALL = 0.1
"""The share of a picture's height that a digit has, if there is something in the picture's corners as well."""
SPECK = 0.03
"""The share of the largest part of a digit below which another part is dirt."""
CLEAR = 0.05
"""The share of full contrast below which nothing is seen on the paper."""

Grey = npt.NDArray[np.float64]
"""Grey pixels, shape ``(height, width)``, 0 (black) to 255 (white)."""


def read(path: Path, *, invert: bool | None = None) -> Images:
    """Return an image of one digit as MNIST has them.

    MNIST's digits are light on dark, fitted into 20 × 20 pixels and centred by their mass in 28 × 28
    (http://yann.lecun.com/exdb/mnist/). An image of 28 × 28 is taken as it is.

    Parameters
    ----------
    path
        A file in one of :data:`FORMATS`; of several pictures in it the first. It is turned as its EXIF data say.
    invert
        Whether the digit is dark on light; if None, it is where the border is light.

    Returns
    -------
    uint8 array
        Shape ``(28, 28)``.

    Raises
    ------
    DataError
        The file is no picture, is too large, or shows nothing.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"image {path}: should be a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes and damaged EXIF data
            with Image.open(path, formats=FORMATS) as image:
                grey = _grey(_upright(image))
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise DataError(f"image {path}: more than {most} million pixels; reduce its size") from error
    except UnidentifiedImageError as error:
        raise DataError(f"image {path}: {_unreadable(path)}") from error
    except DataError as error:
        raise DataError(f"image {path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or repr(error)
        raise DataError(f"image {path}: can't be decoded: {reason}") from error
    return as_mnist(grey, f"image {path}", invert=invert)


def as_mnist(pixels: npt.NDArray[Any], name: str, *, invert: bool | None = None) -> Images:
    """Return the grey pixels of a digit in the form of MNIST: white on black, 28 × 28, centred.

    Parameters
    ----------
    pixels
        Shape ``(height, width)``, 0 to 255.
    name
        What the error message calls the image.
    invert
        Whether the digit is dark on a light background; guessed from the border if None.

    Raises
    ------
    DataError
        The image has no pixels or shows no digit.
    """
    grey = pixels.astype(np.float64)
    if not grey.size:
        raise DataError(f"{name} has no pixels")
    if grey.max() == grey.min():
        raise DataError(f"{name} is blank: all pixels are equal")
    if invert is None:
        invert = bool(np.median(_border(grey)) > (grey.max() + grey.min()) / 2)
    if invert:
        grey = 255 - grey
    if grey.shape == (SIDE, SIDE):
        return _bytes(grey)
    fitted = _fit(_ink(grey))
    if fitted is None:
        raise DataError(f"{name} shows no digit, only specks")
    return fitted


def _unreadable(path: Path) -> str:
    """Return why a file that Pillow does not know is no picture that can be read, and what to do."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty file"
    if head[4:8] == b"ftyp":
        kind = "HEIC, as iPhones save photographs," if head[8:12] in HEIC else "a video"
    else:
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        kind = next((kind for start, kind in NO_PIXELS.items() if text.startswith(start)), "a file of this kind")
    return f"{kind} can't be read; save or export it as PNG or JPEG"


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture as it should be looked at."""
    image.draft(image.mode, (LARGE, LARGE))  # JPEG has smaller versions in it
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data say nothing
        image = ImageOps.exif_transpose(image)
    if max(image.size) <= LARGE:
        return image
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    scale = LARGE / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.BOX)


def _grey(image: Image.Image) -> Grey:
    """Return the pixels of a picture in grey; a transparent one on paper on which its digit can be seen."""
    if image.mode.startswith(("I", "F")):
        return _deep(image)
    if image.mode == "LAB":
        return _floats(image.getchannel("L"))
    if image.mode in ("RGBa", "La", "PA") or image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    else:
        return _floats(image.convert("RGB").convert("L"))
    return _on_paper(_floats(image.convert("L")), _floats(image.getchannel("A")) / 255)


def _on_paper(grey: Grey, alpha: Grey) -> Grey:
    """Return what can be seen of transparent pixels: ink on paper unlike it, a photograph on paper like it."""
    if not alpha.any():
        return np.zeros_like(grey)
    light = float((grey * alpha).sum() / alpha.sum()) > 127
    white = light if alpha.mean() > 0.5 else not light
    for paper in (255 * white, 255 * (not white)):
        seen = grey * alpha + paper * (1 - alpha)
        if seen.max() - seen.min() > 255 * CLEAR:
            break
    return seen


def _deep(image: Image.Image) -> Grey:
    """Return the pixels of an image with more than 8 bits per pixel.

    Where the type defines no white, the largest value is white.

    Raises
    ------
    DataError
        A pixel is not a finite number.
    """
    values = _floats(image)
    if not np.isfinite(values).all():
        raise DataError("its pixels should be finite numbers")
    alpha = None
    if isinstance(hidden := image.info.get("transparency"), int):
        alpha = (values != hidden).astype(np.float64)
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (min(values.min(), 0.0), values.max())
    if image.mode == "I" and high <= 65535:
        high = 255.0 if high <= 255 else 65535.0
    grey = (values - low) * (255 / ((high - low) or 1))
    return grey if alpha is None else _on_paper(grey, alpha)


def _floats(image: Image.Image) -> Grey:
    return np.asarray(image).astype(np.float64)


def _bytes(grey: Grey) -> Images:
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _border(grey: Grey) -> Grey:
    wide = max(round(min(grey.shape) * MARGIN), 1)
    sides = grey[:wide], grey[-wide:], grey[:, :wide], grey[:, -wide:]
    return np.concatenate([side.ravel() for side in sides])


def _ink(grey: Grey) -> Grey:
    """Return how much ink there is, 0 to 255, for a light digit on paper that may be lit unevenly."""
    for paper in (_paper(grey), float(np.median(_border(grey)))):
        # On bright paper ink is as much brighter again as there is room for it.
        ink = np.clip((grey - paper) / np.maximum(255 - paper, 1) * 255, 0, None)
        edge = _border(ink)
        # What the paper itself shows: grain, noise, folds.
        ink = np.clip(ink - (np.median(edge) + 4 * np.median(np.abs(edge - np.median(edge)))), 0, None)
        if ink.max() > 255 * CLEAR * 0.1:
            break
    if not ink.any():
        ink = grey - grey.min()
    full = float(np.median(ink[ink > ink.max() / 2]))
    strongest: Grey = np.clip(ink * (255 / full), 0, 255)
    return strongest


def _paper(grey: Grey) -> Grey:
    """Return the grey of the paper at each pixel of a light digit's picture, as if nothing were written on it."""
    height, width = grey.shape
    scale = PAPER_SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = Image.fromarray(_bytes(grey)).resize(size, Image.Resampling.BOX)
    # Opening (Serra 1982): the darkest nearby, and of that the brightest, takes away what is brighter and thin.
    wide = PAPER_SIDE // 3 | 1
    opened = small.filter(ImageFilter.MinFilter(wide)).filter(ImageFilter.MaxFilter(wide))
    smooth = opened.filter(ImageFilter.GaussianBlur(3))
    return _floats(smooth.resize((width, height), Image.Resampling.BICUBIC))


def _digit(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the marked pixels without what is no part of a digit: specks, and what lies around the paper."""
    from scipy import ndimage

    numbers, count = ndimage.label(marked, np.ones((3, 3)))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    corners = set(numbers[:: max(len(numbers) - 1, 1), :: max(numbers.shape[1] - 1, 1)].ravel().tolist())
    tall = [int(rows.stop - rows.start) >= TALL * len(marked) for rows, _ in ndimage.find_objects(numbers)]
    parts = set(range(1, count + 1))
    if any(tall[part - 1] for part in parts - corners):
        parts -= corners
    least = SPECK * max(sizes[part] for part in parts)
    kept: npt.NDArray[np.bool_] = np.isin(numbers, [part for part in parts if sizes[part] >= least])
    return kept


def _fit(ink: Grey) -> Images | None:
    pixels = _bytes(ink)
    marked = _digit(pixels > int(pixels.max()) // 2)
    pixels[(pixels > int(pixels.max()) // 2) & ~marked] = 0
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
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
