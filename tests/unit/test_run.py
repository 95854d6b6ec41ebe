"""The folder of a run and its ``run.json``."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fl_node import __version__
from fl_node.errors import ConfigError
from fl_node.lab import run_folder
from fl_node.lab.run_folder import Node, Run

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
        changed(nodes={"header": [1, 2]}),
        changed(nodes="header"),
        "5",
        '"text"',
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
    with pytest.raises(ConfigError, match=r"run\.json is damaged") as raised:
        run_folder.load(tmp_path)
    # What Python itself says of a wrong argument tells nothing to who has the file.
    assert not isinstance(raised.value.__cause__, TypeError | KeyError | AttributeError)


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    for path in (tmp_path, tmp_path / "run.json"):
        with pytest.raises(ConfigError, match=r"run\.json"):
            run_folder.load(path)


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
    with pytest.raises(ConfigError, match=r"run folder .*file: it exists and is not a folder"):
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
