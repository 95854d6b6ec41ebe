"""A whole run whose learners write event files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.warm import fl_node


def test_a_run_with_event_files_ends_with_the_same_file_as_one_without(
    tiny_plan: Path, lab_run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    done = fl_node("lab", tiny_plan, "--runs", tmp_path, "--json", "--tensorboard", "curves")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["final"]["cid"] == lab_run[1]["final"]["cid"]
    curves = tmp_path / "tiny" / "curves"
    assert sorted(path.name for path in curves.iterdir()) == ["learner-1", "learner-2"]
    assert all(len(list(one.glob("events.out.tfevents.*"))) == 1 for one in curves.iterdir())
    assert not (lab_run[0] / "curves").exists()
