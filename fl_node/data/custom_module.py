"""A custom Python module, which gives a run its data and its model; docs/custom.md says what it must hold.

A plan has the module's name and the hash of its source, never the source: a node runs a module that its owner put
into a folder of modules (``--modules`` or ``FL_NODE_MODULES``), and only if it has that hash. Nothing that comes from
the chain or from the store is executed.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fl_node.data.datasets import Indices, Labels
from fl_node.errors import FLNodeError, ModuleError
from fl_node.plan.data_sets import CustomData
from fl_node.runtime import arithmetic, files
from fl_node.seeds import derive

if TYPE_CHECKING:
    from fl_node.plan.schema import Plan
from fl_node.runtime.keras_start import not_float32, prepare
from fl_node.wording import counted

Samples = npt.NDArray[Any]

FUNCTIONS = ("load_data", "build_model")
UNSAVED = "the model can't be saved"
"""What errors say of a model that Keras can't write to a file, as one with layers that lack ``get_config``."""
_loaded: dict[tuple[Path, str], types.ModuleType] = {}


def load(plan: Plan, folder: Path | None = None) -> OwnModule:
    """Run the module that a plan names, once in a process, and return it.

    Parameters
    ----------
    plan
        A plan with a module.
    folder
        Where the node's owner keeps modules; else ``FL_NODE_MODULES`` counts.

    Raises
    ------
    ModuleError
        It is not installed, has another hash than the plan's, fails, or lacks a function.
    """
    wanted = plan.custom
    if wanted is None:
        raise ModuleError(f"plan {plan.name} has no module")
    if folder is None and (given := os.environ.get("FL_NODE_MODULES")):
        folder = Path(given)
    if folder is None:
        raise ModuleError(
            f"module {wanted.module}: the plan requires SHA-256 {wanted.sha256}, and this node has no "
            "modules folder; review the module's source, then set --modules or FL_NODE_MODULES to its folder"
        )
    path = folder.absolute() / f"{wanted.module}.py"
    source = _source(path, wanted.sha256)
    prepare(plan.training.threads)
    key = (path, wanted.sha256)
    if key not in _loaded:
        _loaded[key] = _run(path, source)
    return OwnModule(plan, path, _loaded[key])


def _source(path: Path, wanted: str) -> bytes:
    remedy = f"review the plan's module, then copy it there as {path.name}"
    try:
        source = files.read_small(path)
    except FileNotFoundError as error:
        raise ModuleError(
            f"module {path.stem}: not in {path.parent}; the plan requires SHA-256 {wanted}; {remedy}"
        ) from error
    except OSError as error:
        raise ModuleError(f"module {path.stem}: {path}: {error.strerror or error}") from error
    digest = hashlib.sha256(source).hexdigest()
    if digest != wanted:
        raise ModuleError(f"module {path.stem}: {path} has SHA-256 {digest}, the plan requires {wanted}; {remedy}")
    return source


def _run(path: Path, source: bytes) -> types.ModuleType:
    module = types.ModuleType(f"fl_node_own_{path.stem}")
    module.__file__ = str(path)
    # Where dataclasses and pickle look for a class's module.
    sys.modules[module.__name__] = module
    with _blamed(path, "import failed"):
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - its owner installed it
    for name in FUNCTIONS:
        if not callable(getattr(module, name, None)):
            raise ModuleError(f"module {path.stem}: {path} has no function {name}")
    return module


@contextmanager
def _blamed(path: Path, what: str) -> Iterator[None]:
    """Run code of a custom module: report its errors in one line, and send what it prints to standard error.

    Raises
    ------
    ModuleError
        The code raises an exception, or changes how all models of the process compute. The message names the line.
    KeyboardInterrupt
        The process was asked to stop.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (ModuleError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the code may raise anything
        raise ModuleError(_failure(path, what, error)) from error
    finally:
        changed = arithmetic.strayed()
        arithmetic.hold()
    if changed:
        raise ModuleError(
            f"module {path.stem}: it changes settings of the whole process: {'; '.join(changed)}; "
            "set them in the arguments of single layers instead"
        )


def _failure(path: Path, what: str, error: BaseException) -> str:
    """Return a line about an exception of a custom module, with the module's line that raised it."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{path}:{line}" if line else str(path)
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return f"module {path.stem}: {what}: {where}: {reason}"


class OwnModule:
    """The module of a plan, as it runs on this node."""

    def __init__(self, plan: Plan, path: Path, module: types.ModuleType) -> None:
        self._plan = plan
        self._path = path
        self._module = module
        self._load_data: Callable[..., Any] = module.load_data
        self._build_model: Callable[[], Any] = module.build_model

    def of(self, plan: Plan) -> OwnModule:
        """Return the same module for a plan that says more of it."""
        return OwnModule(plan, self._path, self._module)

    def build(self) -> Any:
        """Return a new model, with the weights that the plan's seed gives.

        Raises
        ------
        ModuleError
            It is not a Keras model with one input, one output of class probabilities, and float32 weights.
        """
        import keras

        keras.utils.set_random_seed(derive(self._plan.seed, "initial") % 2**32)
        with _blamed(self._path, "build_model() failed"):
            model = self._build_model()
        wrong = _wrong_model(model)
        classes = None if wrong else model.output_shape[1]
        planned = self._planned.classes
        if not wrong and planned not in (None, classes):
            wrong = f"has {classes} outputs, should have one for each of {planned} classes"
        if wrong:
            raise self.error(f"build_model(): the model {wrong}")
        return model

    @property
    def _planned(self) -> CustomData:
        """What the plan says of the module's data; nothing before a run is deployed."""
        source = self._plan.data.source
        assert isinstance(source, CustomData)
        return source

    def data(self, shard: int | None) -> tuple[Samples, Labels]:
        """Return the training samples of a learner, or the test samples if ``shard`` is None, and their labels.

        Raises
        ------
        ModuleError
            They are not arrays of numbers with a label each, or not as many as the plan says.
        """
        import keras

        call = f"load_data({shard})"
        # So that a module that shuffles does it alike in every process.
        keras.utils.set_random_seed(derive(self._plan.seed, "data", shard or 0) % 2**32)
        with _blamed(self._path, f"{call} failed"):
            takes = inspect.signature(self._load_data).parameters
            more = {"learners": self._plan.learners} if "learners" in takes else {}
            given = self._load_data(shard, **more)
            try:
                x, y = given
                samples, labels = np.asarray(x), np.asarray(y)
            except (TypeError, ValueError) as error:
                raise self.error(f"{call}: should return two arrays, samples and labels") from error
        planned = self._planned.samples
        if wrong := _wrong_data(samples, labels, self._planned.classes):
            raise self.error(f"{call}: {wrong}")
        if shard is not None and planned is not None and len(samples) != planned[shard - 1]:
            raise self.error(
                f"{call}: returned {counted(len(samples), 'sample')}, the plan requires {planned[shard - 1]}"
            )
        return samples, labels.astype(np.int64)

    def inputs(self, model: Any, samples: Samples) -> Samples:
        """Return samples as the model takes them, in the type of its input; nothing is scaled.

        Raises
        ------
        ModuleError
            They have another shape than the model's input.
        """
        (wanted,) = model.inputs
        shape = samples.shape[1:]
        if len(shape) != len(wanted.shape) - 1 or any(
            expected not in (None, actual) for expected, actual in zip(wanted.shape[1:], shape, strict=True)
        ):
            raise self.error(
                f"load_data returns samples of shape {shape}, build_model expects {tuple(wanted.shape[1:])}"
            )
        given = samples.astype(wanted.dtype, copy=False)
        # As Keras does with arrays, whatever the input's precision.
        return given.astype("float32", copy=False) if "float" in wanted.dtype else given

    def try_out(self, model: Any, samples: Samples) -> None:
        """Check that the model gives probabilities for samples, and can be exported.

        Raises
        ------
        ModuleError
            It gives something else, or fails.
        """
        with warnings.catch_warnings(action="ignore"), self.model_errors(UNSAVED):
            model.to_json()
        inputs = self.inputs(model, samples)
        with _blamed(self._path, "the model fails on samples of load_data"):
            given = np.asarray(model.predict(inputs, verbose=0))
        if given.dtype.kind != "f" or not (given >= 0).all() or not np.allclose(given.sum(axis=1), 1, atol=1e-3):
            raise self.error("build_model(): the outputs are not probabilities; end with a softmax")

    @contextmanager
    def model_errors(self, what: str) -> Iterator[None]:
        """Translate what the module's model raises into an error of the module.

        Parameters
        ----------
        what
            What the error says before the exception.

        Raises
        ------
        ModuleError
            The model raises an exception. The message names the line.
        FLNodeError
            Something else than the model fails.
        OSError
            A file can't be written.
        """
        try:
            yield
        except (FLNodeError, OSError):
            raise
        except Exception as error:
            raise ModuleError(_failure(self._path, what, error)) from error

    def error(self, text: str) -> ModuleError:
        """Return an error of this module."""
        return ModuleError(f"module {self._path.stem}: {text}")


def _wrong_model(model: Any) -> str:
    """Return what is wrong about a model; empty if nothing is."""
    import keras

    if not isinstance(model, keras.Model):
        return f"is {type(model).__name__}, should be a keras.Model"
    if not model.built or len(model.inputs or ()) != 1 or len(model.outputs or ()) != 1:
        return "should be a model with one keras.Input and one output"
    shape = model.output_shape
    if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 2:
        return f"has outputs of shape {tuple(shape)}, should have one probability for each of two or more classes"
    if wrong := not_float32(model):
        return wrong
    for variable in model.weights:
        if not np.isfinite(np.asarray(variable)).all():
            return f"has weights {variable.path} that are not finite"
    if not model.trainable_weights:
        return "has no trainable weights"
    return ""


def _wrong_data(samples: Samples, labels: Samples, classes: int | None) -> str:
    """Return what is wrong about samples and labels; empty if nothing is."""
    if samples.dtype.kind not in "fiub" or samples.ndim == 0:
        return f"samples should be an array of numbers (is {samples.dtype})"
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        return f"labels should be a one-dimensional array of integers (is {labels.dtype} of shape {labels.shape})"
    if len(samples) != len(labels):
        return f"returned {counted(len(samples), 'sample')} and {counted(len(labels), 'label')}"
    if not samples.size:
        return "returned no samples"
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):
            if not np.isfinite(samples.astype(np.float32, copy=False)).all():
                return "samples should be finite numbers that float32 can hold"
    most = "" if classes is None else f" to {classes - 1}"
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        return f"labels should be 0{most} (are {labels.min()} to {labels.max()})"
    return ""


class OwnData:
    """The data of a module, loaded shard by shard as it is asked for; a learner loads its own alone."""

    def __init__(self, plan: Plan, module: OwnModule) -> None:
        self.module = module
        self.source = f"module {plan.custom.module if plan.custom else ''}"
        self._plan = plan
        self._kept: dict[int | None, tuple[Samples, Labels]] = {}

    def training(self, samples: Indices) -> tuple[Samples, Labels]:
        """Return the training samples with these indices, counted through all shards in the order of nodeId."""
        ends = np.cumsum(self._plan.data.samples)
        shards = np.searchsorted(ends, samples, side="right")
        parts = []
        for number in np.unique(shards).tolist():
            x, y = self.shard(number + 1)
            mine = samples[shards == number] - (ends[number] - len(y))
            parts.append((x[mine], y[mine]))
        if len(parts) == 1:
            return parts[0]
        with _same_shape(self.module):
            return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    def labels(self) -> Labels:
        """Return the labels of all training samples."""
        return np.concatenate([self.shard(number)[1] for number in range(1, self._plan.learners + 1)])

    def tests(self, count: int) -> tuple[Samples, Labels]:
        """Return the first test samples; all if ``count`` is 0."""
        x, y = self.shard(None)
        if count > len(x):
            raise self.module.error(
                f"load_data(None): returned {counted(len(x), 'sample')}, the plan requires {count}"
            )
        return x[: count or None], y[: count or None]

    def shard(self, number: int | None) -> tuple[Samples, Labels]:
        """Return what the module gives for a shard; the same arrays each time."""
        if number not in self._kept:
            self._kept[number] = self.module.data(number)
        return self._kept[number]


@contextmanager
def _same_shape(module: OwnModule) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise module.error("load_data: all shards should have samples of the same shape") from error
