"""How everybody reads the files of a run: fetched, bounded, checked, and remembered for a while.

The store compares a file with its CID, and reads no more bytes than the plan's model can have. A file counts as read
only if :func:`fl_node.artifacts.model_file.read` accepts it. What a CID names never changes, so a file that is still
in the folder is not fetched again, and a file that was rejected stays rejected.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import MAX_GLOBAL_BYTES, MaskedSize, Shapes, WeightsFile
from fl_node.artifacts.store import Progress, Store, silent
from fl_node.compression import Compression
from fl_node.errors import StoreError, StoreUnreachable, WeightsError
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_shapes, local_shapes
from fl_node.protocol.masked import masked_size
from fl_node.protocol.openings import MAX_BYTES, Opening, parse

PLAN_TIMEOUT = 30.0
"""Seconds in which the plan must come out of the swarm; those for model files stand in the plan."""
MOST_REMEMBERED = 64
"""Files that a reader remembers as checked or rejected, each with its metadata; those used last stay."""


class Reader:
    """Reads the files of one run.

    Parameters
    ----------
    store
        Where the files come from.
    folder
        Where they are kept while they are read.
    plan
        The run's plan, if it is known; :meth:`read_plan` reads it.
    model
        Names and shapes of the model's tensors; see :meth:`expect_model`.
    timeout
        Seconds without progress after which a model file is missing; by default the plan's ``fetch_timeout``.
    max_bytes
        The most that a model file may have as long as the model is not known.
    once
        Wait for a missing file only once, as a reader of past rounds does.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        plan: Plan | None = None,
        model: Shapes | None = None,
        *,
        timeout: float | None = None,
        max_bytes: int = MAX_GLOBAL_BYTES,
        once: bool = False,
    ) -> None:
        self.folder = folder
        self.fetched = 0
        """Files fetched, the plan too."""
        self.fetched_bytes = 0
        """Bytes of the model files among them."""
        self._store = store
        self._plan = plan
        self._shapes: Shapes | None = None
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._once = once
        self._known: OrderedDict[tuple[str, int | None], WeightsFile | WeightsError | StoreError] = OrderedDict()
        if model is not None:
            self.expect_model(model)

    def read_plan(self, name: str, timeout: float = PLAN_TIMEOUT, path: Path | None = None) -> Plan:
        """Return the plan with this CID, which is then the reader's.

        Parameters
        ----------
        name
            Its CID.
        timeout
            Seconds without progress after which it is missing.
        path
            Where it is kept; ``plan.json`` in the reader's folder if not given.

        Raises
        ------
        PlanError
            The file is not a valid plan.
        StoreError
            The plan is not available.
        """
        path = path or self.folder / "plan.json"
        self._store.fetch(name, path, plans.MAX_PLAN_BYTES, timeout)
        self._plan = plans.from_bytes(path.read_bytes(), f"plan {name}")
        self.fetched += 1
        return self._plan

    def expect_model(self, shapes: Shapes) -> None:
        """From now on, reject files of any other model than that with these tensors."""
        self._shapes = global_shapes(self._known_plan(), shapes)

    def expect_like(self, file: WeightsFile) -> None:
        """From now on, reject files of any other model than that of a global file, unless the model is known."""
        if self._shapes is None:
            self._shapes = file.shapes

    def path(self, name: str) -> Path:
        """Return where the file with this CID is kept, unless another path is given."""
        return self.folder / f"{name}.safetensors"

    def max_bytes(self, node_id: int | None = None) -> int:
        """Return the most bytes that a learner's local file may have, or a global file."""
        shapes = self._expected(node_id)
        if shapes is None:
            return self._max_bytes
        if (masked := self._masked(node_id)) is not None:
            return model_file.masked_size_of(shapes, masked)
        if (compressed := self._compressed(node_id)) is not None:
            return model_file.compressed_size_of(shapes, compressed)
        return model_file.size_of(shapes)

    def read(
        self, name: str, node_id: int | None = None, path: Path | None = None, progress: Progress = silent
    ) -> WeightsFile:
        """Return the model file with this CID.

        Parameters
        ----------
        name
            Its CID.
        node_id
            The learner whose local weights it should be; None for global weights.
        path
            Where it is kept, and not fetched again as long as it is there.
        progress
            Called as it arrives.

        Raises
        ------
        WeightsError
            It is no model file of this run's model.
        StoreError
            The file is not available, or has more bytes than allowed.
        StoreUnreachable
            The store does not answer, so nothing is known of the file.
        """
        path, key = path or self.path(name), (name, node_id)
        known = self._known.get(key)
        if isinstance(known, Exception):
            self._known.move_to_end(key)
            raise known.with_traceback(None)
        if known is not None and known.path == path and path.exists():
            self._known.move_to_end(key)
            return known
        try:
            if not path.exists() or cid.of_file(path) != name:
                self._fetch(name, path, self.max_bytes(node_id), progress)
            file = self.check(path, name, node_id)
        except StoreUnreachable:
            raise  # the store's own trouble; nothing is known of the file
        except StoreError as error:
            if self._once:
                self._remember(key, error)
            raise
        except WeightsError as error:
            self._remember(key, error)
            raise
        self.remember(file, node_id)
        return file

    def check(self, path: Path, name: str | None = None, node_id: int | None = None) -> WeightsFile:
        """Return a model file that is on disk already, checked as :meth:`read` does.

        Parameters
        ----------
        path
            The file.
        name
            Its CID; computed if None.
        node_id
            The learner whose local weights it should be; None for global weights.

        Raises
        ------
        WeightsError
            It is not a model file of this run's model.
        """
        expected, masked, compressed = self._expected(node_id), self._masked(node_id), self._compressed(node_id)
        return model_file.read(path, expected, name, masked, compressed)

    def opening(self, name: str, timeout: float | None = None) -> Opening:
        """Return what a member of a closed round published to remove masks.

        Parameters
        ----------
        name
            Its CID.
        timeout
            Seconds without progress after which it is missing; by default as for model files.

        Raises
        ------
        WeightsError
            It is no opening.
        StoreError
            The file is not available, or has more bytes than allowed.
        """
        path = self.folder / f"{name}.opening"
        if not path.exists() or cid.of_file(path) != name:
            self._store.fetch(name, path, MAX_BYTES, self._timeout_of(timeout))
            self.fetched += 1
        return parse(path.read_bytes())

    def remember(self, file: WeightsFile, node_id: int | None = None) -> None:
        """Remember a file that is here and was checked, or that this node wrote itself."""
        for key, known in list(self._known.items()):
            if isinstance(known, WeightsFile) and known.path == file.path:
                del self._known[key]  # it may be overwritten
        self._remember((file.cid, node_id), file)

    def forget(self, *kept: Path) -> None:
        """Delete all model files in the folder but these."""
        kinds = ("*.safetensors", "*.opening", "*.part")
        for path in [path for kind in kinds for path in self.folder.glob(kind)]:
            if path not in kept:
                path.unlink(missing_ok=True)
        for key, known in list(self._known.items()):
            if isinstance(known, WeightsFile) and known.path not in kept:
                del self._known[key]

    def _fetch(self, name: str, path: Path, max_bytes: int, progress: Progress) -> None:
        self._store.fetch(name, path, max_bytes, self._timeout_of(None), progress)
        self.fetched += 1
        self.fetched_bytes += path.stat().st_size

    def _timeout_of(self, given: float | None) -> float:
        if given is not None:
            return given
        return self._known_plan().fetch_timeout if self._timeout is None else self._timeout

    def _masked(self, node_id: int | None) -> MaskedSize | None:
        plan = self._plan
        return masked_size(plan) if node_id is not None and plan is not None and plan.is_masked else None

    def _compressed(self, node_id: int | None) -> Compression | None:
        return self._plan.compression if node_id is not None and self._plan is not None else None

    def _expected(self, node_id: int | None) -> Shapes | None:
        if self._shapes is None or node_id is None:
            return self._shapes
        return local_shapes(self._known_plan(), self._shapes, node_id)

    def _known_plan(self) -> Plan:
        if self._plan is None:
            raise ValueError("a reader needs the plan first")
        return self._plan

    def _remember(self, key: tuple[str, int | None], known: WeightsFile | WeightsError | StoreError) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
