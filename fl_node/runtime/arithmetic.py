"""What a result depends on besides plan and data, pinned to the same in every process that trains or measures.

Keras reads ``~/.keras/keras.json``; TensorFlow, oneDNN, OpenBLAS and NumPy read environment variables; a module may
change any of this while it runs. Whatever a user has set there for other work must not change a run.

What can't be pinned is named by :func:`unpinned`.
"""

from __future__ import annotations

import contextlib
import locale
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

_READ_BY_LIBRARIES = re.compile(
    r"(TF|TF2|TFRT|XLA|MLIR|KERAS|AUTOGRAPH|ITEX|ONEDNN|DNNL|MKL|MKLDNN|KMP|OMP|GOMP|OPENBLAS|GOTO|BLIS|ATLAS|VECLIB"
    r"|NUMEXPR|NPY|NUMPY|CUDA|CUDNN|CUBLAS|NVIDIA|HIP|ROCR|HSA)_"
)
_HARMLESS = re.compile(r"TF_CPP_|KERAS_HOME$")
"""TensorFlow's log, and where Keras keeps downloads; see :func:`keras_home`."""
_AT_START = ("PYTHONHASHSEED", "GLIBC_TUNABLES")
"""Variables that count only for a process that is started with them."""


def pinned_variables() -> dict[str, str]:
    """Return the environment variables that have the same value in every process."""
    return {
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        # TensorFlow's default depends on the processor.
        "TF_ENABLE_ONEDNN_OPTS": "1" if platform.machine() in ("x86_64", "AMD64") else "0",
        # NumPy's sums of products depend on the number of threads.
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        # The order of a set of texts, in which a module may count words.
        "PYTHONHASHSEED": "0",
    }


def pin_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Drop the variables that change what libraries compute and set those of :func:`pinned_variables`.

    Libraries read them when they are loaded: call this before NumPy is.
    """
    harmful = [name for name in environment if _READ_BY_LIBRARIES.match(name) and not _HARMLESS.match(name)]
    for name in harmful:
        del environment[name]
    environment.update(pinned_variables())
    # No chatter about what the processor could do.
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if tunables := environment.pop("GLIBC_TUNABLES", None):
        # These choose between versions of exp and log; the others are about memory.
        kept = [tunable for tunable in tunables.split(":") if not tunable.startswith("glibc.cpu.")]
        if kept:
            environment["GLIBC_TUNABLES"] = ":".join(kept)


def pin_process() -> None:
    """Pin the environment, and restart this process if a setting takes effect only at the start.

    The process keeps its id, its arguments and its open files.
    """
    before = [os.environ.get(name) for name in _AT_START]
    pin_environment()
    if before != [os.environ.get(name) for name in _AT_START] and sys.executable:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the same program


@dataclass(frozen=True)
class _Setting:
    """One piece of global state: what it is called, what it is in a run, how to read and how to set it."""

    name: str
    wanted: object
    read: Callable[[], object]
    write: Callable[[Any], object]


def _settings() -> list[_Setting]:
    import keras
    import numpy as np
    import tensorflow as tf

    config, optimizer, experimental = keras.config, tf.config.optimizer, tf.config.experimental

    def mixed() -> object:
        return optimizer.get_experimental_options().get("auto_mixed_precision", False)

    def mix(value: object) -> None:
        optimizer.set_experimental_options({"auto_mixed_precision": value})

    def policy() -> object:
        return config.dtype_policy().name

    errors = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    tf32 = experimental.tensor_float_32_execution_enabled, experimental.enable_tensor_float_32_execution
    return [
        _Setting("Keras's floatx", "float32", config.floatx, config.set_floatx),
        _Setting("Keras's dtype policy", "float32", policy, config.set_dtype_policy),
        _Setting("Keras's epsilon", 1e-7, config.epsilon, config.set_epsilon),
        _Setting(
            "Keras's image_data_format", "channels_last", config.image_data_format, config.set_image_data_format
        ),
        _Setting("Keras's max_epochs", None, config.max_epochs, config.set_max_epochs),
        _Setting("Keras's max_steps_per_epoch", None, config.max_steps_per_epoch, config.set_max_steps_per_epoch),
        _Setting(
            "TensorFlow's run_functions_eagerly",
            False,
            tf.config.functions_run_eagerly,
            tf.config.run_functions_eagerly,
        ),
        _Setting("TensorFlow's jit", False, lambda: bool(optimizer.get_jit()), optimizer.set_jit),
        _Setting("TensorFlow's auto_mixed_precision", False, mixed, mix),
        _Setting("TensorFlow's tensor_float_32_execution", False, *tf32),
        _Setting("NumPy's error state", errors, np.geterr, lambda value: np.seterr(**value)),
    ]


def hold() -> None:
    """Set the global state of Keras, TensorFlow and NumPy to what it is in a run; they are loaded already."""
    import tensorflow as tf

    for setting in _settings():
        if setting.read() != setting.wanted:
            setting.write(setting.wanted)
    tf.config.experimental.enable_op_determinism()


def strayed() -> list[str]:
    """Return what is no longer as :func:`hold` left it, such as ``Keras's floatx is float16, should be float32``."""
    return [
        f"{setting.name} is {setting.read()}, should be {setting.wanted}"
        for setting in _settings()
        if setting.read() != setting.wanted
    ]


@contextlib.contextmanager
def keras_home() -> Iterator[None]:
    """Let Keras be imported without the user's ``keras.json``, and then have its folder of downloads all the same."""
    if "keras" in sys.modules:
        yield
        return
    given = os.environ.get("KERAS_HOME")
    # Below a file there are no files, to read or to write.
    os.environ["KERAS_HOME"] = os.devnull
    try:
        yield
    finally:
        del os.environ["KERAS_HOME"]
        if given is not None:
            os.environ["KERAS_HOME"] = given
    config = sys.modules["keras.src.backend.config"]
    home = os.path.expanduser("~")  # noqa: PTH111 - which always has an answer
    # As Keras does it.
    home = home if os.access(home, os.W_OK) else "/tmp"  # noqa: S108
    config._KERAS_DIR = given or f"{home}/.keras"  # type: ignore[attr-defined]


def instructions() -> str:
    """Return the sets of instructions that NumPy found in this processor, by which libraries choose their kernels."""
    import numpy as np

    extensions = np.show_config(mode="dicts")["SIMD Extensions"]
    return " ".join([platform.machine(), *extensions["baseline"], *extensions["found"]])


def unpinned() -> list[str]:
    """Return what a result may depend on here that can't be pinned; a sentence without a full stop each."""
    import numpy as np

    notes = [f"another processor may round differently (this one: {instructions()})"]
    if np.float32(1e-40) * np.float32(1) == 0:
        notes.append("a library makes the processor flush tiny numbers to 0")
    if sys.flags.hash_randomization:
        notes.append("PYTHONHASHSEED has no effect; sets of strings have another order in each process")
    if (encoding := locale.getpreferredencoding(do_setlocale=False).lower()) not in ("utf-8", "utf8"):
        notes.append(f"the default text encoding is {encoding}, not UTF-8")
    if preloaded := os.environ.get("LD_PRELOAD"):
        notes.append(f"LD_PRELOAD loads {preloaded}")
    return notes
