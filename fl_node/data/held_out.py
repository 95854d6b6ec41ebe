"""Training images that no learner has, by which models are measured before the end; the plan has their hash."""

from __future__ import annotations

import hashlib

import numpy as np

from fl_node.data import partition
from fl_node.data.datasets import DataSet, Images, Labels
from fl_node.errors import DataError
from fl_node.plan.schema import Plan


def held_out(plan: Plan, dataset: DataSet) -> tuple[Images, Labels]:
    """Return the images that the plan holds out from all learners, and their labels.

    Raises
    ------
    DataError
        The plan holds none out, or they are not those that it was published with.
    """
    images, labels = _images(plan, dataset)
    if not len(images):
        raise DataError(f"plan {plan.name} has no held-out images; set data.validation, such as 1000")
    digest = _digest(images, labels)
    if plan.data.validation_sha256 not in (None, digest):
        raise DataError(
            f"the held-out images of {dataset.source} have SHA-256 {digest[:16]}…, the plan requires "
            f"{str(plan.data.validation_sha256)[:16]}…; use the plan's data set"
        )
    return images, labels


def with_held_out(plan: Plan, dataset: DataSet) -> Plan:
    """Return the plan with the hash of the images that it holds out, if it does, as it is published."""
    if not plan.data.validation:
        return plan
    digest = _digest(*held_out(plan, dataset))
    return plan.model_copy(update={"data": plan.data.model_copy(update={"validation_sha256": digest})})


def _images(plan: Plan, dataset: DataSet) -> tuple[Images, Labels]:
    chosen = partition.held_out(plan)
    return dataset.train_images[chosen], dataset.train_labels[chosen]


def _digest(images: Images, labels: Labels) -> str:
    """Return the SHA-256 of the images, 784 bytes each, in the order of the data set, then a byte for each label."""
    return hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
