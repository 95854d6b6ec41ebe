"""Ensembles: what models of different architectures count for when they answer together.

The global file of an ensemble holds, for each architecture, the average of its learners' weights under
``ARCHITECTURE/``, and beside them what each counts for: together they give each class the sum of the members'
probabilities for it, weighted by ``ensemble/weights`` (a linear opinion pool: Stone, "The Opinion Pool", Annals of
Mathematical Statistics 32, 1961).

What a member said of the held-out images stands in the file too, under ``evidence/``: so anyone with the file can
recompute the weights bit for bit, without a data set, and anyone with the images can measure the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fl_node.aggregation.rule import in_order
from fl_node.runtime.tensors import Tensor, Tensors, Wide

WEIGHTS = "ensemble/weights"
"""The tensor with what each architecture counts for, in the order of their names; sums to 1 up to its rounding."""
STEPS = 300
"""Steps of expectation and maximisation; more change nothing in the sixth decimal for some thousand images."""
GRAIN = 2.0**-12
"""Likelihoods are multiples of this: two machines whose last bits differ say the same but at an edge."""

Evidence = Callable[[str, Tensors], Tensor]
"""What an architecture's weights say of the held-out images, float32 of shape ``(images,)``; see :func:`evidence`."""


def evidence_name(architecture: str) -> str:
    """Return the name of the tensor with what a member said of the held-out images."""
    return f"evidence/{architecture}"


def evidence(weighting: str | None, probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Tensor:
    """Return the evidence for a member, one float32 value per image, from its predictions.

    With ``accuracy`` the value is 1 for each image that the member classifies correctly, else 0. With ``convex`` it
    is the probability of the true label, rounded to a multiple of :data:`GRAIN` and at least :data:`GRAIN`. A
    prediction that is not a number (NaN) also counts as :data:`GRAIN`.

    Parameters
    ----------
    weighting
        How the plan weights the members: ``accuracy`` or ``convex``.
    probabilities
        The member's prediction for each image and class, shape ``(images, classes)``, 0 to 1.
    labels
        The true label of each image, shape ``(images,)``.
    """
    if weighting == "accuracy":
        return np.asarray(probabilities.argmax(axis=1) == labels, np.float32)
    likelihood = np.nan_to_num(probabilities[np.arange(len(labels)), labels].astype(np.float64))
    return np.maximum(np.rint(likelihood / GRAIN), 1).astype(np.float32) * np.float32(GRAIN)


def is_evidence(weighting: str | None, values: Tensor) -> bool:
    """Return whether all values of a tensor are such as :func:`evidence` gives."""
    if weighting == "accuracy":
        return bool(np.isin(values, (0, 1)).all())
    steps = values.astype(np.float64) / GRAIN
    return bool(((steps == np.rint(steps)) & (steps >= 1) & (values <= 1)).all())


def unexplained(
    weighting: str | None, reported: Tensor, probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> int:
    """Return for how many images evidence differs from probabilities by more than rounding can make it.

    Parameters
    ----------
    weighting
        The plan's.
    reported
        The evidence in question, shape ``(images,)``.
    probabilities, labels
        What the member says here, shape ``(images, classes)``, and the labels, as for :func:`evidence`.
    """
    expected = evidence(weighting, probabilities, labels)
    if weighting == "accuracy":
        # Where the two best classes are as good as equal, another machine may choose the other.
        second, first = np.sort(probabilities, axis=1)[:, -2:].T
        return int(((reported != expected) & (first - second > GRAIN)).sum())
    return int((np.abs(reported.astype(np.float64) - expected) > GRAIN).sum())


def member_weights(weighting: str | None, evidences: Sequence[Tensor]) -> Tensor:
    """Return what each member counts for, from what they said of the held-out images.

    Parameters
    ----------
    weighting
        ``uniform``; ``accuracy``: by the number of images that each got right; or ``convex``: so that the labels are
        most likely. That likelihood is concave in the weights, and expectation and maximisation (Dempster, Laird &
        Rubin 1977) climb it without a step size: each weight is multiplied by the average of the member's likelihood
        over that of all together.
    evidences
        Of each member, as :func:`evidence` gives it; for ``uniform`` anything as long.

    Returns
    -------
    float32 array
        Shape ``(members,)``, none negative. Only sums in a fixed order, products and quotients in float64, rounded
        once: the same on every machine.
    """
    count = len(evidences)
    weights = np.full(count, 1.0 / count)
    if weighting == "accuracy":
        hits = [in_order(member.astype(np.float64)) for member in evidences]
        if (total := in_order(np.array(hits))) > 0:
            weights = np.array(hits) / total
    elif weighting == "convex":
        # Honest evidence is in these bounds; a lie must not divide by zero.
        likelihoods = [np.clip(values.astype(np.float64), GRAIN, 1.0) for values in evidences]
        for _ in range(STEPS):
            together: Wide = np.zeros_like(likelihoods[0])
            for weight, likelihood in zip(weights, likelihoods, strict=True):
                together = together + weight * likelihood
            shares = [in_order(likelihood / together) / len(likelihood) for likelihood in likelihoods]
            weights = weights * np.array(shares)
    return weights.astype(np.float32)
