"""What somebody dishonest has at hand in a lab: an account, a store, and the files of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import LocalMeta, Shapes, WeightsFile
from fl_node.artifacts.store import Store
from fl_node.chain.contract import Contract
from fl_node.data.partition import shard_size
from fl_node.errors import ProcessError
from fl_node.plan.schema import Plan
from fl_node.protocol.compressed import compress, decoded
from fl_node.protocol.global_files import global_file, local_shapes
from fl_node.protocol.masked import reveal, unmasked_file
from fl_node.protocol.opened import read_openings
from fl_node.protocol.reader import Reader
from fl_node.runtime.waiting import wait_until

LIAR_ID = 2
"""The nodeId of the learner that lies."""
OPENING_PATIENCE = 120.0
"""Seconds in which the members of a closed round must have opened it."""


@dataclass(frozen=True)
class Hand:
    """What a dishonest header or learner has at hand: its account, its store and what it knows of the run."""

    contract: Contract
    store: Store
    folder: Path
    plan: Plan
    shapes: Shapes
    prepared: str

    def local(self, node_id: int, tensors: Callable[[str], model_file.Tensor]) -> WeightsFile:
        """Write local weights of the liar's model with any tensors, compressed as the plan says.

        Parameters
        ----------
        node_id
            The learner that the metadata name.
        tensors
            Returns each tensor by its name.
        """
        state, compression = self.contract.state(), self.plan.compression
        shapes = local_shapes(self.plan, self.shapes, LIAR_ID)
        meta = LocalMeta(
            plan=self.contract.plan(),
            node_id=node_id,
            round=state.round,
            parent=str(state.global_cid),
            samples=shard_size(self.plan, node_id),
            accuracy=1.0,
            loss=0.0,
            compression=None if compression is None else compression.kind,
        )
        path, content = self.folder / "lie.safetensors", {name: tensors(name) for name in shapes}
        if compression is not None:
            start = self._reader().read(str(state.global_cid)).on_demand()
            with np.errstate(invalid="ignore"):  # of NaN
                return model_file.write(path, meta, compress(compression, content, start, {}).tensors)
        return model_file.write(path, meta, content)

    def aggregated(self) -> tuple[list[WeightsFile], WeightsFile]:
        """Return the local files of the current round, which is closed, and the global file that they make."""
        state = self.contract.state()
        reader = self._reader()
        published = self.contract.local_weights(state.round, self.contract.learners())
        parent = reader.read(str(state.global_cid))
        if self.plan.is_masked:
            masked = {node_id: reader.read(name, node_id) for node_id, name in sorted(published.items())}
            return list(masked.values()), self._unmasked(reader, state.round, parent, masked)
        files = [
            decoded(reader.read(name, node_id), parent, self.plan) for node_id, name in sorted(published.items())
        ]
        true = global_file(
            self.folder / "true.safetensors",
            self.plan,
            self.contract.plan(),
            round_=state.round + 1,
            parent=parent.cid,
            inputs=files,
            parent_file=parent,
        )
        return files, true

    def _unmasked(
        self, reader: Reader, round_: int, parent: WeightsFile, files: dict[int, WeightsFile]
    ) -> WeightsFile:
        """Return the global file of a masked round, as soon as its members have opened it.

        Raises
        ------
        ProcessError
            They don't.
        """

        def openings() -> dict[int, str]:
            return self.contract.openings_and_next_keys(round_, sorted(files))[0]

        if not wait_until(lambda: len(openings()) == len(files), OPENING_PATIENCE):
            raise ProcessError(f"the members of round {round_} did not open it in {OPENING_PATIENCE:g} s")
        opened, _ = read_openings(reader, self.contract.plan(), openings())
        seeds = reveal(self.plan, parent, files, opened).seeds
        return unmasked_file(
            self.folder / "true.safetensors",
            self.plan,
            self.contract.plan(),
            parent=parent,
            files=files,
            seeds=seeds,
            announced={},
        )

    def _reader(self) -> Reader:
        return Reader(self.store, self.folder, self.plan, self.shapes)

    def global_of(self, files: list[WeightsFile], true: WeightsFile, **named: Any) -> WeightsFile:
        """Write global weights of some of a round's files.

        Parameters
        ----------
        files
            The local files.
        true
            The round's true global file.
        **named
            ``refused`` and ``absent``, as the file names them.
        """
        return global_file(
            self.folder / "lie.safetensors",
            self.plan.model_copy(update={"min_learners": 1}),
            true.global_meta.plan,
            round_=true.global_meta.round,
            parent=str(true.global_meta.parent),
            inputs=files,
            parent_file=self._reader().read(str(true.global_meta.parent)),
            **named,
        )
