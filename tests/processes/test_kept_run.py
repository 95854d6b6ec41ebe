"""A run's folder that is read later: moved, owned by another user, incomplete, or still in use."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import Chain
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ConfigError, FLNodeError, ProcessError
from fl_node.lab import run_folder
from fl_node.lab.run_folder import Node, Run
from fl_node.nodes.backends import EmbeddedBackend
from tests.helpers.chain import OPEN


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a chain of one contract and the plan's file, whose chain is down."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    key = folder.parent / "key"
    backend = EmbeddedBackend(folder / "nodes", {"header": create_key(key)})
    end = backend.start()["header"]
    try:
        plan = folder.parent / "plan.json"
        plan.write_text("a plan")
        store = FolderStore(Path(end.store))
        chain = Chain(end.rpc, load_key(key))
        contract = chain.deploy(store.add(plan), OPEN).contract
        node = Node(str(chain.address), end.rpc, end.store)
        Run("demo", "embedded", "", str(contract), chain.chain_id(), chain.genesis(), {"header": node}).save(folder)
    finally:
        backend.stop()
    return folder


def as_another(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without the rights of root, if the tests have them: what belongs to others is theirs alone."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-P", "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


READ = """
import sys
from pathlib import Path
from fl_node.cli import app as cli
from fl_node.lab import run_folder as run
try:
    (Path(sys.argv[1]) / "mine").touch()
except PermissionError:
    print("may not write")
with run.reach(Path(sys.argv[1]), print) as (contract, store):
    print(contract.plan(), contract.header())
    store.fetch(contract.plan(), Path(sys.argv[2]) / "plan", 100, 1.0)
"""


def test_a_run_that_was_moved_and_belongs_to_another_is_read_and_stays_as_it_is(chain: Path, tmp_path: Path) -> None:
    moved, mine = tmp_path / "moved" / "here", tmp_path / "mine"
    shutil.copytree(chain, moved)
    mine.mkdir()
    for path in [moved.parent, *moved.parent.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    done = as_another(READ, moved, mine)
    assert done.returncode == 0, done.stderr
    assert "may not write" in done.stdout
    assert (mine / "plan").read_text() == "a plan"
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before
    for path in [moved.parent, *moved.parent.rglob("*")]:
        path.chmod(0o700)


def test_what_a_run_has_kept_may_be_read_by_everybody(chain: Path) -> None:
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (chain / "nodes").rglob("*"))


@pytest.mark.parametrize("what", ["blocks", "files"])
def test_a_part_of_a_run_that_is_not_there_is_named(chain: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(chain, tmp_path / "run")
    gone = tmp_path / "run" / "nodes" / what
    gone.rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=f"{gone}: No such file"), run_folder.endpoints(tmp_path / "run", print):
        pass


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("device", ConfigError, "{}: it exists and is not a regular file"),
        ("pipe", ConfigError, "{}: it exists and is not a regular file"),
        ("empty", ConfigError, "{}: its blocks do not include the run's contract 0x"),
        ("cut", ConfigError, "{}: its blocks do not include the run's contract 0x"),
        ("garbage", ProcessError, "{}, line 1: not the next block of this chain"),
    ],
)
def test_blocks_that_can_not_be_used_are_named(
    chain: Path, tmp_path: Path, kind: str, error: type[FLNodeError], message: str
) -> None:
    shutil.copytree(chain, tmp_path / "run")
    blocks = tmp_path / "run" / "nodes" / "blocks"
    content = blocks.read_bytes()
    blocks.unlink()
    if kind == "device":
        blocks.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(blocks)
    else:
        blocks.write_bytes({"empty": b"", "cut": content[:-100], "garbage": b"garbage\n" * 3}[kind])
    with pytest.raises(error) as caught, run_folder.reach(tmp_path / "run", print):
        pass
    assert message.format(blocks) in str(caught.value)
    assert tempfile.gettempdir() + "/fl-node-" not in str(caught.value)


def test_a_run_that_goes_on_is_read_as_it_is_and_its_copy_as_it_was(chain: Path, tmp_path: Path) -> None:
    going, copy = tmp_path / "going", tmp_path / "copy"
    shutil.copytree(chain, going)
    record = run_folder.load(chain)
    backend = EmbeddedBackend(going / "nodes", {"header": record.nodes["header"].account})
    end = backend.start()["header"]
    try:
        here = Node(record.nodes["header"].account, end.rpc, end.store)
        dataclasses.replace(record, nodes={"header": here}).save(going)
        shutil.copytree(going, copy)
        with run_folder.endpoints(going, print) as found:
            assert found["header"] == end
        with run_folder.endpoints(copy, print) as found:
            assert found["header"].rpc != end.rpc
            assert Path(found["header"].store) == copy / "nodes" / "files"
            assert Chain(found["header"].rpc).genesis() == record.genesis
    finally:
        backend.stop()
