"""The result of an audit: findings that make it fail, and notes that don't."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TEXT = 500
"""Characters of a finding; a header may have written much where a hash should be."""


@dataclass(frozen=True)
class Finding:
    """Something in a run that is not as it should be: where, which field, and what.

    ``round`` is that of the global weights that are wrong, or that the wrong local weights were made from;
    ``node`` is ``header`` or ``learner N``.
    """

    round: int | None
    node: str
    field: str
    message: str

    def __str__(self) -> str:
        where = self.node if self.round is None else f"round {self.round}, {self.node}"
        return f"{where}, {self.field}: {self.message}"


@dataclass
class Audit:
    """The result: findings that make the audit fail, and notes that don't."""

    contract: str
    plan_cid: str = ""
    rounds: int = 0
    files: int = 0
    """Files fetched, the plan too."""
    bytes: int = 0
    """Bytes of the model files among them."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def find(self, round_: int | None, node: str, field_: str, message: str) -> None:
        """Add a finding, unless it is recorded already.

        Parameters
        ----------
        round_
            The round of the global weights concerned; None if the finding concerns the whole run.
        node
            ``header`` or ``learner N``.
        field_
            The field or the check that failed.
        message
            What is wrong, for people; cut to :data:`MAX_TEXT` characters.
        """
        line = " ".join(message.split())
        finding = Finding(round_, node, field_, line if len(line) <= MAX_TEXT else line[:MAX_TEXT] + "…")
        if finding not in self.findings:
            self.findings.append(finding)

    def compare(self, round_: int | None, node: str, field_: str, found: object, right: object) -> None:
        """Add a finding if a field does not have the expected value.

        Parameters
        ----------
        round_, node, field_
            As for :meth:`find`.
        found
            The value in the file or on the chain.
        right
            The value that it should have.
        """
        if found != right:
            self.find(round_, node, field_, f"is {found}, should be {right}")

    def note(self, text: str) -> None:
        """Add a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)
