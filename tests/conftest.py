"""What tests of several kinds share: a plan that is trained in seconds, and a run of it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Hypothesis would import what other packages register for it: trio, which no test needs.
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"

from hypothesis import HealthCheck, settings

from tests.helpers.checkout import ROOT, build_site
from tests.helpers.warm import fl_node

# No test fails because the machine is busy.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

TINY = """
name = "tiny"
rounds = 3
learners = 2
data = { name = "digits", train = 400, test = 100 }
model = { name = "mlp" }
training = { epochs = 2, batch_size = 20 }
"""

SLOWEST_FIRST = (
    *("test_lab.py", "test_killed.py", "test_lab_guide.py", "test_geth_network.py", "test_ipfs_swarm.py"),
    *("test_scenarios.py", "test_custom_runs.py", "integration", "browser", "contracts", "processes", "unit"),
)
"""Modules of tests that take a minute or more, and kinds of tests, by their folder."""


def pytest_configure() -> None:
    """What the tests start can be interrupted, even if they were started to ignore that themselves (`nohup … &`)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage while thousands of tests are collected, which stay to the end."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules that take long first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: next((n for n, kind in enumerate(SLOWEST_FIRST) if kind in item.path.parts), 0))


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of three rounds with two learners."""
    path = tmp_path_factory.mktemp("plan") / "tiny.toml"
    path.write_text(TINY)
    return path


@contextlib.contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Give one worker at a time a path that all workers of a session share; the first creates what belongs there."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name


@pytest.fixture(scope="session")
def lab_run(tiny_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The tiny plan, carried out by `fl-node lab` in the embedded backend: its folder, and what it printed.

    Tests only read it.
    """
    with shared(tmp_path_factory, "shared-run.json") as printed:
        runs = printed.with_name("shared-runs")
        if not printed.exists():
            done = fl_node("lab", tiny_plan, "--runs", runs, "--json")
            assert done.returncode == 0, done.stderr
            printed.write_text(done.stdout)
    return runs / "tiny", json.loads(printed.read_text())


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation's site, as `make docs` builds it. Tests only read it."""
    with shared(tmp_path_factory, "shared-site") as target:
        if not target.exists():
            built = target.with_name("shared-site.partial")
            done = build_site(ROOT, built)
            assert done.returncode == 0, done.stderr
            built.rename(target)
    return target
