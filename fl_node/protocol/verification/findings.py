"""The result of a verification: findings, which make it fail, and notes, which don't."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

MAX_TEXT = 500
"""Maximum length of a finding or a note in characters; a file may contain a long string instead of a hash."""


def _line(message: str) -> str:
    """Return a message as one line of at most :data:`MAX_TEXT` characters; it may quote a file."""
    line = " ".join(message.split())
    return line if len(line) <= MAX_TEXT else line[:MAX_TEXT] + "…"


@dataclass(frozen=True)
class Finding:
    """An error in a run: its round, node and field, and a message.

    ``round`` is that of the wrong global weights, or of those from which wrong local weights were trained; None
    concerns the whole run. ``node`` is ``header`` or ``learner N``. ``proven`` is False if only a file is missing,
    which may become available again.
    """

    round: int | None
    node: str
    field: str
    message: str
    proven: bool = True

    def __str__(self) -> str:
        where = self.node if self.round is None else f"round {self.round}, {self.node}"
        return f"{where}, {self.field}: {self.message}"


class Note(str):
    """A sentence for people; programs match ``code``, ``round`` and ``about`` (a node or a CID)."""

    code: str
    round: int | None
    about: str

    def __new__(cls, message: str, code: str = "", round_: int | None = None, about: str = "") -> Self:
        """Return a note with its code."""
        note = super().__new__(cls, message)
        note.code, note.round, note.about = code, round_, about
        return note


@dataclass(kw_only=True)
class Findings:
    """All findings and notes of a verification."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Not a field, so that it is not part of the result.
        self._known: set[Finding | str] = {*self.findings, *self.notes}

    @property
    def passed(self) -> bool:
        """Whether there are no findings."""
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
            The error in words; cut to :data:`MAX_TEXT` characters.
        proven
            False if only a file is missing.
        """
        finding = Finding(round_, node, field_, _line(message), proven)
        if finding not in self._known:
            self._known.add(finding)
            self.findings.append(finding)

    def compare(self, round_: int | None, node: str, field_: str, actual: object, expected: object) -> None:
        """Add a finding if a field does not have the expected value.

        Parameters
        ----------
        round_, node, field_
            As for :meth:`find`.
        actual
            The value in the file or on the chain.
        expected
            The value that it should have.
        """
        if actual != expected:
            self.find(round_, node, field_, f"is {actual}, should be {expected}")

    def note(self, message: str, code: str = "", round_: int | None = None, about: str = "") -> None:
        """Add a note, unless it is recorded already.

        Parameters
        ----------
        message
            The note, for people; cut to :data:`MAX_TEXT` characters.
        code, round_, about
            Its kind, the round and the node or file concerned, for programs; see :class:`Note`.
        """
        line = _line(message)
        if line not in self._known:
            self._known.add(line)
            self.notes.append(Note(line, code, round_, about))
