"""``fl-node reproduce`` on a plan of seconds: everything it does on the paper's, except to reach its figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.helpers.warm import fl_node

PLAN = """
name = "tiny"
rounds = 1
learners = 2
data = { name = "digits" }
model = { name = "mlp" }
training = { epochs = 1 }
"""


def reproduce(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return fl_node("reproduce", "tiny.toml", "--seeds", "1", *more, cwd=folder)


def test_a_reproduction_reports_what_was_not_reached_and_keeps_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(PLAN)
    first = reproduce(tmp_path)
    assert first.returncode == 1, first.stderr
    assert "not met final global accuracy, each seed" in first.stdout
    report = (tmp_path / "results" / "reproduce.md").read_text()
    assert "**not met**" in report
    federated = json.loads((tmp_path / "results" / "federated-1.json").read_text())
    assert federated["audit"]["passed"] is True
    assert federated["ended"] is True

    again = reproduce(tmp_path, "--json")
    assert again.returncode == 1
    assert "federated-1.json exists; kept" in again.stderr
    content = json.loads(again.stdout)
    assert content["seeds"][0]["cid"] == federated["rounds"][-1]["result"]["cid"]
    assert len(content["seeds"][0]["baseline"]) == 1


def test_a_plan_that_is_not_like_the_papers_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(PLAN.replace("learners = 2", "learners = 3"))
    refused = reproduce(tmp_path)
    assert refused.returncode == 2
    assert "2 learners" in refused.stderr
    assert not (tmp_path / "results").exists()
