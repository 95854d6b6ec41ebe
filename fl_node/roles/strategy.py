"""The interface of a mode of training: decides when a round closes, and computes global weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_node.artifacts.download import logged
from fl_node.artifacts.model_file import WeightsFile
from fl_node.chain.contract import View
from fl_node.models.trainer import Trainer
from fl_node.plan.schema import Plan
from fl_node.protocol.reader import Reader
from fl_node.roles.arrivals import Arrivals
from fl_node.roles.loop import Site, Waiting


@dataclass(frozen=True)
class Context:
    """The context of a header and its strategy: the node, the run's plan and model, and the files."""

    site: Site
    plan: Plan
    plan_cid: str
    trainer: Trainer
    reader: Reader
    arrivals: Arrivals

    def global_path(self, number: int) -> Path:
        """Return the path of the global weights from which a round starts."""
        return self.site.folder / f"global-{number}.safetensors"

    def global_file(self, number: int, name: str) -> WeightsFile:
        """Return global weights from disk if this header wrote them; otherwise fetch them."""
        return self.reader.read(name, path=self.global_path(number), progress=logged(name))

    def changes(self) -> tuple[object, int]:
        """Return a value that changes with a new block or an arrived file."""
        return self.site.chain.newest(), self.arrivals.ended


class Strategy(Protocol):
    """Decides when a round closes, and computes the global weights that end it.

    The header calls :meth:`wait_for` until it returns None, then :meth:`aggregate`, and publishes the file. All state
    is on the chain and in the store; what a strategy remembers saves work only.
    """

    @property
    def round(self) -> int:
        """The last round that was processed; -1 before the first."""

    def wait_for(self, view: View, global_cid: str) -> Waiting | None:
        """Read and check publications, and return the wait of the round; None if it can close.

        Parameters
        ----------
        view
            What the contract says now.
        global_cid
            The global weights that its round started from.
        """

    def aggregate(self) -> WeightsFile:
        """Write the global file that ends the round, after :meth:`wait_for` returned None."""

    def forget(self, current: WeightsFile) -> None:
        """Forget the round that has ended with these global weights."""
