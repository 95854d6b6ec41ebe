"""`fl-node sweep` and `fl-node contribution` as a user has them, on real models and small data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from fl_node.lab import run_folder as run
from fl_node.protocol.names import HEADER
from tests.helpers.streams import OUTPUTS
from tests.helpers.warm import fl_node

PLAN = """
name = "small"
rounds = 2
learners = 5
[data]
name = "digits"
train = 500
test = 200
validation = 100
[model]
name = "mlp"
[training]
epochs = 1
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.toml"
    path.write_text(PLAN)
    return path


def sweep(plan: Path, results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--attacks", "backdoor+scale:10", "--attackers", "0.2", "--seeds", "1", "--results", str(results)]
    return fl_node("sweep", str(plan), *options, *more)


def test_a_matrix_compares_rules_and_goes_on_where_it_was(plan: Path, tmp_path: Path) -> None:
    first = sweep(plan, tmp_path, "--rules", "fedavg", "--jobs", "1", "--json")
    assert first.returncode == 0, first.stderr
    assert "2 of 2: fedavg, backdoor+scale:10 by 20%, seed 1: " in first.stderr
    second = sweep(plan, tmp_path, "--rules", "fedavg,median", "--json")
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("(kept)") == 2
    figures = json.loads(second.stdout)["figures"]
    assert [(figure["rule"], figure["attack"]) for figure in figures] == [
        ("fedavg", "none"),
        ("fedavg", "backdoor+scale:10"),
        ("median", "none"),
        ("median", "backdoor+scale:10"),
    ]
    assert figures[:2] == json.loads(first.stdout)["figures"]
    assert [figure["backdoor"] is None for figure in figures] == [True, False, True, False]
    page = (tmp_path / "small" / "sweep.html").read_text()
    assert "backdoor+scale:10, 20%" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.nightly
def test_real_nodes_give_the_same_figures_of_the_same_files(plan: Path, tmp_path: Path) -> None:
    small = ["--set", "learners=2", "--set", "rounds=1", "--attackers", "0.5", "--rules", "fedavg", "--json"]
    backends = ("embedded", "processes")
    done = {backend: sweep(plan, tmp_path / backend, "--backend", backend, *small) for backend in backends}
    assert all(one.returncode == 0 for one in done.values()), [one.stderr for one in done.values()]
    figures = {backend: json.loads(one.stdout)["figures"] for backend, one in done.items()}
    assert figures["processes"] == figures["embedded"]
    assert [figure["backdoor"] is None for figure in figures["processes"]] == [True, False]
    cells = {
        backend: {
            path.name: json.loads(path.read_text()) for path in (tmp_path / backend / "small" / "cells").iterdir()
        }
        for backend in backends
    }
    assert cells["processes"].keys() == cells["embedded"].keys()
    for name, cell in cells["processes"].items():
        assert cell["rounds"][-1]["cid"] == cells["embedded"][name]["rounds"][-1]["cid"]
        assert "geth" in cell["versions"]
        assert "geth" not in cells["embedded"][name]["versions"]


def test_an_interrupted_matrix_leaves_no_process_and_nothing_half_written(plan: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fl_node", "sweep", str(plan), "--results", str(tmp_path), "--rules", "fedavg"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 600
        while len(psutil.Process(process.pid).children(recursive=True)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "stopped" in said
    gone, alive = psutil.wait_procs(children, timeout=600)
    assert not alive
    assert gone
    assert not list(tmp_path.rglob("*.partial"))


def contribution(run: Path) -> dict[str, Any]:
    done = fl_node("contribution", str(run), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def valued(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one round with three learners, whose plan holds 100 images out."""
    runs = tmp_path_factory.mktemp("runs")
    lab = fl_node("lab", str(plan), "--set", "learners=3", "--set", "rounds=1", "--runs", str(runs), "--json")
    assert lab.returncode == 0, lab.stderr
    return runs / "small"


def test_contributions_add_up_to_what_the_run_gained_on_the_held_out_images(valued: Path) -> None:
    found = contribution(valued)
    (one,) = found["rounds"]
    gain = one["accuracy_after"] - one["accuracy_before"]
    assert sum(value["share"] for value in one["learners"].values()) == pytest.approx(gain)
    assert found["images"] == 100
    assert contribution(valued) == found
    published = json.loads((valued / "plan.json").read_text())
    assert len(published["data"]["validation_sha256"]) == 64


def test_a_full_disk_at_standard_output_loses_no_result_of_a_command_that_needs_the_model(
    valued: Path, tmp_path: Path
) -> None:
    Image.linear_gradient("L").save(tmp_path / "nine.png")
    commands: dict[str, tuple[list[str], str]] = {
        "report": (["-o", "report"], "report/report.html"),
        "export": (["-o", "model.keras"], "model.keras"),
        "predict": (["nine.png"], "nine.png"),
        "evaluate": ([], "nine.png"),
        "audit": ([], "*/audit.json"),
        "contribution": ([], "*/contribution.json"),
    }
    with run.endpoints(valued, lambda _line: None) as nodes:
        environment = {
            "FL_NODE_RPC": nodes[HEADER].rpc,
            "FL_NODE_STORE": nodes[HEADER].store,
            "FL_NODE_CONTRACT": run.load(valued).contract,
            "TMPDIR": str(tmp_path),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FL_NODE_")}
        with Path("/dev/full").open("w") as full:
            done = [
                fl_node(command, *options, cwd=tmp_path, env=inherited | environment, stdout=full)
                for command, (options, _) in commands.items()
            ]
    code, error = OUTPUTS["full"]
    for ended, (command, (_, pattern)) in zip(done, commands.items(), strict=True):
        assert ended.returncode == code, command
        lines = [line for line in ended.stderr.splitlines() if line.startswith("fl-node: ")]
        kept = [str(path) for path in tmp_path.glob(pattern)]
        assert len(kept) == 1, command
        there = f"; the result is in {kept[0]}" if pattern.startswith("*") else ""
        assert lines == [f"fl-node: {error}{there}"]
        assert "Traceback" not in ended.stderr
    assert json.loads(next(tmp_path.glob("*/contribution.json")).read_text())["images"] == 100


def test_a_run_whose_plan_holds_nothing_out_says_so(lab_run: tuple[Path, Any]) -> None:
    done = fl_node("contribution", str(lab_run[0]))
    assert done.returncode == 3
    assert done.stderr.strip().splitlines()[-1] == (
        "fl-node: plan tiny has no held-out images; set data.validation, such as 1000"
    )
