"""What a verification finds: findings that make it fail, and notes that don't."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TEXT = 500
"""Characters of a finding; a header may have written much where a hash should be."""


@dataclass(frozen=True)
class Finding:
    """Something in a run that is not as it should be: where, which field, and what.

    ``round`` is that of the global weights that are wrong, or that the wrong local weights were made from;
    ``node`` is ``header`` or ``learner N``. ``proven`` is False if only a file is missing, which may come back.
    """

    round: int | None
    node: str
    field: str
    message: str
    proven: bool = True

    def __str__(self) -> str:
        where = self.node if self.round is None else f"round {self.round}, {self.node}"
        return f"{where}, {self.field}: {self.message}"


@dataclass(kw_only=True)
class Findings:
    """All findings and notes of one verification."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def find(self, round_: int | None, node: str, field_: str, message: str, *, proven: bool = True) -> None:
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
        proven
            False if only a file is missing.
        """
        line = " ".join(message.split())
        line = line if len(line) <= MAX_TEXT else line[:MAX_TEXT] + "…"
        finding = Finding(round_, node, field_, line, proven)
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
