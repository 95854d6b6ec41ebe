"""A run under audit, as all checkers see it: its plan and history, its files, and the time between its events."""

from __future__ import annotations

from dataclasses import dataclass

from fl_node.artifacts.model_file import Rejection, WeightsFile
from fl_node.audit.result import Audit
from fl_node.chain.contract import Contract, LogEntry
from fl_node.data.partition import shard_size
from fl_node.errors import StoreError, StoreUnreachable, WeightsError
from fl_node.models.trainer import Trainer
from fl_node.plan.schema import Plan
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.history import History, Round
from fl_node.protocol.names import HEADER, learner_label
from fl_node.protocol.publications import Publication
from fl_node.protocol.reader import Reader

LATE = 30
"""Seconds, by the chain's clock, in which a publication and the closing of a round may have crossed.

The header need not have seen what stands before its closing. And it may have seen what stands after it: sealers
replace a block by another now and then, and what was in the one is sealed again, perhaps behind what came of it.
"""


@dataclass(frozen=True)
class Case:
    """A run under audit.

    ``publications`` are those of local weights in all rounds, in the order of the chain.
    """

    contract: Contract
    plan: Plan
    past: History
    publications: tuple[Publication, ...]
    reader: Reader
    trainer: Trainer
    result: Audit

    def file(self, name: str, node_id: int | None = None) -> WeightsFile:
        """Return a checked model file.

        Parameters
        ----------
        name
            The file's CID.
        node_id
            The learner whose local weights it should be; None for global weights.

        Raises
        ------
        StoreUnreachable
            The store does not answer, so nothing can be said of the run.
        WeightsError
            The file is missing or is not a model file of this run.
        """
        try:
            return self.reader.read(name, node_id)
        except StoreUnreachable:
            raise
        except StoreError as error:
            raise WeightsError(str(error)) from error

    def parent(self, closed: Round) -> WeightsFile | None:
        """Return the global weights that a round started from, if they can be read; they were checked before."""
        name = str(closed.started.cid)
        try:
            return self.file(name)
        except WeightsError as error:
            self.result.find(closed.number, HEADER, "file", f"{name}: {error}")
            return None

    def samples(self, node_id: int) -> int | None:
        """Return the size of a learner's shard; None if the plan has none for it."""
        return shard_size(self.plan, node_id) if 1 <= node_id <= self.plan.learners else None

    def check_bounds(self, round_: int, node: str, file: WeightsFile, start: WeightsFile) -> None:
        """Add a finding if local weights exceed the plan's bounds.

        Parameters
        ----------
        round_
            The round that the finding names.
        node
            The node that the finding names.
        file
            The local weights.
        start
            The global weights that they were trained from.
        """
        try:
            check_bounds(file, start, self.plan)
        except WeightsError as error:
            self.result.find(round_, node, "bounds", f"{file.cid}: {error}")

    def note_rejection(self, closed: Round, one: Rejection, text: str) -> None:
        """Add a note on whether a rejection can be confirmed.

        Parameters
        ----------
        closed
            The round in which the header rejected the file.
        one
            The rejection.
        text
            How the rejection appears to the audit; continues "was rejected".
        """
        self.result.note(f"round {closed.number}: {learner_label(one.node_id)}'s {one.cid} was rejected {text}")

    def seconds(self, first: LogEntry, second: LogEntry) -> int:
        """Return the time between two events, by the chain's clock."""
        chain = self.contract.chain
        return chain.timestamp(second.block) - chain.timestamp(first.block)

    def is_before(self, entry: LogEntry, closing: LogEntry) -> bool:
        """Return whether an event came long enough before the closing of a round to be known to the header."""
        return self.seconds(entry, closing) > LATE

    def is_crossed(self, closing: LogEntry, entry: LogEntry) -> bool:
        """Return whether an event came so soon after the closing of a round that the header may have known it."""
        return 0 <= self.seconds(closing, entry) <= LATE

    def note_crossed(self, round_: int, node: str) -> None:
        """Note that an event stands behind what came of it."""
        self.result.note(
            f"round {round_}: {node}'s weights were sealed again after their round, because a block was replaced"
        )

    def is_late(self, closed: Round, closing: LogEntry) -> bool:
        """Return whether a round was open for so long that it need not wait for everybody."""
        timeout = self.plan.round_timeout
        return bool(timeout) and self.seconds(closed.started, closing) + LATE >= timeout
