"""Exact images from the update of a first dense layer.

Each image x adds x δᵀ to the gradient of the layer's kernel and δ to that of its bias; δ has one value per unit. With
plain SGD the update is a sum of these over images and steps, whatever the learning rate. So:

- One image: kernel update divided by bias update is the image (Phong et al. 2017, https://eprint.iacr.org/2017/715).
- A unit that is active for only one of the images: its column divided by its bias update is that image (Boenisch et
  al. 2021, https://arxiv.org/abs/2112.02918).
- Few images: the update has their number as its rank. Of all factorizations, the right one has a sparse δ, because a
  ReLU is inactive for about half of the images (SPEAR, Dimitrov et al. 2024, https://arxiv.org/abs/2403.03945).

Pixels are multiples of 1/255, and mixtures of images are not. So the attacker knows without the truth which of its
images are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fl_node.runtime.tensors import Wide

MOST_IMAGES = 16
"""Rank up to which a factorization is searched; the effort doubles with each image."""
ON_GRID = 0.1
"""How far from a multiple of 1/255 a pixel of an exact image may be, in 1/255."""
DRAWS, AT_A_TIME, REFINED = 60_000, 2000, 60


def first_dense(model: Any) -> tuple[str, str] | None:
    """Return the names of kernel and bias of a Keras model's first layer, if that is dense with a ReLU; else None."""
    import keras

    layers = [layer for layer in model.layers if layer.weights]
    first = layers[0] if layers else None
    if (
        not isinstance(first, keras.layers.Dense)
        or not first.use_bias
        or first.activation is not keras.activations.relu
    ):
        return None
    return f"{first.name}/kernel", f"{first.name}/bias"


def exact_images(kernel: Wide, bias: Wide, rounding: float, seed: int) -> Wide:
    """Return the images that the update of a dense layer reveals exactly, as rows of pixels from 0 to 1.

    Parameters
    ----------
    kernel
        The update of the kernel, shape ``(pixels, units)``.
    bias
        The update of the bias, shape ``(units,)``.
    rounding
        The error of one value of ``kernel``: float32's, at the size of the weights.
    seed
        Decides in which order factorizations are tried.
    """
    alive = np.flatnonzero((np.abs(kernel) > 4 * rounding).any(axis=0) & (bias != 0))
    if not alive.size:
        return np.empty((0, len(kernel)))
    single = (kernel[:, alive] / bias[alive]).T
    found = [*_averaged(single[_on_grid(single)], bias[alive][_on_grid(single)])]
    together = _factorized(kernel[:, alive], bias[alive], rounding, seed)
    found += [image for image in together[_on_grid(together)] if not _among(image, found)]
    return np.array(found).reshape(-1, len(kernel))


def _on_grid(images: Wide) -> npt.NDArray[np.bool_]:
    """Return which rows are images: pixels are multiples of 1/255 from 0 to 1, and not all alike."""
    pixels = images * 255
    nearest = np.rint(pixels)
    fits = (np.abs(pixels - nearest) < ON_GRID) & (nearest >= 0) & (nearest <= 255)
    right: npt.NDArray[np.bool_] = fits.all(axis=1) & (np.ptp(nearest, axis=1) > 0)
    return right


def _among(image: Wide, some: list[Wide]) -> bool:
    return any(np.array_equal(np.rint(image * 255), np.rint(one * 255)) for one in some)


def _averaged(images: Wide, bias: Wide) -> list[Wide]:
    """Return each different image once: the average over its units, where a larger gradient has a smaller error."""
    kinds: dict[bytes, list[int]] = {}
    for row, image in enumerate(np.rint(images * 255).astype(np.int16)):
        kinds.setdefault(image.tobytes(), []).append(row)
    return [np.average(images[rows], axis=0, weights=bias[rows] ** 2) for rows in kinds.values()]


def _factorized(kernel: Wide, bias: Wide, rounding: float, seed: int) -> Wide:
    """Return the images of the sparsest factorization of the kernel's update, if there is one; else none."""
    none = np.empty((0, len(kernel)))
    left, sizes, right = np.linalg.svd(kernel, full_matrices=False)
    noise = rounding * (np.sqrt(kernel.shape[0]) + np.sqrt(kernel.shape[1]))
    rank = int((sizes > 4 * noise).sum())
    units = kernel.shape[1]
    if not 0 < rank <= min(MOST_IMAGES, units - 3):
        return none
    basis = right[:rank].T  # δ of each image is this times some direction
    directions = _sparse_directions(basis, 100 * noise / sizes[rank - 1], seed) if rank > 1 else np.ones((1, 1))
    if len(directions) < rank:
        return none
    mixed = directions.T
    scales = np.linalg.lstsq(basis @ mixed, bias, rcond=None)[0]
    if (np.abs(scales) < 1e-12).any():
        return none
    images: Wide = np.linalg.solve(mixed, (left[:, :rank] * sizes[:rank]).T) / scales[:, None]
    return images


def _sparse_directions(basis: Wide, tolerance: float, seed: int) -> Wide:
    """Return independent directions, one per image, for which most units are zero; fewer if not all are found.

    For the right direction about half of the units are zero. Any ``rank - 1`` of them determine it, so it is found by
    drawing units at random; of what is drawn, the directions with the most zeros are right.
    """
    rank = basis.shape[1]
    rows = basis / np.linalg.norm(basis, axis=1, keepdims=True)
    tolerance = float(np.clip(tolerance, 1e-6, 1e-2))
    random = np.random.default_rng(seed)
    candidates = np.empty((0, rank))
    counts = np.empty(0, np.int64)
    enough = min(80 * rank * 2 ** (rank - 1), DRAWS)  # each is right with probability rank / 2 ** (rank - 1), or so
    for _ in range(0, enough, AT_A_TIME):
        drawn = np.argsort(random.random((AT_A_TIME, len(rows))), axis=1)[:, : rank - 1]
        zero = np.abs(rows @ np.linalg.svd(rows[drawn])[2][:, -1, :].T) < tolerance
        best = np.argsort(-zero.sum(axis=0), kind="stable")[:REFINED]
        refined = np.array([np.linalg.svd(rows[zero[:, one]])[2][-1] for one in best if zero[:, one].any()])
        for direction in refined.reshape(-1, rank):
            if len(candidates) and np.abs(candidates @ direction).max() > 1 - 1e-4:
                continue
            candidates = np.vstack([candidates, direction])
            counts = np.append(counts, (np.abs(rows @ direction) < tolerance).sum())
        order = np.argsort(-counts, kind="stable")[: 50 * rank]
        candidates, counts = candidates[order], counts[order]
    chosen: list[Wide] = []
    for direction, count in zip(candidates, counts, strict=True):
        # As many zeros as were drawn, and some by chance, any direction has.
        independent = np.linalg.svd(np.array([*chosen, direction]), compute_uv=False)[-1] > 1e-3
        if count >= rank + 3 and independent:
            chosen.append(direction)
        if len(chosen) == rank:
            break
    return np.array(chosen).reshape(-1, rank)
