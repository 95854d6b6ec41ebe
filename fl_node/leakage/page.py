"""The results of an attack as files: JSON, a page that needs nothing else, and pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from fl_node.leakage.inversion import Inversion
from fl_node.leakage.membership import Figure
from fl_node.leakage.published import Update
from fl_node.report import plots
from fl_node.report.plots import Line
from fl_node.runtime import files
from fl_node.runtime.templating import render
from fl_node.runtime.tensors import Images, Wide

ENLARGED = 8
"""Pixels of a picture for each pixel of an image."""


def write_membership(folder: Path, name: str, figures: Sequence[Figure], facts: Mapping[str, Any]) -> Path:
    """Write ``membership.html`` and ``membership.json`` and return the first's path.

    Parameters
    ----------
    folder
        Where they go.
    name
        The run's name.
    figures
        The results.
    facts
        What the results are of, for the JSON file.
    """
    curves = [Line(f"{figure.target}, {figure.attack}", figure.curve) for figure in figures]
    picture = plots.roc("roc", "ROC curves of the membership attacks", curves)
    page = render("membership.html.j2", name=name, figures=figures, picture=Markup(picture))  # noqa: S704 - of plots
    with files.together(folder) as new:
        files.write(new / "membership.json", json.dumps(membership_content(figures, facts), indent=2) + "\n")
        files.write(new / "membership.html", page)
    return folder / "membership.html"


def membership_content(figures: Sequence[Figure], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results for JSON, without the curves."""
    rows = [{key: value for key, value in asdict(figure).items() if key != "curve"} for figure in figures]
    return {**facts, "figures": rows}


def write_inversion(folder: Path, name: str, update: Update, inversion: Inversion, facts: Mapping[str, Any]) -> Path:
    """Write ``inversion.html``, ``inversion.json`` and a picture per image, and return the first's path.

    ``inversion-1.png`` is the reconstruction, ``inversion-1-true.png`` the training image beside it.

    Parameters
    ----------
    folder
        Where they go.
    name
        The run's name.
    update, inversion
        What was attacked, and what came of it.
    facts
        What the results are of, for the JSON file.
    """
    rows = []
    pictures = dict[str, bytes]()
    for number, image in enumerate(inversion.images, 1):
        pixels = np.rint(np.clip(image.pixels, 0, 1) * 255).astype(np.uint8)
        pictures |= {f"inversion-{number}.png": png(pixels), f"inversion-{number}-true.png": png(image.true)}
        rows.append(
            {
                "image": image,
                "reconstructed": uri(pixels),
                "true": uri(image.true),
                "error": uri(_difference(image.pixels, image.true)),
            }
        )
    content = inversion_content(inversion, facts)
    with files.together(folder) as new:
        for picture, data in pictures.items():
            files.write(new / picture, data)
        files.write(new / "inversion.json", json.dumps(content, indent=2) + "\n")
        files.write(
            new / "inversion.html",
            render("inversion.html.j2", name=name, update=update, inversion=inversion, rows=rows),
        )
    for old in folder.glob("inversion-*.png"):  # of an earlier attack with more images
        if old.name not in pictures:
            old.unlink()
    return folder / "inversion.html"


def inversion_content(inversion: Inversion, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results for JSON, without the pixels."""
    images = [
        {
            "label": image.label,
            "verdict": image.verdict,
            "error": image.error,
            "largest_error": image.largest,
            "error_of_guess": image.guess,
        }
        for image in inversion.images
    ]
    return {
        **facts,
        "method": inversion.method,
        "note": inversion.note,
        "samples": inversion.samples,
        "images": images,
    }


def png(pixels: Images) -> bytes:
    """Return an image as an enlarged PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    large = pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    Image.fromarray(large).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def uri(pixels: Images) -> str:
    """Return an image as a ``data:`` URI."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def _difference(pixels: Wide, true: Images) -> Images:
    difference: Images = np.rint(np.clip(np.abs(pixels - true / 255), 0, 1) * 255).astype(np.uint8)
    return difference
