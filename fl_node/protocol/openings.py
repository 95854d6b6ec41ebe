"""Openings: files in canonical JSON with the shares by which members of a closed round remove masks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from fl_node.artifacts import cid
from fl_node.artifacts.model_file import MAX_COUNT
from fl_node.errors import JsonError, WeightsError
from fl_node.privacy.dealing import SHARE_BYTES
from fl_node.runtime import strict_json

FORMAT = "fl-node/opening/1"
MAX_BYTES = 16 * 1024**2
MAX_MEMBERS = 1000
"""Maximum size: a learner opens shares of some seeds of each neighbour; with 1,000 learners it has 40 neighbours."""
_SHARE = re.compile(rf"[0-9a-f]{{{2 * SHARE_BYTES}}}")
_NODE = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Opening:
    """The opening of a member of a closed round.

    ``members`` is the set of learners whose sum it opens, and ``shares`` has the learner's shares of seeds by member
    and place; see :func:`fl_node.privacy.dealing.opened_places`.
    """

    plan: str
    node_id: int
    round: int
    parent: str
    members: tuple[int, ...]
    shares: Mapping[int, Mapping[int, bytes]]

    def to_bytes(self) -> bytes:
        """Return the canonical form that is published."""
        content = {
            "format": FORMAT,
            "members": list(self.members),
            "node_id": self.node_id,
            "parent": self.parent,
            "plan": self.plan,
            "round": self.round,
            "shares": {
                str(member): {str(place): share.hex() for place, share in sorted(shares.items())}
                for member, shares in sorted(self.shares.items())
            },
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def parse(content: bytes) -> Opening:
    """Parse a received opening.

    Raises
    ------
    WeightsError
        The content is not an opening in the canonical form of :meth:`Opening.to_bytes`.
    """
    try:
        values = strict_json.loads(content.decode("ascii", "replace"), max_bytes=MAX_BYTES, max_depth=4, max_text=200)
    except JsonError as error:
        raise WeightsError(f"no opening: it {error}", "opening") from error
    opening = _opening(values)
    if opening is None or opening.to_bytes() != content:
        raise WeightsError("no opening in canonical form", "opening")
    return opening


def _opening(values: object) -> Opening | None:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return None
    members, shares = values.get("members"), values.get("shares")
    node_id, round_, parent, plan = (values.get(name) for name in ("node_id", "round", "parent", "plan"))
    if not isinstance(members, list) or not isinstance(shares, dict) or not _is_cid(parent) or not _is_cid(plan):
        return None
    if max(len(members), len(shares)) > MAX_MEMBERS:
        return None
    if not _is_count(node_id) or not _is_count(round_) or not all(map(_is_count, members)):
        return None
    parsed: dict[int, dict[int, bytes]] = {}
    for member, of_member in shares.items():
        if not _NODE.fullmatch(str(member)) or not isinstance(of_member, dict):
            return None
        parsed[int(member)] = {}
        for place, share in of_member.items():
            if not _NODE.fullmatch(str(place)) or not isinstance(share, str) or not _SHARE.fullmatch(share):
                return None
            parsed[int(member)][int(place)] = bytes.fromhex(share)
    return Opening(str(plan), node_id, round_, str(parent), tuple(members), parsed)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_cid(value: object) -> bool:
    try:
        cid.to_digest(str(value))
    except cid.CidError:
        return False
    return isinstance(value, str)
