"""A checkout is complete, and a clone has the same bytes whatever Git is set up to do with line ends."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.helpers.checkout import ROOT


def test_a_clone_with_line_ends_of_windows_has_the_same_files(tmp_path: Path) -> None:
    """Scripts would not start, and a module's hash would be another."""
    clone = tmp_path / "a clone"
    clone.mkdir()
    files = ["roles/fl_node/files/install.sh", "examples/tabular/tabular.py", "vagrant/image", "inventory/hosts.yml"]
    for name in [".gitattributes", *files]:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-C", str(clone), "-c", "core.autocrlf=true", "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["commit", "-qm", "all"],
        ["rm", "-q", *files],
        ["checkout", "HEAD", *files],
    ):
        subprocess.run([*git, *command], check=True, capture_output=True)
    for name in files:
        assert (clone / name).read_bytes() == (ROOT / name).read_bytes(), name
        assert b"\r" not in (clone / name).read_bytes()


def test_no_module_of_tests_has_lost_its_tests() -> None:
    modules = list((ROOT / "tests").rglob("test_*.py"))
    assert len(modules) > 100
    assert [path.name for path in modules if not re.search(r"def test_|^class Test", path.read_text(), re.M)] == []
