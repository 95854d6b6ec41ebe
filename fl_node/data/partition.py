"""Who has which images: shards of the training set, one for each learner, without overlap.

How many images a learner has follows from the plan alone, so that an audit can check it without a data set; which
they are may depend on the labels. Everything is drawn with whole numbers from a stable generator, so that a shard is
the same on every machine.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fl_node.data.datasets import Labels
from fl_node.errors import DataError
from fl_node.plan.schema import CLASSES, Plan
from fl_node.seeds import derive, permutation

Indices = npt.NDArray[np.int64]


def equal(count: int, learners: int, seed: int) -> list[Indices]:
    """Share out ``count`` images at random in equal parts, as in Hwang & Kim (2024).

    Returns
    -------
    list of int arrays
        One a learner, in the order of nodeId; their sizes differ by at most one.
    """
    return [np.sort(part) for part in np.array_split(permutation(count, seed), learners)]


def by_quantity(sizes: Sequence[int], seed: int) -> list[Indices]:
    """Share out images at random in parts of the sizes given; labels are as mixed as in the whole."""
    order = permutation(sum(sizes), seed)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def by_labels(labels: Labels, learners: int, each: int, seed: int) -> list[Indices]:
    """Sort images by label, cut them into ``each`` parts a learner, and deal the parts out at random.

    McMahan et al. 2017, https://arxiv.org/abs/1602.05629, section 3: with two parts most learners have two labels.
    """
    shuffled = permutation(len(labels), derive(seed, "images"))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Every learner gets the same number of images, whichever parts it is dealt.
    sizes = _sizes(len(labels), learners)
    hands = np.array_split(permutation(learners * each, derive(seed, "deal")), learners)
    owner = np.empty(learners * each, np.int64)
    for learner, hand in enumerate(hands):
        owner[hand] = learner
    cuts = [np.array_split(np.arange(size), each) for size in sizes]
    lengths = {learner: [len(part) for part in parts] for learner, parts in enumerate(cuts)}
    parts: list[list[Indices]] = [[] for _ in range(learners)]
    start = 0
    for learner in owner.tolist():
        length = lengths[learner].pop()
        parts[learner].append(ordered[start : start + length])
        start += length
    return [np.sort(np.concatenate(part)) for part in parts]


def by_dirichlet(labels: Labels, learners: int, alpha: float, seed: int, classes: int = CLASSES) -> list[Indices]:
    """Share out images in equal parts, in which labels are mixed as drawn from a Dirichlet distribution.

    Hsu et al. 2019, https://arxiv.org/abs/1909.06335, section 3.1, here with the concentration ``alpha`` for each
    label. A learner draws its labels one after the other from Pólya's urn, which is the same distribution and needs
    no random numbers but whole ones; a label of which none is left is drawn again.
    """
    left = [list(permutation(int((labels == c).sum()), derive(seed, "images", c))) for c in range(classes)]
    where = [np.flatnonzero(labels == c) for c in range(classes)]
    sizes = _sizes(len(labels), learners)
    draws = [_draws(derive(seed, "labels", learner)) for learner in range(learners)]
    seen: list[list[int]] = [[] for _ in range(learners)]
    parts: list[list[int]] = [[] for _ in range(learners)]
    # In turns, so that those who draw when labels run out are not always the same.
    for turn in range(max(sizes, default=0)):
        for learner in range(learners):
            if turn < sizes[learner]:
                there = [c for c in range(classes) if left[c]]
                label = _polya(draws[learner], seen[learner], there, alpha)
                if not left[label]:
                    label = there[draws[learner](len(there))]
                seen[learner].append(label)
                parts[learner].append(where[label][left[label].pop()])
    return [np.sort(np.array(part, np.int64)) for part in parts]


def quantities(count: int, learners: int, alpha: float, seed: int) -> list[int]:
    """Return how many images each learner has if their shares are drawn from a Dirichlet distribution; at least one.

    By Pólya's urn as in :func:`by_dirichlet`.
    """
    draw = _draws(seed)
    seen: list[int] = []
    everyone = list(range(learners))
    for _ in range(count - learners):
        seen.append(_polya(draw, seen, everyone, alpha))
    return [1 + size for size in np.bincount(np.array(seen, np.int64), minlength=learners).tolist()]


def _polya(draw: Callable[[int], int], seen: Sequence[int], colours: Sequence[int], alpha: float) -> int:
    """Draw from an urn with ``alpha`` balls of each colour and one more for each that was seen."""
    # Whole numbers decide, so that nothing depends on how a machine rounds.
    new = round(alpha * len(colours) * _SCALE)
    if draw(new + len(seen) * _SCALE) < new:
        return colours[draw(len(colours))]
    return seen[draw(len(seen))]


_SCALE = 1000


def _draws(seed: int) -> Callable[[int], int]:
    """Return a function that gives a number below its argument; biased by less than 2**-40 for those used here."""
    blocks = (np.random.Philox(key=derive(seed, block)).random_raw(4096).tolist() for block in itertools.count())
    numbers = itertools.chain.from_iterable(blocks)
    return lambda below: int(next(numbers)) % below


def _sizes(count: int, learners: int) -> list[int]:
    return [len(part) for part in np.array_split(np.empty(count, np.uint8), learners)]


def shard(plan: Plan, node_id: int, labels: Callable[[], Labels] | None = None) -> Indices:
    """Return the indices of the training images that a learner trains on, in ascending order.

    Parameters
    ----------
    plan
        The run's plan.
    node_id
        The learner's node, 1 to ``plan.learners``.
    labels
        Returns the labels of all training images, shape ``(count,)``; needed where the plan shares out by label.

    Raises
    ------
    DataError
        The plan has no shard for this node.
    """
    _known(plan, node_id)
    chosen = _chosen(plan)
    by_label: Callable[[], Labels] = lambda: _labels(plan, labels)[chosen]  # noqa: E731
    return np.sort(chosen[_parts(plan, len(chosen), by_label)[node_id - 1]])


def label_counts(plan: Plan, labels: Labels) -> dict[int, list[int]]:
    """Return how many images of each label each learner has, by nodeId."""
    chosen = _chosen(plan)
    parts = _parts(plan, len(chosen), lambda: labels[chosen])
    return {
        node_id: np.bincount(labels[chosen[part]], minlength=plan.data.class_count).tolist()
        for node_id, part in enumerate(parts, 1)
    }


def held_out(plan: Plan) -> Indices:
    """Return the indices of the training images that no learner has, in ascending order; none unless planned."""
    return np.sort(_order(plan)[plan.data.train : plan.data.train + (plan.data.validation or 0)])


def shared(plan: Plan) -> Indices:
    """Return the indices of the training images that all nodes have, in ascending order; none unless planned."""
    first = plan.data.train + (plan.data.validation or 0)
    return np.sort(_order(plan)[first : first + (plan.data.shared or 0)])


def everyone(plan: Plan) -> Indices:
    """Return the indices of the training images that all learners have together, in ascending order."""
    return np.sort(_chosen(plan))


def _order(plan: Plan) -> Indices:
    available, _ = plan.data.available
    if plan.own is not None:
        return np.arange(available)
    return permutation(available, derive(plan.seed, "choose"))


def _chosen(plan: Plan) -> Indices:
    return _order(plan)[: plan.data.train]


def _known(plan: Plan, node_id: int) -> None:
    if not 1 <= node_id <= plan.learners:
        raise DataError(
            f"the plan shares the images among learners 1 to {plan.learners}; there is none for learner {node_id}"
        )


def _labels(plan: Plan, labels: Callable[[], Labels] | None) -> Labels:
    if labels is None:
        raise DataError(f"the plan shares the images out by {plan.data.partition}, which needs their labels")
    return labels()


def _parts(plan: Plan, count: int, labels: Callable[[], Labels]) -> list[Indices]:
    seed = derive(plan.seed, "partition")
    match plan.data.partition:
        case "dirichlet":
            alpha = plan.data.alpha or 1.0
            return by_dirichlet(labels(), plan.learners, alpha, seed, plan.data.class_count)
        case "labels":
            return by_labels(labels(), plan.learners, plan.data.labels_each or 1, seed)
        case "quantity":
            return by_quantity(_quantities(plan), seed)
        case "module":
            return np.split(np.arange(count), np.cumsum(plan.data.samples or ())[:-1])
    return equal(count, plan.learners, seed)


@functools.lru_cache(maxsize=8)
def _quantities(plan: Plan) -> list[int]:
    return quantities(plan.data.train, plan.learners, plan.data.alpha or 1.0, derive(plan.seed, "quantity"))


@functools.lru_cache(maxsize=1024)
def shard_size(plan: Plan, node_id: int) -> int:
    """Return how many images :func:`shard` gives a learner."""
    _known(plan, node_id)
    match plan.data.partition:
        case "quantity":
            return _quantities(plan)[node_id - 1]
        case "module":
            return (plan.data.samples or ())[node_id - 1]
    return _sizes(plan.data.train, plan.learners)[node_id - 1]
