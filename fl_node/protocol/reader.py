"""Reads the files of a run: fetches, bounds, checks and caches them. All roles and the audit use this.

The store compares a file with its CID, and reads at most as many bytes as the plan's model can have. A file is valid
only if :func:`fl_node.artifacts.model_file.read` accepts it. The content of a CID never changes, so a file that is
still in the folder is not fetched again, and a rejected file stays rejected.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import MAX_GLOBAL_BYTES, MaskedSize, Shapes, WeightsFile
from fl_node.artifacts.store import Progress, Store, silent
from fl_node.compression import Compression
from fl_node.errors import FileMissing, StoreError, StoreUnreachable, WeightsError
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_shapes, local_shapes
from fl_node.protocol.masked import masked_size
from fl_node.protocol.openings import MAX_BYTES, Opening, parse

PLAN_TIMEOUT = 30.0
"""Timeout for the plan in seconds; the plan has the timeout for model files."""
MAX_CACHED = 64
"""Number of files whose result (metadata or error) a reader keeps; the least recently used is dropped first."""


class Reader:
    """Reads the files of a run.

    Parameters
    ----------
    store
        The store with the files.
    folder
        The folder for fetched files.
    plan
        The run's plan, if known; :meth:`read_plan` reads it.
    model
        Shapes of the model's tensors by name; see :meth:`expect_model`.
    timeout
        Seconds without progress after which a model file is missing; by default the plan's ``fetch_timeout``.
    max_bytes
        Maximum size of a model file in bytes while the model is unknown.
    once
        Whether to wait for a missing file only once, as for past rounds.
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
        """Number of fetched files, including the plan."""
        self.fetched_bytes = 0
        """Total size of the fetched model files in bytes."""
        self._store = store
        self._plan = plan
        self._shapes: Shapes | None = None
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._once = once
        self._cache: OrderedDict[tuple[str, int | None], WeightsFile | WeightsError | StoreError] = OrderedDict()
        if model is not None:
            self.expect_model(model)

    def read_plan(self, name: str, timeout: float = PLAN_TIMEOUT, path: Path | None = None) -> Plan:
        """Return the plan with this CID, and use it for this reader.

        Parameters
        ----------
        name
            The CID of the plan.
        timeout
            Seconds without progress after which the plan is missing.
        path
            Where to save the plan; by default ``plan.json`` in the reader's folder.

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
        """From now on, accept only files of the model with these tensors."""
        self._shapes = global_shapes(self._required_plan(), shapes)

    def expect_like(self, file: WeightsFile) -> None:
        """From now on, accept only files of this global file's model, unless the model is known already."""
        if self._shapes is None:
            self._shapes = file.shapes

    def path(self, name: str) -> Path:
        """Return the default path for the file with this CID."""
        return self.folder / f"{name}.safetensors"

    def max_bytes(self, node_id: int | None = None) -> int:
        """Return the maximum size of a learner's local file, or of a global file if None, in bytes."""
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
            The CID of the file.
        node_id
            The learner whose local weights are expected; None for global weights.
        path
            Where to save the file; it is not fetched again while it exists there.
        progress
            Called as the file arrives.

        Raises
        ------
        WeightsError
            The file is not a model file of this run's model.
        StoreError
            The file is not available, or has more bytes than allowed.
        StoreUnreachable
            The store does not answer, so nothing is known about the file.
        """
        path, key = path or self.path(name), (name, node_id)
        cached = self._cache.get(key)
        if isinstance(cached, Exception):
            self._cache.move_to_end(key)
            raise cached.with_traceback(None)
        if cached is not None and cached.path == path and path.exists():
            self._cache.move_to_end(key)
            return cached
        try:
            file = self._kept(path, name, node_id)
            if file is None:
                self._fetch(name, path, self.max_bytes(node_id), progress)
                file = self.check(path, name, node_id)
        except StoreUnreachable:
            raise  # an error of the store, not of the file
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
        """Check a model file on disk as :meth:`read` does, and return it.

        Parameters
        ----------
        path
            The path of the file.
        name
            The CID of the file; computed if None.
        node_id
            The learner whose local weights are expected; None for global weights.

        Raises
        ------
        WeightsError
            The file is not a model file of this run's model.
        """
        expected, masked, compressed = self._expected(node_id), self._masked(node_id), self._compressed(node_id)
        return model_file.read(path, expected, name, masked, compressed, self._here)

    def opening(self, name: str, timeout: float | None = None) -> Opening:
        """Return the opening with this CID.

        Parameters
        ----------
        name
            The CID of the opening.
        timeout
            Seconds without progress after which it is missing; by default as for model files.

        Raises
        ------
        WeightsError
            The file is not an opening.
        StoreError
            The file is not available, or has more bytes than allowed.
        """
        path = self.folder / f"{name}.opening"
        if not path.exists() or cid.of_file(path) != name:
            self._store.fetch(name, path, MAX_BYTES, self._timeout_of(timeout))
            self.fetched += 1
        return parse(path.read_bytes())

    def is_available(self, name: str, timeout: float, node_id: int | None = None) -> bool:
        """Return whether the file with this CID arrives in time; it then stays in the folder.

        Parameters
        ----------
        name
            The CID of the file.
        timeout
            Seconds without progress after which it counts as missing.
        node_id
            The learner whose local weights are expected; None for global weights.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        """
        path = self.path(name)
        is_new = not path.exists()
        is_here = self._arrives(name, path, self.max_bytes(node_id), timeout)
        if is_new and path.exists():
            self.fetched_bytes += path.stat().st_size
        return is_here

    def is_opening_available(self, name: str, timeout: float) -> bool:
        """Return whether the opening with this CID arrives in time; it then stays in the folder.

        Parameters
        ----------
        name
            The CID of the opening.
        timeout
            Seconds without progress after which it counts as missing.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        """
        return self._arrives(name, self.folder / f"{name}.opening", MAX_BYTES, timeout)

    def _arrives(self, name: str, path: Path, max_bytes: int, timeout: float) -> bool:
        if path.exists():
            return True
        try:
            self._store.fetch(name, path, max_bytes, timeout)
        except FileMissing:
            return False
        except StoreUnreachable:
            raise
        except StoreError:
            return True  # it is there, and something is wrong with it
        self.fetched += 1
        return True

    def remember(self, file: WeightsFile, node_id: int | None = None) -> None:
        """Cache a file that was checked, or that this node wrote itself."""
        for key, cached in list(self._cache.items()):
            if isinstance(cached, WeightsFile) and cached.path == file.path:
                del self._cache[key]  # the path may contain another file now
        self._remember((file.cid, node_id), file)

    def forget(self, *keep: Path) -> None:
        """Delete all model files in the folder except these."""
        patterns = ("*.safetensors", "*.opening", "*.part")
        for path in [path for pattern in patterns for path in self.folder.glob(pattern)]:
            if path not in keep:
                path.unlink(missing_ok=True)
        for key, cached in list(self._cache.items()):
            if isinstance(cached, WeightsFile) and cached.path not in keep:
                del self._cache[key]

    def _kept(self, path: Path, name: str, node_id: int | None) -> WeightsFile | None:
        """Return the file at a path, hashed and checked at once; None if it is not the file with this CID.

        Raises
        ------
        WeightsError
            It is, and it is not a model file of this run's model.
        """
        if not path.exists():
            return None
        try:
            file = self.check(path, node_id=node_id)
        except WeightsError:
            if cid.of_file(path) == name:
                raise
            return None  # a damaged copy
        return file if file.cid == name else None

    def _here(self, name: str) -> WeightsFile | None:
        """Return the checked global file with this CID, if it is still on disk."""
        cached = self._cache.get((name, None))
        return cached if isinstance(cached, WeightsFile) and cached.path.exists() else None

    def _fetch(self, name: str, path: Path, max_bytes: int, progress: Progress) -> None:
        self._store.fetch(name, path, max_bytes, self._timeout_of(None), progress)
        self.fetched += 1
        self.fetched_bytes += path.stat().st_size

    def _timeout_of(self, timeout: float | None) -> float:
        if timeout is not None:
            return timeout
        return self._required_plan().fetch_timeout if self._timeout is None else self._timeout

    def _masked(self, node_id: int | None) -> MaskedSize | None:
        plan = self._plan
        return masked_size(plan) if node_id is not None and plan is not None and plan.is_masked else None

    def _compressed(self, node_id: int | None) -> Compression | None:
        return self._plan.compression if node_id is not None and self._plan is not None else None

    def _expected(self, node_id: int | None) -> Shapes | None:
        if self._shapes is None or node_id is None:
            return self._shapes
        return local_shapes(self._required_plan(), self._shapes, node_id)

    def _required_plan(self) -> Plan:
        if self._plan is None:
            raise ValueError("the reader has no plan yet")
        return self._plan

    def _remember(self, key: tuple[str, int | None], result: WeightsFile | WeightsError | StoreError) -> None:
        self._cache[key] = result
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
