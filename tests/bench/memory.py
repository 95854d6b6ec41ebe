"""What the header's work on local files takes of memory, for few learners and for many.

Run as a program, it is that work, in a process of its own: check all files, average them, print the peak in bytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.model_file import LocalMeta
from fl_node.errors import ProcessError
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import global_file
from tests.bench.results import Part, Row, say
from tests.bench.stub import MODELS, megabytes, plan, trainer

MODEL = "large"
FEW, MANY = 2, 50
PATIENCE = 900.0
PLAN = cid.of_bytes(b"plan")
PARENT = cid.of_bytes(b"parent")


def measure(*, quick: bool) -> Part:
    """Compare the peak for 50 learners with that for 2."""
    many = 10 if quick else MANY
    part = Part(f"Memory: the header's peak, files of {megabytes(MODEL):.1f} MB")
    with tempfile.TemporaryDirectory(prefix="fl-node-bench-") as name:
        folder = Path(name)
        say(f"writing {many} files of {megabytes(MODEL):.1f} MB")
        _write(folder, many)
        few_peak, many_peak = (_peak_for(folder, count, "fedavg") for count in (FEW, many))
        median_peak = _peak_for(folder, many, "median")
    part.rows += [
        Row(f"{FEW} learners", few_peak / 1e6, "MB"),
        Row(f"{many} learners", many_peak / 1e6, "MB"),
        Row("the difference; two models at most", (many_peak - few_peak) / 1e6, "MB", 2 * megabytes(MODEL)),
        Row(f"{many} learners, by the median", median_peak / 1e6, "MB"),
    ]
    return part


def _write(folder: Path, learners: int) -> None:
    initial = trainer(MODEL).initial()
    for node_id in range(1, learners + 1):
        meta = LocalMeta(PLAN, node_id, 0, PARENT, 1200, 0.5, 1.0)
        model_file.write(
            folder / f"{node_id}.safetensors", meta, {k: t + np.float32(node_id) for k, t in initial.items()}
        )


def _peak_for(folder: Path, learners: int, rule: str) -> int:
    say(f"checking {learners} files and aggregating them by {rule}")
    command = [sys.executable, "-m", "tests.bench.memory", str(folder), str(learners), rule]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ProcessError(f"averaging {learners} files takes more than {PATIENCE:g} s") from error
    if done.returncode:
        raise ProcessError(f"averaging {learners} files: {done.stderr}")
    return int(done.stdout)


def work(folder: Path, learners: int, rule: str) -> int:
    """Do the header's work on the files and return the peak of this process in bytes."""
    inputs = []
    for node_id in range(1, learners + 1):
        file = model_file.read(folder / f"{node_id}.safetensors", MODELS[MODEL])
        model_file.check_local(file, plan=PLAN, node_id=node_id, round_=0, parent=PARENT)
        inputs.append(file)
    settings = plan(MODEL, 1, learners).model_dump() | {"aggregation": {"rule": rule}}
    path = folder / "global.safetensors"
    global_file(path, Plan.model_validate(settings), PLAN, round_=1, parent=PARENT, inputs=inputs)
    return peak()


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    # getrusage counts what the parent had before this program was loaded; VmHWM begins with the program (Linux).
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Watch:
    """What this process has of memory before its work, and the most that it has meanwhile, in bytes (Linux).

    ``anonymous`` and ``mapped`` are the most that was seen of either, ten times a second; ``peak`` misses nothing.
    """

    def __init__(self) -> None:
        now = _resident()
        self._record = {"idle": sum(now.values()), **{f"idle_{kind}": held for kind, held in now.items()}, **now}
        threading.Thread(target=self._look, daemon=True).start()

    def record(self) -> dict[str, int]:
        """Return what was seen so far."""
        return {**self._record, "peak": peak()}

    def _look(self) -> None:
        while True:
            for kind, held in _resident().items():
                self._record[kind] = max(self._record[kind], held)
            time.sleep(0.1)


def _resident() -> dict[str, int]:
    """Return the memory of this process in bytes: its own, and what it has mapped of files."""
    names = {"RssAnon": "anonymous", "RssFile": "mapped"}
    rows = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {names[name]: int(value.split()[0]) * 1024 for name, _, value in rows if name in names}


if __name__ == "__main__":
    print(work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
