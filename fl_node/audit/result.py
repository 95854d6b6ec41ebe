"""The result of an audit: findings, notes, and the amount of data read."""

from __future__ import annotations

from dataclasses import dataclass, field

from fl_node.protocol.verification.findings import Finding as Finding
from fl_node.protocol.verification.findings import Findings
from fl_node.protocol.verification.findings import Note as Note
from fl_node.wording import counted


@dataclass(frozen=True)
class Deed:
    """Who deleted files or recomputed global weights, by its own signed word, and when (seconds since 1970)."""

    who: str
    """Its role in the run."""
    account: str
    time: float


@dataclass(frozen=True)
class PrunedRound:
    """A round whose files are gone as agreed, so that the global weights that it ended with were not recomputed."""

    round: int
    deleted: tuple[Deed, ...] = ()
    """By learners that published in it; a learner whose record is not at hand is left out."""
    verified: tuple[Deed, ...] = ()
    """By earlier audits, which say that they recomputed these global weights."""


@dataclass
class Audit(Findings):
    """The result of an audit: findings, which make it fail, and notes, which don't."""

    contract: str = ""
    plan_cid: str = ""
    rounds: int = 0
    files: int = 0
    """Number of fetched files, including the plan."""
    bytes: int = 0
    """Total size of the fetched model files in bytes."""
    weights: dict[int, str] = field(default_factory=dict)
    """The CIDs of the global weights that were recomputed, by the round that starts from them."""
    pruned: list[PrunedRound] = field(default_factory=list)
    """The closed rounds that were not recomputed, in ascending order."""

    @property
    def recomputed(self) -> str:
        """Which global files were recomputed, as a sentence continues after "files fetched"."""
        if not self.rounds:
            return "no round is closed"
        if not self.pruned:
            every = "" if self.rounds == 1 else "all "
            return f"{every}{counted(self.rounds, 'global file')} recomputed bit for bit"
        count = len(self.pruned)
        return (
            f"{self.rounds - count} of {counted(self.rounds, 'global file')} recomputed bit for bit; "
            f"the local files of {counted(count, 'round')} are pruned as agreed"
        )
