"""A whole run whose learners write event files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def test_a_run_with_event_files_ends_with_the_same_file_as_one_without(
    tiny_plan: Path, lab_run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fl_node", "lab", str(tiny_plan), "--runs", str(tmp_path), "--json"]
    done = subprocess.run(
        [*command, "--tensorboard", "curves"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["final"]["cid"] == lab_run[1]["final"]["cid"]
    curves = tmp_path / "tiny" / "curves"
    assert sorted(path.name for path in curves.iterdir()) == ["learner-1", "learner-2"]
    assert all(len(list(one.glob("events.out.tfevents.*"))) == 1 for one in curves.iterdir())
    assert not (lab_run[0] / "curves").exists()
