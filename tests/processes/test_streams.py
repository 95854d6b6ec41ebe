"""Standard streams that are closed, full or read by nobody: one line at most, and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import Chain
from fl_node.data.datasets import FOLDER_FILES
from fl_node.experiments import sweep
from fl_node.plan import loading as plans
from tests.conftest import TINY
from tests.helpers.accounts import ALICE, HEADER
from tests.helpers.chain import OPEN
from tests.helpers.checkout import ROOT
from tests.helpers.streams import OUTPUTS, Ended, carry_out

DEMO = str(ROOT / "plans" / "demo.toml")
NOWHERE = ["--rpc", "http://127.0.0.1:1", "--store", "/ip4/127.0.0.1/tcp/1"]
PREPARED = Path("../prepared")
"""What commands find, as they see it from their folder."""
RUN = ["--rpc", "RPC", "--store", str(PREPARED / "files"), "--contract", "CONTRACT"]
"""A run that has begun; the two addresses are filled in."""
SENDER = ["--rpc", "RPC", "--key", str(PREPARED / "role.key")]
SWEEP = ["--rules", "fedavg", "--attacks", "sign_flip", "--attackers", "0", "--seeds", "1", "--jobs", "1"]
COMMANDS = {
    "help": ["--help"],
    "nothing": [],
    "version": ["--version"],
    "plan check": ["plan", "check", DEMO],
    "plan shards": ["plan", "shards", "tiny.toml"],
    "plan module": ["plan", "module", str(ROOT / "examples" / "tabular" / "plan.toml")],
    "key": ["key", "role.key"],
    "scenarios": ["lab", DEMO, "--scenario", "list"],
    "lab": ["lab", "tiny.toml"],
    "doctor": ["doctor", *NOWHERE],
    "data": ["data", "--data-dir", str(PREPARED / "images")],
    "dashboard": ["dashboard", "--port", "0", *NOWHERE, "--contract", ALICE.address],
    "status": ["status", *RUN],
    "logs": ["logs", str(PREPARED)],
    "fund": ["fund", ALICE.address, *SENDER],
    "send-noop": ["send-noop", *SENDER],
    "sweep": ["sweep", "tiny.toml", *SWEEP, "--results", str(PREPARED / "sweep")],
    "reproduce": ["reproduce", "tiny.toml", "--seeds", "1", "--results", str(PREPARED / "results")],
}
NOTES = {
    "data": "note: these are your own images, not MNIST: 10 training and 10 test images of 2 × 2 pixels\n",
    "sweep": "1 run of 3 rounds with 2 learners\n1 of 1: fedavg, no attack, seed 1: 50.00% (kept)\n",
    "reproduce": "".join(f"{name}.json exists; kept\n" for name in ("federated-1", "plain-keras", "baseline-1")),
}
"""What commands say on standard error first."""
MODULES = ["fl_node.lab.doctor", "fl_node.lab.lab", "fl_node.data.partition", "fl_node.data.loading"]
MODULES += [
    "fl_node.monitor.server",
    "fl_node.report.collect",
    "fl_node.experiments.sweep",
    "fl_node.experiments.reproduce",
]


def idx(values: np.ndarray) -> bytes:
    """Return a file of MNIST's format."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def prepare(folder: Path, rpc: str) -> str:
    """Write what commands find, begin a run, and return the address of its contract."""
    folder.mkdir()
    (folder / "role.key").write_text(HEADER.key.hex())
    (folder / "role.key").chmod(0o600)
    (folder / "logs").mkdir()
    (folder / "logs" / "header.log").write_text('{"event": "round_started", "message": "round 0"}\n')
    (folder / "images").mkdir()
    for name in FOLDER_FILES.values():
        values = np.zeros((10, 2, 2), np.uint8) if "images" in name else np.arange(10, dtype=np.uint8)
        (folder / "images" / name).write_bytes(idx(values))
    (folder / "tiny.toml").write_text(TINY)
    plan = plans.load(folder / "tiny.toml")
    (cell,) = sweep.cells(plan, ["fedavg"], ["sign_flip"], [0.0], [1])
    (folder / "sweep" / "tiny" / "cells").mkdir(parents=True)
    (folder / "sweep" / "tiny" / "cells" / f"{cell.name}.json").write_text('{"rounds": [{"accuracy": 0.5}]}')
    (folder / "results").mkdir()
    result = {"local": {"1": {"accuracy": 0.5}, "2": {"accuracy": 0.5}}, "result": {"accuracy": 0.5, "cid": "b"}}
    parts = {
        "plain-keras": {"seconds": 1.0},
        "federated-1": {"rounds": [result], "seconds": 1.0},
        "baseline-1": {"accuracy": [0.5]},
    }
    for name, part in parts.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps({"plan": plan.model_dump(), **part}))
    (folder / "plan.json").write_bytes(plan.to_bytes())
    chain = Chain(rpc, HEADER)
    return str(chain.deploy(FolderStore(folder / "files").add(folder / "plan.json"), OPEN).contract)


@pytest.fixture(scope="module")
def ends(rpc: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[tuple[str, str], Ended], list[str]]:
    """How each command ended with each standard output, and which folders they left."""
    folder = tmp_path_factory.mktemp("streams")
    contract = prepare(folder / "prepared", rpc)
    here = folder / "here"
    here.mkdir()
    (here / "tiny.toml").write_text(TINY)

    def filled(arguments: Sequence[str]) -> list[str]:
        return [{"RPC": rpc, "CONTRACT": contract}.get(one, one) for one in arguments]

    keys = [(kind, name) for kind in OUTPUTS for name in COMMANDS]
    cases = [(kind, filled(COMMANDS[name])) for kind, name in keys]
    done = carry_out(cases, here, {"FL_NODE_CACHE": str(here / "cache")}, MODULES)
    left = [str(path.relative_to(here)) for path in here.rglob("*") if path.is_dir()]
    return dict(zip(keys, done, strict=True)), left


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_standard_output_that_takes_nothing_is_one_line_and_an_exit_code(
    ends: tuple[dict[tuple[str, str], Ended], list[str]], kind: str, name: str
) -> None:
    done, left = ends
    code, error = OUTPUTS[kind]
    assert done[kind, name] == Ended(code, NOTES.get(name, "") + (f"fl-node: {error}\n" if error else ""))
    assert left == []


@pytest.mark.parametrize(
    ("line", "code", "errors"),
    [
        ("plan check - <&-", 2, "fl-node: plan -: standard input is closed\n"),
        ("logs - <&-", 2, "fl-node: standard input is closed\n"),
        ("plan check nowhere 2>&-", 2, ""),
        ("plan check nowhere 2>/dev/full", 2, ""),
        ("--version <&- >&- 2>&-", 2, ""),
        ("--version </dev/null >/dev/null 2>&-", 0, ""),
    ],
)
def test_a_shell_may_close_any_stream(tmp_path: Path, line: str, code: int, errors: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -P -m fl_node {line}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, errors)


def test_a_reader_that_is_gone_ends_a_command_with_the_code_that_a_shell_expects(tmp_path: Path) -> None:
    # The command starts when nobody can read the pipe any more, or all that it prints might fit into it before.
    wait = "for _ in {1..1200}; do [ -e gone ] && break; sleep 0.05; done"
    command = f"{sys.executable} -P -m fl_node --help"
    line = f"{{ {wait}; {command}; }} | {{ exec <&-; touch gone; }}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
