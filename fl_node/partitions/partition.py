"""What a partition is, and the arithmetic that partitions share."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_node.runtime.settings import Settings
from fl_node.runtime.tensors import Indices, Labels
from fl_node.seeds import derive


@dataclass(frozen=True)
class Pool:
    """The training samples that learners share.

    Parameters
    ----------
    count
        The number of samples.
    learners
        The number of learners that share them.
    seed
        The run's seed.
    labels
        Returns the label of each sample, shape ``(count,)``.
    classes
        Returns the number of classes; labels are 0 to ``classes - 1``.
    samples
        The number of samples of each learner where the data decide it; else empty.
    """

    count: int
    learners: int
    seed: int
    labels: Callable[[], Labels]
    classes: Callable[[], int]
    samples: tuple[int, ...] = ()


class Partition(Settings):
    """How the learners share the training samples.

    The number of samples per learner follows from the plan alone, so that an audit can check it without the data;
    which samples these are may depend on the labels. Partitions draw integers from a stable generator, so that shards
    are the same on every machine.
    """

    module: ClassVar[bool] = False
    """Whether a custom module decides."""

    partition: str

    @property
    @abstractmethod
    def description(self) -> str:
        """How the samples are shared out, as a report says it."""

    @abstractmethod
    def parts(self, pool: Pool) -> list[Indices]:
        """Return the indices of each learner's samples in the pool.

        Parameters
        ----------
        pool
            The samples to share.

        Returns
        -------
        list of int64 arrays
            One array per learner, in the order of nodeId, each ascending.
        """

    def sizes(self, pool: Pool) -> Sequence[int]:
        """Return the number of samples of each learner, without the labels; by default equal.

        Parameters
        ----------
        pool
            The samples to share; its labels are not available.
        """
        return equal_sizes(pool.count, pool.learners)


def equal_sizes(count: int, learners: int) -> list[int]:
    """Return the sizes of equal parts; they differ by at most one."""
    return [len(part) for part in np.array_split(np.empty(count, np.uint8), learners)]


def polya(draw: Callable[[int], int], seen: Sequence[int], colours: Sequence[int], alpha: float) -> int:
    """Draw from Pólya's urn: ``alpha`` balls of each colour, and one more for each ball drawn before.

    Parameters
    ----------
    draw
        Returns a random integer that is at least 0 and less than its argument.
    seen
        The colours drawn before.
    colours
        The colours to choose from.
    alpha
        The concentration.
    """
    # Whole numbers decide, so that nothing depends on how a machine rounds.
    new = round(alpha * len(colours) * SCALE)
    if draw(new + len(seen) * SCALE) < new:
        return colours[draw(len(colours))]
    return seen[draw(len(seen))]


SCALE = 1000


def draws(seed: int) -> Callable[[int], int]:
    """Return a function that draws an integer from 0 up to, not including, its argument.

    The bias is below 2**-40 for the arguments used here.
    """
    blocks = (np.random.Philox(key=derive(seed, block)).random_raw(4096).tolist() for block in itertools.count())
    numbers = itertools.chain.from_iterable(blocks)
    return lambda below: int(next(numbers)) % below
