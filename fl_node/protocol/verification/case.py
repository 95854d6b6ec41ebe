"""A run under verification: its plan, its files, and the result that receives findings."""

from __future__ import annotations

from dataclasses import dataclass

from fl_node.artifacts.model_file import Rejection, WeightsFile
from fl_node.artifacts.store import TooLarge
from fl_node.errors import StoreError, StoreUnreachable, WeightsError
from fl_node.models.trainer import Trainer
from fl_node.plan.schema import Plan
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.names import HEADER, MISSING, learner_label
from fl_node.protocol.publications import samples_of
from fl_node.protocol.reader import Reader
from fl_node.protocol.verification.findings import Findings


@dataclass(frozen=True)
class Case:
    """A run under verification."""

    plan: Plan
    plan_cid: str
    reader: Reader
    trainer: Trainer
    result: Findings

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
            The file is missing or damaged (with the code :data:`MISSING`), too large, or not a model file of this
            run.
        """
        try:
            return self.reader.read(name, node_id)
        except StoreUnreachable:
            raise
        except TooLarge as error:
            raise WeightsError(str(error), error.code) from error
        except StoreError as error:
            raise WeightsError(str(error), MISSING) from error

    def unreadable(self, round_: int, node: str, name: str, error: WeightsError) -> None:
        """Add a finding about a file that can't be read; it is proven unless the file is only missing.

        Parameters
        ----------
        round_
            The round that the finding names.
        node
            The node that the finding names.
        name
            The file's CID.
        error
            Why it can't be read.
        """
        self.result.find(round_, node, "file", f"{name}: {error}", proven=error.code != MISSING)

    def parent(self, number: int, name: str) -> WeightsFile | None:
        """Return the global weights that a round started from, if they can be read; they were checked before.

        Parameters
        ----------
        number
            The round.
        name
            Their CID.
        """
        try:
            return self.file(name)
        except WeightsError as error:
            self.unreadable(number, HEADER, name, error)
            return None

    def check_samples(self, round_: int, node_id: int, samples: int) -> None:
        """Add a finding if local weights do not count for as many samples as their learner's shard has.

        Parameters
        ----------
        round_
            The round that the finding names.
        node_id
            The learner.
        samples
            What the local file says.
        """
        node = learner_label(node_id)
        try:
            self.result.compare(round_, node, "samples", samples, samples_of(self.plan, node_id))
        except WeightsError as error:
            self.result.find(round_, node, "samples", str(error))

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

    def note_rejection(self, number: int, one: Rejection, text: str) -> None:
        """Add a note on whether a rejection can be confirmed.

        Parameters
        ----------
        number
            The round in which the header rejected the file.
        one
            The rejection.
        text
            How the rejection appears to the audit; continues "was rejected".
        """
        self.result.note(f"round {number}: {learner_label(one.node_id)}'s {one.cid} was rejected {text}")
