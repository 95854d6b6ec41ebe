"""The result of an audit: what was found, and how much was read for it."""

from __future__ import annotations

from dataclasses import dataclass

from fl_node.protocol.verification.findings import Finding as Finding
from fl_node.protocol.verification.findings import Findings


@dataclass
class Audit(Findings):
    """The result: findings that make the audit fail, and notes that don't."""

    contract: str = ""
    plan_cid: str = ""
    rounds: int = 0
    files: int = 0
    """Files fetched, the plan too."""
    bytes: int = 0
    """Bytes of the model files among them."""
