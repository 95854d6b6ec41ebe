"""What an attacker reads: one learner's update, from chain and store alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_node.artifacts.model_file import Tensors
from fl_node.errors import ConfigError
from fl_node.plan.schema import Plan
from fl_node.protocol.compressed import decoded
from fl_node.protocol.history import History
from fl_node.protocol.names import learners_label
from fl_node.protocol.publications import check_origin
from fl_node.protocol.reader import Reader
from fl_node.protocol.retention import first_kept, gone
from fl_node.runtime.tensors import Tensor, Wide

LARGEST = 1.0
"""The largest change of a weight that an attacker takes masked words for."""


@dataclass(frozen=True)
class Update:
    """What a learner published in a round, and the global weights that it trained from.

    ``round`` is the round of those global weights; it is also part of the seed of the training. Of a masked file
    ``local`` is what :func:`as_change` makes of it.
    """

    node_id: int
    round: int
    cid: str
    parent_cid: str
    local: Tensors
    parent: Tensors
    is_masked: bool = False

    def change(self) -> dict[str, Wide]:
        """Return local minus global weights, by name, float64."""
        return {name: self.local[name].astype(np.float64) - self.parent[name] for name in self.parent}


def attackable(
    plan: Plan, past: History, wanted: Collection[int], round_: int | None = None
) -> tuple[int, list[int]]:
    """Return the round that is attacked, and the learners.

    Parameters
    ----------
    plan
        The run's plan.
    past
        What the chain says of the run.
    wanted
        The learners; if there are none, whoever published in the round. In an asynchronous run, or where learners
        were lost, not all publish in each round.
    round_
        The round; by default the last closed one in which these learners published.

    Raises
    ------
    ConfigError
        There is no such learner or round.
    """
    for node_id in wanted:
        _check_learner(plan, node_id)
    if round_ is not None:
        there = past.rounds[round_].latest() if round_ < len(past.rounds) else {}
        return round_, sorted(set(wanted) or there or range(1, plan.learners + 1))
    closed = past.rounds[:-1]
    if not closed:
        raise ConfigError(f"run {plan.name}: no round is closed yet")
    for number in range(len(closed) - 1, -1, -1):
        published = closed[number].latest()
        if published and set(wanted) <= published.keys():
            return number, sorted(set(wanted) or published)
    together = " together" if len(set(wanted)) > 1 else ""
    raise ConfigError(f"run {plan.name}: {learners_label(set(wanted))} published in no closed round{together}")


def _check_learner(plan: Plan, node_id: int) -> None:
    if not 1 <= node_id <= plan.learners:
        raise ConfigError(f"--learner {node_id}: should be 1 to {plan.learners}")


def read_update(reader: Reader, past: History, plan: Plan, node_id: int, round_: int) -> Update:
    """Read what the store has of a learner's training in a round.

    This is all that the attacks see of a learner.

    Parameters
    ----------
    reader
        Reads the files of the run; it knows plan and model.
    past
        What the chain says of the run.
    plan
        The run's plan.
    node_id
        The learner.
    round_
        The round in which it published.

    Raises
    ------
    ConfigError
        There is no such round, the learner published nothing in it, or its file is deleted.
    WeightsError
        The file is not the learner's local weights of this round.
    StoreError
        A file is not available.
    """
    _check_learner(plan, node_id)
    published = [one.number for one in past.rounds if node_id in one.latest()]
    if round_ not in published:
        there = f"published in rounds {', '.join(map(str, published))}" if published else "published nothing yet"
        raise ConfigError(f"--round {round_}: learner {node_id} {there}")
    if round_ < (kept := first_kept(plan, past)):
        raise ConfigError(f"--round {round_}: {gone(plan, kept)}; choose a later round")
    file = reader.read(str(past.rounds[round_].latest()[node_id].cid), node_id)
    # Masked files have no asynchronous runs; an asynchronous learner may have started before the round.
    is_masked = plan.privacy.secure_aggregation
    began = round_ if is_masked else min(file.local_meta.round, round_)
    parent_cid = str(past.rounds[began].started.cid)
    parent = reader.read(parent_cid)
    names = [name for name in parent.shapes if name in file.shapes]  # without the state of the rule, or of masks
    weights = {name: parent.tensor(name) for name in names}
    if is_masked:
        local = {name: weights[name] + as_change(file.tensor(name)) for name in names}
    else:
        check_origin(file, plan, past.plan_cid, node_id, round_=began, parent=parent_cid)
        local = decoded(file, parent, plan).tensors()
    return Update(node_id, began, file.cid, parent_cid, local, weights, is_masked)


def as_change(words: npt.NDArray[np.generic]) -> Tensor:
    """Return what an attacker can make of masked words: the integers of a change, as if they had no mask.

    Nobody knows their scale, so the largest becomes :data:`LARGEST`.
    """
    signed = words.view(np.dtype(f"i{words.itemsize}"))
    change: Tensor = (signed * (LARGEST / 2.0 ** (8 * words.itemsize - 1))).astype(np.float32)
    return change
