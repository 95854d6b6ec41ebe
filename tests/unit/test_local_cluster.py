"""Dask within this process: where it looks for modules, and what it leaves behind."""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from fl_node.errors import ConfigError
from fl_node.experiments import cluster, sweep_keys


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
        assert client.submit(sum, [1, 2]).result(600) == 3
    assert modes
    assert not any(modes), added
    assert set(sys.path) == before
    assert [path.name for path in shared.iterdir()] == ["dask-scratch-space"]
    assert not list((shared / "dask-scratch-space").iterdir())


def test_why_a_scheduler_can_not_listen_is_in_the_message(tmp_path: Path) -> None:
    sweep_keys.create(tmp_path, ["here"], 1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=os.strerror(errno.EADDRINUSE)):
            cluster.serve_scheduler(cluster.Endpoint("127.0.0.1", port), tmp_path / "here", lambda _line: None)
