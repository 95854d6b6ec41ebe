"""Dask within this process: where it looks for modules, and what it leaves behind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from fl_node.experiments import cluster


def test_other_users_can_not_put_modules_where_dask_looks_for_them_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "tmp"
    (shared / "dask-scratch-space").mkdir(parents=True)  # another user's, on a machine of many
    (shared / "dask-scratch-space").chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    before = set(sys.path)
    with cluster.local(1, None) as client:
        added = [Path(entry).relative_to(shared).parts[0] for entry in sys.path if entry not in before]
        modes = [(shared / name).stat().st_mode & 0o077 for name in added]
        assert client.submit(sum, [1, 2]).result(30) == 3
    assert modes
    assert not any(modes), added
    assert set(sys.path) == before
    assert [path.name for path in shared.iterdir()] == ["dask-scratch-space"]
    assert not list((shared / "dask-scratch-space").iterdir())
