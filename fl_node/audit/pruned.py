"""Rounds whose files hosts have deleted, as the plan's ``retention`` says: which, by whom, and who verified them.

Whether files may be gone follows from the plan and the chain alone (:mod:`fl_node.protocol.retention`). The learners'
journals say who deleted them and when, and statements of earlier audits who had recomputed the global weights before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fl_node.audit.journals import when
from fl_node.audit.result import Audit, Deed, PrunedRound
from fl_node.chain.contract import Contract
from fl_node.errors import JournalError
from fl_node.protocol import history
from fl_node.protocol import statement as statements
from fl_node.protocol.history import History, Round
from fl_node.protocol.journal import Journal
from fl_node.protocol.names import HEADER, learner_label
from fl_node.protocol.retention import first_kept
from fl_node.protocol.statement import Statement
from fl_node.protocol.verification.case import Case
from fl_node.wording import counted

PRUNED, WRONG_STATEMENT = "pruned", "wrong_statement"
"""Codes of notes."""
LOOK_TIMEOUT = 2.0
"""Seconds in which a file that may be gone has to arrive."""
MISSES = 3
"""Rounds in a row that lack files after which no older ones are looked for; one, if journals say who deleted them."""


@dataclass(frozen=True)
class Words:
    """The signed journals and statements about a run that this audit was given."""

    contract: str
    journals: Sequence[Journal] = ()
    statements: Sequence[Statement] = ()


def read_statements(paths: Iterable[Path], result: Audit) -> list[Statement]:
    """Read signed results of earlier audits; note those that are not what they say.

    Parameters
    ----------
    paths
        Their files.
    result
        Receives the notes.

    Raises
    ------
    ConfigError
        A file can't be read.
    """
    known = []
    for path in paths:
        try:
            known.append(statements.read(path))
        except JournalError as error:
            result.note(f"{error}; it is ignored", WRONG_STATEMENT)
    return known


class Pruned:
    """The closed rounds that need not have all their files and don't have them.

    Files are looked for, the newest rounds first, until rounds lack them. Where the journals say that all learners
    of a round deleted theirs, one such round is enough; somebody else may have kept all of them.

    Parameters
    ----------
    case, past
        The run.
    words
        Journals and statements.

    Raises
    ------
    StoreUnreachable
        The store does not answer.
    """

    def __init__(self, case: Case, past: History, words: Words) -> None:
        self.rounds: dict[int, PrunedRound] = {}
        self._case = case
        self._deleted, self._verified = _deleted(past, words), _verified(case, past, words)
        misses = 0
        for closed in reversed(past.rounds[: first_kept(case.plan, past)]):
            is_known = closed.latest().keys() <= self._deleted.get(closed.number, {}).keys()
            if misses < (1 if is_known else MISSES):
                if self._has_all_files(closed):
                    misses = 0
                    continue
                misses += 1
            self._add(closed.number)

    def has(self, closed: Round, contract: Contract) -> bool:
        """Return whether the files of a round are gone as agreed; hosts may delete files while an audit goes on.

        Parameters
        ----------
        closed
            The round.
        contract
            The run's contract.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        ChainError
            The chain can't be read.
        """
        plan, number = self._case.plan, closed.number
        if plan.retention is None or number in self.rounds:
            return number in self.rounds
        if self._has_all_files(closed) or number >= first_kept(plan, history.read(contract)):
            return False
        self._add(number)
        return True

    def _add(self, number: int) -> None:
        deleted = tuple(deed for _, deed in sorted(self._deleted.get(number, {}).items()))
        self.rounds[number] = PrunedRound(number, deleted, tuple(self._verified.get(number + 1, ())))

    def _has_all_files(self, closed: Round) -> bool:
        """Return whether all files of a round arrive in time; they then stay in the reader's folder."""
        reader, timeout = self._case.reader, min(LOOK_TIMEOUT, self._case.plan.fetch_timeout)
        return all(
            reader.is_available(str(entry.cid), timeout, entry.node_id) for entry in closed.latest().values()
        ) and all(reader.is_opening_available(str(entry.cid), timeout) for entry in closed.openings)


def note_pruned(pruned: Iterable[PrunedRound], rounds: int, result: Audit) -> None:
    """Note which rounds were not recomputed, and what is known of them; a note for each group of rounds.

    Parameters
    ----------
    pruned
        The rounds.
    rounds
        The plan's ``retention.rounds``.
    result
        Receives the notes.
    """
    ordered = sorted(pruned, key=lambda entry: entry.round)

    def alike(numbered: tuple[int, PrunedRound]) -> object:
        position, entry = numbered
        return (
            entry.round - position,
            [deed.account for deed in entry.deleted],
            [deed.account for deed in entry.verified],
        )

    for _, group in groupby(enumerate(ordered), key=alike):
        members = [entry for _, entry in group]
        first, last = members[0], members[-1]
        named = f"round {first.round}" if first is last else f"rounds {first.round} to {last.round}"
        by = _named([entry.deleted for entry in members]) or "no record of who deleted them is at hand"
        text = f"{named}: pruned as agreed (retention of {counted(rounds, 'round')}), not recomputed; deleted by {by}"
        if not first.deleted:
            text = f"{named}: pruned as agreed (retention of {counted(rounds, 'round')}), not recomputed; {by}"
        checked = _named([entry.verified for entry in members])
        text += f"; verified earlier by {checked}" if checked else "; no signed result of an earlier audit is at hand"
        result.note(text, PRUNED, first.round)


def _named(deeds: Sequence[Sequence[Deed]]) -> str:
    """Return the accounts of rounds with the same ones, with the first and last time of each."""
    parts = []
    for of_one in zip(*deeds, strict=True):
        times = sorted(deed.time for deed in of_one)
        span = when(times[0]) if when(times[0]) == when(times[-1]) else f"{when(times[0])} to {when(times[-1])}"
        parts.append(f"{of_one[0].who} ({of_one[0].account}), {span}")
    return "; ".join(parts)


def _deleted(past: History, words: Words) -> dict[int, dict[int, Deed]]:
    """Return who says that it deleted its files of a round, by round and nodeId."""
    accounts = {str(entry.account): node_id for node_id, entry in past.learners.items()}
    deeds: dict[int, dict[int, Deed]] = {}
    for journal in words.journals:
        node_id = accounts.get(journal.account)
        for entry in journal.pruned:
            of_run = entry.contract == words.contract and 0 <= entry.round < len(past.rounds)
            if node_id is None or not of_run or str(past.rounds[entry.round].started.cid) != entry.cid:
                continue
            deed = Deed(learner_label(node_id), journal.account, entry.seen)
            deeds.setdefault(entry.round, {}).setdefault(node_id, deed)
    return deeds


def _verified(case: Case, past: History, words: Words) -> dict[int, list[Deed]]:
    """Return who says that it recomputed global weights, by their round."""
    labels = {past.deployer: HEADER} | {str(e.account): learner_label(n) for n, e in past.learners.items()}
    on_chain = {started.number: str(started.started.cid) for started in past.rounds}
    deeds: dict[int, list[Deed]] = {}
    for statement in sorted(words.statements, key=lambda one: one.time):
        if (statement.contract, statement.plan) != (words.contract, past.plan_cid):
            continue
        deed = Deed(labels.get(statement.account, "an account without a role"), statement.account, statement.time)
        for number, name in statement.weights.items():
            if on_chain.get(number) == name:
                deeds.setdefault(number, []).append(deed)
            else:
                text = (
                    f"{deed.who} ({deed.account}) recomputed other global weights {number} than the chain has: {name}"
                )
                case.result.note(text, WRONG_STATEMENT, number, deed.account)
    return deeds
