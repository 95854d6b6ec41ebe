"""Nothing that a user has set for other work changes what is computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl_node.runtime import arithmetic

HOSTILE = {
    "KERAS_BACKEND": "jax",
    "KERAS_MAX_EPOCHS": "0",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "KERAS_NNX_ENABLED": "true",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "ONEDNN_DEFAULT_FPMATH_MODE": "ANY",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
    "XLA_FLAGS": "--xla_cpu_enable_fast_math=true --xla_no_such_flag=1",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1",
    "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_LEVEL": "UNSAFE_FORCE_ALL",
    "TF_NUM_INTRAOP_THREADS": "7",
    "TF_USE_LEGACY_KERAS": "1",
    "TF2_BEHAVIOR": "0",
    "CUDA_VISIBLE_DEVICES": "0",
    "NVIDIA_TF32_OVERRIDE": "1",
    "OMP_NUM_THREADS": "5",
    "OPENBLAS_NUM_THREADS": "3",
    "OPENBLAS_CORETYPE": "Prescott",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
    "PYTHONHASHSEED": "77",
    "GLIBC_TUNABLES": "glibc.malloc.check=0:glibc.cpu.hwcaps=-AVX2",
}
KERAS_JSON = {
    "floatx": "float16",
    "epsilon": 0.1,
    "image_data_format": "channels_first",
    "backend": "torch",
    "nnx_enabled": True,
}


def test_variables_that_change_arithmetic_are_dropped_or_set() -> None:
    environment = {**HOSTILE, "KERAS_HOME": "/home/me/keras", "TF_CPP_MIN_LOG_LEVEL": "0", "PATH": "/bin"}
    arithmetic.pin_environment(environment)
    assert environment == arithmetic.pinned_variables() | {
        "KERAS_HOME": "/home/me/keras",
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "PATH": "/bin",
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
    }
    again = dict(environment)
    arithmetic.pin_environment(again)
    assert again == environment


def test_a_process_that_is_pinned_already_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("started again"))
    arithmetic.pin_process()


def test_the_command_line_is_started_anew_with_the_same_arguments(tmp_path: Path) -> None:
    plan = tmp_path / "a plan.toml"
    plan.write_text('name = "x"\n')
    for start in ([sys.executable, "-m", "fl_node"], [sys.executable, "-E", "-m", "fl_node"]):
        command = [*start, "plan", "check", "--json", "-", "--set", "seed=3"]
        with plan.open() as file:
            done = subprocess.run(
                command,
                stdin=file,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"PYTHONHASHSEED": "5"},
            )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["seed"] == 3


def test_what_can_not_be_pinned_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libfast.so")
    notes = "\n".join(arithmetic.unpinned())
    assert "another processor" in notes
    assert "/usr/lib/libfast.so" in notes
