"""The folder of a run and its ``run.json``."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_node import __version__
from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import Chain
from fl_node.chain.keys import create_key, load_key
from fl_node.errors import ConfigError
from fl_node.lab import run_folder
from fl_node.lab.run_folder import Node, Run
from fl_node.nodes.backends import EmbeddedBackend
from tests.helpers.chain import OPEN

RUN = Run(
    name="demo",
    backend="embedded",
    plan="QmUjkPFQrqeRLakWf7C9Gdf4dFgU2MFK5UMtF9vm37K2cs",
    contract="0x" + "ab" * 20,
    chain_id=20240191,
    genesis="0x" + "cd" * 32,
    nodes={
        "header": Node("0x" + "01" * 20, "http://127.0.0.1:1", "files"),
        "learner-1": Node("0x" + "02" * 20, "http://127.0.0.1:2", "/ip4/127.0.0.1/tcp/5001"),
    },
    versions={"python": "3.11.7"},
)


def test_a_run_comes_back_from_its_folder_or_its_file(tmp_path: Path) -> None:
    RUN.save(tmp_path)
    assert run_folder.load(tmp_path) == run_folder.load(tmp_path / "run.json") == RUN
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_is_no_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json: No such file or directory; is it a run folder"):
        run_folder.load(tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere: No such file"):
        run_folder.load(tmp_path / "nowhere")


def changed(**changes: Any) -> str:
    content = dataclasses.asdict(RUN) | changes
    return json.dumps({name: value for name, value in content.items() if value is not None})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        changed(nodes=None),
        changed(nodes=[]),
        changed(nodes={}),
        changed(nodes={"header": "http://127.0.0.1:1"}),
        changed(nodes={"header": {"rpc": "http://127.0.0.1:1"}}),
        changed(nodes={"learner-1": {"account": "0x1", "rpc": "http://127.0.0.1:1", "store": "files"}}),
        changed(contract=None),
        changed(another="key"),
        changed(contract={"a": 1}),
        changed(contract="0x12"),
        changed(name=5),
        changed(backend="elsewhere"),
        changed(chain_id="1"),
        changed(versions=[]),
        changed(versions={"python": 3}),
        changed(nodes={"header": {"account": "0x" + "01" * 20, "rpc": 5, "store": "files"}}),
        changed(nodes={"header": {"account": "me", "rpc": "http://127.0.0.1:1", "store": "files"}}),
        changed(nodes={"header": {"account": "0x" + "01" * 20, "rpc": "http://127.0.0.1:1", "store": "a\0b"}}),
        changed(
            nodes={
                name: {"account": "0x" + "01" * 20, "rpc": "http://127.0.0.1:1", "store": "files"}
                for name in ("header", "../../etc")
            }
        ),
        changed()[:-1] + ', "name": "twice"}',
        changed(chain_id=1)[:-1] + ', "more": ' + "9" * 5000 + "}",
        "[" * 70_000,
        '{"nodes":' * 70_000,
        " " * (1024**2 + 1),
        "\ud800",
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        run_folder.load(tmp_path)


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    runs = tmp_path / "deep" / "runs"
    for name in ("demo", "demo-2", "demo-3"):
        with run_folder.new_folder(runs, "demo") as folder:
            assert folder == runs / name
    with run_folder.new_folder(runs, "paper") as folder:
        assert folder.name == "paper"
    assert len([folder.is_dir() for folder in runs.iterdir()]) == 4


@pytest.mark.parametrize("error", [ConfigError, OSError, KeyboardInterrupt, SystemExit])
def test_a_run_that_fails_before_it_is_deployed_leaves_no_folder(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "others").mkdir()
    for runs in (tmp_path / "runs", tmp_path / "others"):
        with pytest.raises(error), run_folder.new_folder(runs, "demo") as folder:
            (folder / "logs").mkdir()
            (folder / "logs" / "chain.log").write_text("no")
            raise error
    assert list(tmp_path.rglob("*")) == [tmp_path / "others"]


def test_a_run_that_fails_after_it_was_deployed_keeps_its_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), run_folder.new_folder(tmp_path, "demo") as folder:
        RUN.save(folder)
        raise KeyboardInterrupt
    assert run_folder.load(tmp_path / "demo") == RUN


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/tmp/x", "a\r", "a\0", "a\nb"], ids=ascii)
def test_a_name_that_is_no_name_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="should be a folder name"):
        run_folder.new_folder(tmp_path / "runs", name).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run folder .*file: File exists"):
        run_folder.new_folder(tmp_path / "file", "demo").__enter__()


@pytest.mark.timeout(20)
def test_a_link_to_nowhere_in_the_place_of_the_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted" / "disk")
    with pytest.raises(ConfigError, match="run folder"):
        run_folder.new_folder(tmp_path / "runs", "demo").__enter__()


def test_the_versions_that_a_result_depends_on_are_named() -> None:
    versions = run_folder.versions()
    assert versions["fl-node"] == __version__
    assert {"python", "machine", "keras", "numpy", "web3", "safetensors"} <= set(versions)
    assert "tensorflow" in versions or "tensorflow-cpu" in versions


# Reading a run


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
