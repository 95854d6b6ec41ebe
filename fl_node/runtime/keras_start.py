"""Starting Keras and TensorFlow: deterministic, with the plan's threads and none of the user's settings."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

from fl_node.runtime import arithmetic


def load() -> None:
    """Import Keras and TensorFlow with none of the user's settings; they have no threads yet."""
    arithmetic.pin_environment()
    # Keras imports these, most of a second of work, for wrappers and pictures that are of no use here.
    unused = _without("sklearn", "matplotlib", "matplotlib.pyplot")
    with _quiet(), unused, _no_collection(), arithmetic.keras_home():
        import keras  # noqa: F401
        import tensorflow  # noqa: F401


def prepare(threads: int) -> None:
    """Load TensorFlow with so many threads, deterministic operations alone and none of the user's settings."""
    load()
    import tensorflow as tf

    # It warns of several models in one process, as if they were one that changes.
    tf.get_logger().setLevel("ERROR")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # From here on neither can be changed.
    tf.config.list_logical_devices()
    arithmetic.hold()


@contextlib.contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Let an import find that packages are not installed, unless they are imported already."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Import large packages without garbage collection.

    Collections look at every object again and again; an import leaves a million that stay for good. They are then
    set aside, which also makes later collections, and the end of the process, cheaper.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send to nowhere what TensorFlow's C++ code writes to standard error while it is loaded.

    What Python writes there meanwhile, in other threads, still arrives.
    """
    sys.stderr.flush()
    errors = sys.stderr
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        if errors is sys.__stderr__:
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, encoding="utf-8", errors="replace")
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        sys.stderr = errors
        os.close(kept)
        os.close(nowhere)


def not_float32(model: Any) -> str:
    """Return what is not of type float32 in a Keras model; empty if everything is.

    Half precision is refused for what is computed as well: processors round it in different ways.
    """
    for variable in model.weights:
        if variable.dtype != "float32":
            return f"has weights {variable.path} of type {variable.dtype}, all should be float32"
    for layer in model._flatten_layers():  # layers within layers too
        if layer.compute_dtype in ("float16", "bfloat16"):
            return f"has a layer {layer.name} that computes in {layer.compute_dtype}, all should compute in float32"
    return ""
