"""Compares the journals of the roles with the chain: what a role saw and signed, and what the chain says now.

Sealers replace the newest blocks now and then when two of them seal at once, and after a split of the network. That
is honest; it is not when blocks are replaced on which as many others were built as there are sealers, or when what a
role saw last is gone.
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

BEHIND = 60.0
"""Seconds that a node of the chain may be behind what a role has seen."""
DEPTH = 12
"""Blocks on top of another after which it stays, on a chain that is not Clique."""


@dataclass(frozen=True)
class Evidence:
    """Journals, and the number of the newest block and the time (seconds since 1970) when they were read."""

    journals: tuple[Journal, ...] = ()
    newest: int = 0
    time: float = 0.0


def read_journals(contract: Contract, paths: Iterable[Path]) -> Evidence:
    """Read journals; what is in them can then be read from the chain, too.

    Parameters
    ----------
    contract
        The run's contract.
    paths
        The files.

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
    """Return what journals show of a chain that was rewritten or dates its blocks wrongly, a sentence each.

    Parameters
    ----------
    contract, plan
        The run's contract and plan.
    paths
        The files of the journals.

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
    """Compare journals with the chain, and name the changes of the sealers during the run.

    Parameters
    ----------
    contract
        The run's contract.
    plan, past
        The run's plan, and its history by the log.
    evidence
        The journals, read before the history.
    result
        Takes what is found.

    Raises
    ------
    ChainError
        The chain can't be read.
    """
    chain = contract.chain
    sealers, changes = clique.replay(chain, _first_block(past), chain.block_number())
    depth = len(sealers) or DEPTH
    labelled = [_usable(content, contract, past, result) for content in evidence.journals]
    kept = _without_copies(filter(None, labelled), result)
    heights = [entry.height for role in kept for entry in role.entries]
    blocks = chain.blocks(heights)
    for role in kept:
        _Comparison(role, past, blocks, depth, evidence, result).run()
    _name_times(kept, blocks, result)
    if plan.mode != "async" and plan.round_timeout:
        _name_early_closings(kept, plan, past, result)
    for change in changes:
        verb = "was added to" if change.added else "was removed from"
        result.note(f"{change.account} {verb} the sealers in block {change.block}")


@dataclass(frozen=True)
class _Kept:
    """A journal of one of the run's roles."""

    label: str
    journal: Journal

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.journal.entries


def _usable(content: Journal, contract: Contract, past: History, result: Audit) -> _Kept | None:
    """Return a journal with the name of its role; None if it is not one of this run's roles."""
    if content.problem:
        result.note(f"journal {content.path}: {content.problem}; what follows is not used")
    if not content.entries:
        return None
    first = content.entries[0]
    if first.contract != contract.address:
        result.note(f"journal {content.path} is of another run: {first.contract}")
        return None
    accounts = {str(entry.account): learner_label(node_id) for node_id, entry in past.learners.items()}
    label = (accounts | {past.deployer: HEADER}).get(first.account)
    if label is None:
        result.note(f"journal {content.path} is not used: {first.account} has no role in this run")
        return None
    return _Kept(f"{label}'s standby header" if first.role == HEADER != label else label, content)


def _without_copies(kept: Iterable[_Kept], result: Audit) -> list[_Kept]:
    """Return the longest of the journals of each role; name those that differ in more than their length."""
    longest: dict[str, list[_Kept]] = {}
    for copy in sorted(kept, key=lambda copy: -len(copy.entries)):
        others = longest.setdefault(copy.label, [])
        if any(other.entries[: len(copy.entries)] == copy.entries for other in others):
            continue
        if others:
            paths = f"{others[0].journal.path} and {copy.journal.path}"
            result.note(f"{copy.label} has two journals that differ: {paths}")
        others.append(copy)
    return [copy for copies in longest.values() for copy in copies]


@dataclass(frozen=True)
class _Comparison:
    """One journal against the chain."""

    kept: _Kept
    past: History
    blocks: dict[int, dict[str, Any]]
    depth: int
    evidence: Evidence
    result: Audit

    @property
    def newest(self) -> int:
        return self.evidence.newest

    def run(self) -> None:
        """Add what differs to the result."""
        rounds = (*self.past.rounds, *self.past.withdrawn)
        known = {(past_round.number, str(past_round.started.cid)) for past_round in rounds}
        replaced: list[Entry] = []
        named: set[tuple[int, str]] = set()
        for position, entry in enumerate(self.kept.entries):
            what = (entry.round, entry.cid)
            if what not in known and what not in named:
                named.add(what)
                self._name_difference(position, entry)
            if what in known and entry.height in self.blocks and not self._stands(entry):
                replaced.append(entry)
            else:
                self._name_replaced(replaced)
                replaced = []
        self._name_replaced(replaced)

    def _stands(self, entry: Entry) -> bool:
        return bool(self.blocks.get(entry.height, {}).get("hash") == entry.block)

    def _name_difference(self, position: int, entry: Entry) -> None:
        """Add a finding, or a note if it can be honest."""
        rounds = self.past.rounds
        started = rounds[entry.round].started if 0 <= entry.round < len(rounds) else None
        says = f"{started.cid}, in block {started.block}" if started else "nothing of it"
        where = f"at block {entry.height} ({entry.block}), {_when(entry.seen)}"
        text = f"recorded {entry.cid} {where}; the chain says {says}"
        later = self.kept.entries[position + 1 :]
        successor = next(
            (i for i, other in enumerate(later) if other.round <= entry.round and other.cid != entry.cid), None
        )
        if successor is None:
            if self._may_be_behind(entry):
                ends = f"this node's chain ends at block {self.newest}"
                self.result.note(f"round {entry.round}, {self.kept.label}: {text}; {ends}, so audit again later")
                return
        else:
            before, replacing = later[:successor], later[successor]
            on_top = max(replacing.top, *(other.height for other in before), 0) - entry.height
            if on_top < self.depth:
                self.result.note(
                    f"round {entry.round}, {self.kept.label}: {text}; block {entry.height} was replaced when it was "
                    "new, as in a split of the chain"
                )
                return
        self.result.find(entry.round, self.kept.label, "journal", text)

    def _may_be_behind(self, entry: Entry) -> bool:
        """Return whether this node may just not have the block yet: all before is the same, and it is recent."""
        earlier = [other for other in self.kept.entries if other.height <= self.newest]
        is_prefix = entry.height > self.newest and all(map(self._stands, earlier[-1:]))
        return is_prefix and self.evidence.time - entry.seen < BEHIND

    def _name_replaced(self, replaced: Sequence[Entry]) -> None:
        """Add a note of blocks that were replaced although others were built on them; the run is the same in both."""
        if replaced and (on_top := replaced[-1].height - replaced[0].height) >= self.depth:
            first = replaced[0]
            self.result.note(
                f"{self.kept.label} recorded block {first.height} ({first.block}) and {on_top} on top; the chain has "
                "others in their place, with the same global weights"
            )


def _name_times(kept: Iterable[_Kept], blocks: dict[int, dict[str, Any]], result: Audit) -> None:
    """Name blocks whose own time is earlier than the last look of a role that did not see them."""
    seen: dict[tuple[int, str], list[tuple[str, Entry]]] = {}
    for role in kept:
        for entry in role.entries:
            if entry.before is not None and entry.sealed + CLOCK_TOLERANCE < entry.before:
                seen.setdefault((entry.height, entry.block), []).append((role.label, entry))
    for (height, block), sightings in sorted(seen.items()):
        who = ", ".join(dict.fromkeys(label for label, _ in sightings))
        seconds = min(entry.seen - entry.sealed for _, entry in sightings)
        standing = blocks.get(height, {})
        sealer = _sealer(standing) if standing.get("hash") == block else ""
        result.note(
            f"block {height} is dated {seconds:.0f} s before {who} first saw it: its sealer{sealer} dated it back, "
            "or they got it late"
        )


def _sealer(block: dict[str, Any]) -> str:
    try:
        return f", {clique.sealer_of(block)},"
    except ChainError:
        return ""


def _name_early_closings(kept: Iterable[_Kept], plan: Plan, past: History, result: Audit) -> None:
    """Name rounds that were closed before their timeout was over by the clocks of roles that watched them."""
    timed_out = {each.number for each in past.rounds if each.closed and len(each.latest()) < plan.learners}
    seen: dict[int, list[tuple[str, float]]] = {}
    for role in kept:
        for opened, closed in pairwise(role.entries):
            if (opened.kind, closed.kind) != ("opened", "closed") or opened.before is None:
                continue
            longest = closed.seen - opened.before
            is_one_round = (opened.round, opened.cid) == (closed.round, closed.cid)
            if is_one_round and opened.round in timed_out and longest + CLOCK_TOLERANCE < plan.round_timeout:
                seen.setdefault(opened.round, []).append((role.label, longest))
    for number, sightings in sorted(seen.items()):
        who = ", ".join(dict.fromkeys(label for label, _ in sightings))
        seconds = max(longest for _, longest in sightings)
        result.note(
            f"round {number} was closed after at most {seconds:.0f} s by the clock of {who}; its timeout is "
            f"{plan.round_timeout:g} s, so a sealer dated blocks wrongly, or they got them late"
        )


def _first_block(past: History) -> int:
    entries = [*past.learners.values(), *(each.started for each in past.rounds)]
    return min((entry.block for entry in entries), default=0)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
