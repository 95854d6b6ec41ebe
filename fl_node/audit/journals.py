"""Compares the journals of the roles, which record and sign what a role saw, with the chain.

Honest sealers sometimes replace the newest blocks: when two of them seal at once, and after a split of the network.
It is a finding if a replaced block had at least as many blocks on top as there are sealers, or if the last state that
a role recorded is gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fl_node.audit.result import Audit
from fl_node.chain import clique
from fl_node.chain.contract import Contract
from fl_node.errors import ChainError
from fl_node.plan.schema import Plan
from fl_node.protocol import history, journal
from fl_node.protocol.history import History
from fl_node.protocol.journal import CLOCK_TOLERANCE, Entry, Journal
from fl_node.protocol.names import HEADER, learner_label
from fl_node.wording import counted

BACKDATED, CLOSED_EARLY, REPLACED = "backdated", "closed_early", "replaced"
DAMAGED, COPIES_DIFFER, OTHER_RUN, NO_ROLE = "damaged", "copies_differ", "other_run", "no_role"
SEALERS_CHANGED = "sealers_changed"
"""Codes of notes."""
MAX_LAG = 60.0
"""Seconds by which this node may lag behind a role's node."""
MAX_DIFFERENCES = 100
"""Maximum number of differences between a journal and the chain that are reported one by one."""
DEPTH = 12
"""Blocks on top of a block after which it should stay, on chains other than Clique."""


@dataclass(frozen=True)
class Evidence:
    """Journals, with the newest block's number and the time (seconds since 1970) when they were read."""

    journals: tuple[Journal, ...] = ()
    newest: int = 0
    time: float = 0.0


def read_journals(contract: Contract, paths: Iterable[Path]) -> Evidence:
    """Read journals. Call this before the history is read, so that the history covers them.

    Parameters
    ----------
    contract
        The run's contract.
    paths
        The paths of the journals.

    Raises
    ------
    ConfigError
        A file can't be read.
    ChainError
        The chain can't be read.
    """
    journals = tuple(journal.read(path) for path in paths)
    return Evidence(journals, contract.chain.block_number(), time.time())


def compare(contract: Contract, plan: Plan, paths: Iterable[Path]) -> list[str]:
    """Return findings and notes about a chain that was rewritten or whose block times are wrong, a sentence each.

    Parameters
    ----------
    contract, plan
        The run's contract and plan.
    paths
        The paths of the journals.

    Raises
    ------
    ConfigError
        A file can't be read.
    ChainError
        The chain can't be read.
    """
    evidence, result = read_journals(contract, paths), Audit()
    check_journals(contract, plan, history.read(contract), evidence, result)
    return [*map(str, result.findings), *result.notes]


def check_journals(
    contract: Contract,
    plan: Plan,
    past: History,
    evidence: Evidence,
    result: Audit,
) -> None:
    """Compare journals with the chain, and note the changes of the sealers during the run.

    Parameters
    ----------
    contract
        The run's contract.
    plan, past
        The run's plan and history.
    evidence
        The journals, read before the history.
    result
        Receives findings and notes.

    Raises
    ------
    ChainError
        The chain can't be read.
    """
    chain = contract.chain
    sealers, changes = clique.replay(chain, _first_block(past), chain.block_number())
    depth = len(sealers) or DEPTH
    labelled = [_labelled(content, contract, past, result) for content in evidence.journals]
    journals = _without_copies(filter(None, labelled), result)
    heights = [entry.height for labelled_journal in journals for entry in labelled_journal.entries]
    blocks = chain.blocks(heights)
    for labelled_journal in journals:
        _Comparison(labelled_journal, past, blocks, depth, evidence, result).run()
    _note_backdated_blocks(journals, blocks, result)
    if plan.mode != "async" and plan.round_timeout:
        _note_early_closings(journals, plan, past, result)
    for change in changes:
        verb = "was added to" if change.added else "was removed from"
        result.note(
            f"{change.account} {verb} the sealers in block {change.block}", SEALERS_CHANGED, about=change.account
        )


@dataclass(frozen=True)
class _LabelledJournal:
    """A journal with the name of its role."""

    label: str
    journal: Journal

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.journal.states


def _labelled(content: Journal, contract: Contract, past: History, result: Audit) -> _LabelledJournal | None:
    """Return a journal with the name of its role; None if it does not belong to a role of this run."""
    if content.problem:
        result.note(f"journal {content.path}: {content.problem}; the lines after it are ignored", DAMAGED)
    if not content.entries:
        return None
    first = content.entries[0]
    if first.contract != contract.address:
        result.note(f"journal {content.path} belongs to another run: {first.contract}", OTHER_RUN)
        return None
    accounts = {str(entry.account): learner_label(node_id) for node_id, entry in past.learners.items()}
    label = (accounts | {past.deployer: HEADER}).get(first.account)
    if label is None:
        result.note(f"journal {content.path} is ignored: {first.account} has no role in this run", NO_ROLE)
        return None
    return _LabelledJournal(f"{label}'s standby header" if first.role == HEADER != label else label, content)


def _without_copies(journals: Iterable[_LabelledJournal], result: Audit) -> list[_LabelledJournal]:
    """Return each role's longest journal, and those that contradict it, with a note of these."""
    distinct: dict[str, list[_LabelledJournal]] = {}
    for journal_ in sorted(journals, key=lambda labelled: -len(labelled.entries)):
        longer = distinct.setdefault(journal_.label, [])
        if any(other.entries[: len(journal_.entries)] == journal_.entries for other in longer):
            continue
        if longer:
            paths = f"{longer[0].journal.path} and {journal_.journal.path}"
            result.note(
                f"{journal_.label} has two journals that differ: {paths}", COPIES_DIFFER, about=journal_.label
            )
        longer.append(journal_)
    return [labelled for of_role in distinct.values() for labelled in of_role]


@dataclass(frozen=True)
class _Comparison:
    """Compares a journal with the chain."""

    labelled: _LabelledJournal
    past: History
    blocks: dict[int, dict[str, Any]]
    depth: int
    evidence: Evidence
    result: Audit

    @property
    def newest(self) -> int:
        return self.evidence.newest

    def run(self) -> None:
        """Add a finding or a note to the result for each difference."""
        rounds = (*self.past.rounds, *self.past.withdrawn)
        on_chain = {(past_round.number, str(past_round.started.cid)) for past_round in rounds}
        replaced: list[Entry] = []
        reported: set[tuple[int, str]] = set()
        for position, entry in enumerate(self.labelled.entries):
            weights = (entry.round, entry.cid)
            if weights not in on_chain and weights not in reported:
                reported.add(weights)
                if len(reported) <= MAX_DIFFERENCES:
                    self._report_difference(position, entry)
            if weights in on_chain and entry.height in self.blocks and not self._is_on_chain(entry):
                replaced.append(entry)
            else:
                self._note_replaced(replaced)
                replaced = []
        self._note_replaced(replaced)
        if (more := len(reported) - MAX_DIFFERENCES) > 0:
            text = f"recorded {counted(more, 'more global file')} that the chain does not have"
            self.result.find(None, self.labelled.label, "journal", text)

    def _is_on_chain(self, entry: Entry) -> bool:
        return bool(self.blocks.get(entry.height, {}).get("hash") == entry.block)

    def _report_difference(self, position: int, entry: Entry) -> None:
        """Add a finding, or a note if honest sealers may have caused the difference."""
        rounds = self.past.rounds
        started = rounds[entry.round].started if 0 <= entry.round < len(rounds) else None
        on_chain = f"{started.cid}, in block {started.block}" if started else "no weights of this round"
        where = f"at block {entry.height} ({entry.block}), {when(entry.seen)}"
        text = f"recorded {entry.cid} {where}; the chain has {on_chain}"
        later = self.labelled.entries[position + 1 :]
        successor = next(
            (i for i, other in enumerate(later) if other.round <= entry.round and other.cid != entry.cid), None
        )
        if successor is None:
            if self._may_lag(entry):
                ends = f"this node's chain ends at block {self.newest}"
                self.result.note(f"round {entry.round}, {self.labelled.label}: {text}; {ends}, so audit again later")
                return
        else:
            before, replacing = later[:successor], later[successor]
            on_top = max(replacing.top, *(other.height for other in before), 0) - entry.height
            if on_top < self.depth:
                self.result.note(
                    f"round {entry.round}, {self.labelled.label}: {text}; block {entry.height} was replaced while it "
                    "was new, as in a split of the network",
                    REPLACED,
                    entry.round,
                    self.labelled.label,
                )
                return
        self.result.find(entry.round, self.labelled.label, "journal", text)

    def _may_lag(self, entry: Entry) -> bool:
        """Return whether this node may not have the block yet: it is recent, and the blocks before it agree."""
        earlier = [other for other in self.labelled.entries if other.height <= self.newest]
        is_prefix = entry.height > self.newest and all(map(self._is_on_chain, earlier[-1:]))
        return is_prefix and self.evidence.time - entry.seen < MAX_LAG

    def _note_replaced(self, replaced: Sequence[Entry]) -> None:
        """Add a note if replaced blocks had many blocks on top, although the global weights are the same."""
        if replaced and (on_top := replaced[-1].height - replaced[0].height) >= self.depth:
            first = replaced[0]
            self.result.note(
                f"{self.labelled.label} recorded block {first.height} ({first.block}) and {on_top} on top; the chain "
                "has other blocks there, with the same global weights"
            )


def _note_backdated_blocks(
    journals: Iterable[_LabelledJournal], blocks: dict[int, dict[str, Any]], result: Audit
) -> None:
    """Note blocks with a time before a role last read the chain without seeing them."""
    by_block: dict[tuple[int, str], list[tuple[str, Entry]]] = {}
    for labelled in journals:
        for entry in labelled.entries:
            if entry.before is not None and entry.sealed + CLOCK_TOLERANCE < entry.before:
                by_block.setdefault((entry.height, entry.block), []).append((labelled.label, entry))
    for (height, block_hash), entries in sorted(by_block.items()):
        labels = ", ".join(dict.fromkeys(label for label, _ in entries))
        seconds = min(entry.seen - entry.sealed for _, entry in entries)
        current = blocks.get(height, {})
        sealer = _sealer(current) if current.get("hash") == block_hash else ""
        result.note(
            f"the time of block {height} is {seconds:.0f} s before {labels} first saw it: its sealer{sealer} "
            "backdated it, or they received it late",
            BACKDATED,
            about=labels,
        )


def _sealer(block: dict[str, Any]) -> str:
    try:
        return f", {clique.sealer_of(block)},"
    except ChainError:
        return ""


def _note_early_closings(journals: Iterable[_LabelledJournal], plan: Plan, past: History, result: Audit) -> None:
    """Note rounds that closed before their timeout by the clocks of roles that saw them open and close."""
    timed_out = {
        past_round.number
        for past_round in past.rounds
        if past_round.closed and len(past_round.latest()) < plan.learners
    }
    by_round: dict[int, list[tuple[str, float]]] = {}
    for labelled in journals:
        for opened, closed in pairwise(labelled.entries):
            if (opened.kind, closed.kind) != ("opened", "closed") or opened.before is None:
                continue
            longest = closed.seen - opened.before
            is_same_round = (opened.round, opened.cid) == (closed.round, closed.cid)
            if is_same_round and opened.round in timed_out and longest + CLOCK_TOLERANCE < plan.round_timeout:
                by_round.setdefault(opened.round, []).append((labelled.label, longest))
    for number, durations in sorted(by_round.items()):
        labels = ", ".join(dict.fromkeys(label for label, _ in durations))
        seconds = max(longest for _, longest in durations)
        result.note(
            f"round {number} closed after at most {seconds:.0f} s by the clock of {labels}, but its timeout is "
            f"{plan.round_timeout:g} s: a sealer set wrong block times, or they received the blocks late",
            CLOSED_EARLY,
            number,
        )


def _first_block(past: History) -> int:
    entries = [*past.learners.values(), *(past_round.started for past_round in past.rounds)]
    return min((entry.block for entry in entries), default=0)


def when(seconds: float) -> str:
    """Return a time in words, from seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
