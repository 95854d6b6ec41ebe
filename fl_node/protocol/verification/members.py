"""A closed round as the contract recorded it, and the check that a global file lists each learner once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_node.artifacts.model_file import GlobalMeta, Input, Rejection
from fl_node.protocol.names import learner_label
from fl_node.protocol.verification.case import Case


@dataclass(frozen=True)
class Closing:
    """A closed round, as the contract recorded it.

    ``published`` are the CIDs of its local weights by nodeId, ``members`` the learners registered when it closed, and
    ``parent`` the CID of the global weights that it started from. ``spent`` is the number of different local weights
    that each learner had published in the whole run by then; only differential privacy needs it. In a run with masks
    ``openings`` are the CIDs of what removes them, and ``keys`` what learners announced on their own for the next
    round; both are by nodeId.
    """

    number: int
    parent: str
    published: Mapping[int, str]
    members: frozenset[int]
    spent: Mapping[int, int] = field(default_factory=dict)
    openings: Mapping[int, str] = field(default_factory=dict)
    keys: Mapping[int, str] = field(default_factory=dict)


def check_members(case: Case, closing: Closing, meta: GlobalMeta) -> None:
    """Check that a global file lists every learner once, with its publication, and no other learners.

    Parameters
    ----------
    case
        The run.
    closing
        The round that the file ends.
    meta
        The file's metadata.
    """
    result, number = case.result, closing.number + 1
    named = [*(i.node_id for i in meta.inputs), *(r.node_id for r in meta.refused), *meta.absent]
    for node_id in sorted(set(named)):
        if named.count(node_id) > 1:
            result.find(number, learner_label(node_id), "inputs", "is listed more than once")
        if node_id not in closing.members:
            result.find(number, learner_label(node_id), "inputs", "takes part without registration")
    for node_id in sorted(closing.members):
        published = node_id in closing.published
        if node_id not in named:
            what = "published local weights" if published else "is registered"
            result.find(number, learner_label(node_id), "inputs", f"{what}, but is left out")
        elif node_id in meta.absent and published:
            result.find(number, learner_label(node_id), "absent", "is listed as missing, but had published")


def is_published(case: Case, closing: Closing, one: Input | Rejection, field: str) -> bool:
    """Check that a CID is the one that a learner had published when the round closed.

    Parameters
    ----------
    case
        The run.
    closing
        The round.
    one
        What a global file says of the learner.
    field
        The field that a finding names.
    """
    published = closing.published.get(one.node_id)
    if published == one.cid:
        return True
    text = f"published {published} in this round, not {one.cid}" if published else "published nothing in this round"
    case.result.find(closing.number, learner_label(one.node_id), field, text)
    return False
