"""The result of an audit: findings, notes, and the amount of data read."""

from __future__ import annotations

from dataclasses import dataclass

from fl_node.protocol.verification.findings import Finding as Finding
from fl_node.protocol.verification.findings import Findings
from fl_node.protocol.verification.findings import Note as Note


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
