"""The command line: help, exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from fl_node import __version__
from fl_node.artifacts import cid
from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import Chain
from fl_node.chain.keys import create_key, load_key
from fl_node.cli import app, live_page
from fl_node.errors import ChainError
from fl_node.experiments import baseline
from fl_node.lab.run_folder import Node, Run
from fl_node.models import keras_trainer
from fl_node.plan import examples
from fl_node.plan import loading as plans
from fl_node.protocol.journal import FIRST, Entry, signed
from tests.conftest import TINY
from tests.helpers.accounts import ALICE, HEADER, POOR
from tests.helpers.chain import OPEN
from tests.helpers.checkout import ROOT
from tests.helpers.command_line import Ended, FlNode, in_process

PAPER = str(ROOT / "plans" / "paper.toml")


@pytest.fixture
def fl_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[FlNode]:
    """Run ``fl-node`` in this process, in an empty folder, and return how it ended."""
    for name in list(os.environ):
        if name.startswith("FL_NODE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FL_NODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with in_process(monkeypatch, capsys) as run:
        yield run


def is_one_line(ended: Ended, code: int, *parts: str) -> bool:
    """Return whether a command ended with this code and one line on standard error that has these parts."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.err.startswith("fl-node: ")
    assert ended.err.count("\n") == 1
    for part in parts:
        assert part in ended.err
    return True


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from commands(subcommand, (*path, name))


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app.app))), ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(fl_node: FlNode, command: tuple[str, ...], option: str) -> None:
    ended = fl_node(*command, option)
    assert (ended.code, ended.err) == (0, "")
    assert f"{' '.join(command)} [OPTIONS]" in ended.out


def test_the_help_names_every_command_and_the_exit_codes(fl_node: FlNode) -> None:
    text = fl_node("--help").out
    top = [path[0] for path in commands(typer.main.get_command(app.app)) if len(path) == 1]
    assert {"lab", "header", "learner", "audit", "doctor", "plan"} < set(top)
    assert all(f" {name} " in text for name in top)
    assert "130 interrupted" in " ".join(text.split())


def test_without_arguments_it_shows_its_help(fl_node: FlNode) -> None:
    ended = fl_node()
    assert "Usage:" in ended.out + ended.err


def test_the_version_is_printed(fl_node: FlNode) -> None:
    assert fl_node("--version") == Ended(0, f"fl-node {__version__}\n", "")


def test_help_breaks_its_lines_at_the_terminals_width_alone(fl_node: FlNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    lines = [line.strip() for line in fl_node("lab", "--help").out.splitlines()]
    assert any("If you kill one, the lab restarts it and it continues." in line for line in lines)
    assert "fl-node lab plans/demo.toml" in lines, "an example keeps its line"


@pytest.mark.parametrize("arguments", [["unknown"], ["lab"], ["plan", "check"], ["lab", PAPER, "--unknown"]])
def test_a_wrong_command_line_is_code_two_with_the_usage(fl_node: FlNode, arguments: list[str]) -> None:
    ended = fl_node(*arguments)
    assert ended.code == 2
    assert "Usage:" in ended.err
    assert "Traceback" not in ended.err


# Plans


def test_a_plan_that_is_not_there_is_one_line(fl_node: FlNode) -> None:
    for command in (["lab"], ["plan", "check"], ["baseline"], ["reproduce"]):
        assert is_one_line(fl_node(*command, "nowhere.toml"), 2, "plan nowhere.toml: No such file")


def test_where_an_error_comes_from_is_shown_when_asked_for(fl_node: FlNode) -> None:
    ended = fl_node("-v", "plan", "check", "nowhere.toml")
    assert ended.code == 2
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1].startswith("fl-node: plan nowhere.toml")
    assert "Traceback" not in fl_node("plan", "check", "nowhere.toml").err


def test_all_that_is_wrong_with_a_plan_is_said(fl_node: FlNode) -> None:
    Path("plan.toml").write_text('name = "X"\nround = 3\n[model]\nname = "[bold]rnn"')
    ended = fl_node("plan", "check", "plan.toml")
    assert ended.code == 2
    first, *lines = ended.err.splitlines()
    assert first == "fl-node: plan.toml is not a valid plan:"
    assert [line.split(":")[0].strip() for line in lines] == ["name", "model.name", "round"]
    assert "'[bold]rnn'" in ended.err


def test_a_plan_is_shown_with_its_defaults_and_its_published_name(fl_node: FlNode) -> None:
    ended = fl_node("plan", "check", PAPER)
    content, last = ended.out.rsplit("\n", 2)[0:2]
    assert json.loads(content) == plans.load(Path(PAPER)).model_dump()
    assert last.endswith("its CID is QmUjkPFQrqeRLakWf7C9Gdf4dFgU2MFK5UMtF9vm37K2cs")


@pytest.mark.parametrize("example", examples.names())
def test_a_new_plan_is_an_example_with_the_name_of_its_file(fl_node: FlNode, example: str) -> None:
    ended = fl_node("plan", "new", "plans/mine.toml", "--from", example)
    written = Path("plans/mine.toml")
    assert (ended.code, ended.out.splitlines()[0]) == (0, str(written))
    assert "#:schema" not in written.read_text()
    assert plans.load(written) == plans.load(examples.path(example), ['name="mine"'])
    ended = fl_node("plan", "new", "plans/mine.toml")
    assert is_one_line(ended, 2, "plans/mine.toml exists")


def test_every_packed_plan_is_an_example_and_every_example_is_packed() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packed = {Path(path) for path in build["force-include"] if path.endswith(".toml")}
    assert packed == {examples.path(name).relative_to(ROOT) for name in examples.names()}
    assert set(examples.PLANS) == {path.stem for path in (ROOT / "plans").glob("*.toml")}


def test_the_help_of_a_new_plan_names_every_example(fl_node: FlNode) -> None:
    told = " ".join(re.sub(r"[│\s]+", " ", fl_node("plan", "new", "--help").out).split())
    assert f"{', '.join(sorted(examples.names())[:-1])} or {max(examples.names())}." in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Mine.toml",), "'Mine.toml' is not a valid file name"),
        (("mine.txt",), "such as mine.toml"),
        (("mine.toml", "--from", "other"), "should be one of async, demo"),
    ],
)
def test_a_new_plan_that_can_not_be_is_one_line(fl_node: FlNode, arguments: tuple[str, ...], message: str) -> None:
    assert is_one_line(fl_node("plan", "new", *arguments), 2, message)
    assert not list(Path.cwd().iterdir())


def test_for_scripts_a_plan_is_its_published_bytes(fl_node: FlNode) -> None:
    ended = fl_node("plan", "check", "--json", PAPER, "--set", "seed=7", "--set", "model.name=mlp")
    assert (ended.code, ended.err) == (0, "")
    plan = plans.from_bytes(ended.out.removesuffix("\n").encode())
    assert (plan.seed, plan.model.name) == (7, "mlp")


def test_a_wrong_setting_is_one_line(fl_node: FlNode) -> None:
    assert is_one_line(fl_node("plan", "check", PAPER, "--set", "seed"), 2, "--set seed: should be KEY=VALUE")


# Keys


def test_a_key_is_made_once_and_its_address_printed(fl_node: FlNode) -> None:
    first = fl_node("key", "keys/role.key")
    assert first.code == 0
    assert load_key(Path("keys/role.key")).address == first.out.strip()
    assert fl_node("key", "keys/role.key") == first


def test_a_key_that_cannot_be_made_or_used_is_one_line(fl_node: FlNode) -> None:
    Path("file").write_text("")
    assert is_one_line(fl_node("key", "file/role.key"), 2, "key file file/role.key")
    Path("open.key").write_text("12" * 32)
    Path("open.key").chmod(0o644)
    assert is_one_line(fl_node("key", "open.key"), 2, "chmod 600 open.key")
    assert is_one_line(fl_node("learner", "--contract", "0x12"), 2, "key file role.key: No such file")


# Which run?


@pytest.mark.parametrize("command", ["audit", "dashboard", "journal", "status", "evaluate", "export", "predict"])
def test_a_command_about_a_run_asks_which(fl_node: FlNode, command: str) -> None:
    from PIL import Image

    Image.effect_noise((28, 28), 50).save("digit.png")
    arguments = ["digit.png"] if command == "predict" else []
    assert is_one_line(fl_node(command, *arguments), 2, "no run given; give its folder, ")
    assert is_one_line(fl_node(command, *arguments, "runs/none"), 2, "is it a run folder?")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--node", "header", "should be NAME=RPC,STORE"),
        ("--listen", "lab.example", "should be an IP address"),
        ("--contract", "0x12", "should be an address"),
    ],
)
def test_what_is_wrong_with_a_dashboards_options_is_one_line(
    fl_node: FlNode, option: str, value: str, message: str
) -> None:
    where = [] if option == "--contract" else ["--contract", HEADER.address]
    assert is_one_line(fl_node("dashboard", *where, option, value), 2, message)


def test_the_contract_in_a_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.env"
    assert live_page._contract_in(path) is None
    for text, expected in (
        ("", None),
        (f"FL_NODE_CONTRACT={HEADER.address.lower()}\n", HEADER.address),
        ("FL_NODE_CONTRACT=0x12\n", None),
        (f"OTHER=1\nFL_NODE_CONTRACT={ALICE.address}\n", ALICE.address),
    ):
        path.write_text(text)
        assert live_page._contract_in(path) == expected


def test_the_journal_of_a_host_is_shown_and_copied(fl_node: FlNode, free_port: Callable[[], int]) -> None:
    work = Path("work") / HEADER.address.lower()
    where = ("--contract", HEADER.address, "--store", f"/ip4/127.0.0.1/tcp/{free_port()}")
    assert is_one_line(fl_node("journal", *where), 2, f"no journal of contract {HEADER.address} in work")
    work.mkdir(parents=True)
    contract = HEADER.address
    entry = Entry(0, FIRST, contract, "learner", ALICE.address, "opened", 3, "QmX", "0xb", 7, 1, 2.0, None, 6)
    (work / "journal.jsonl").write_bytes(signed(entry, ALICE) + b"\n")
    ended = fl_node("journal", *where, "--output", "copies")
    assert ended.code == 0
    for part in (f"learner {ALICE.address}: 1 entry", "round 3 opened, QmX, block 7 (0xb)"):
        assert part in ended.out
    assert "no CIDs" in ended.err
    (copy,) = Path("copies").iterdir()
    assert copy.read_bytes() == (work / "journal.jsonl").read_bytes()
    (shown,) = json.loads(fl_node("journal", *where, "--json").out)
    assert (shown["problem"], shown["entries"][0]["round"]) == ("", 3)


def test_a_damaged_run_is_one_line(fl_node: FlNode) -> None:
    Path("run.json").write_text("{}")
    assert is_one_line(fl_node("audit", "."), 2, "run.json is damaged")


@pytest.mark.parametrize("command", ["audit", "dashboard", "export", "report", "status", "contribution", "evaluate"])
@pytest.mark.parametrize("option", ["--rpc", "--store", "--contract"])
def test_a_run_is_named_in_one_way(
    fl_node: FlNode, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    nodes = {"header": Node(HEADER.address, "http://127.0.0.1:1", "files")}
    Run("run", "embedded", "Qm", HEADER.address, 1, "0x", nodes).save(Path())
    assert is_one_line(fl_node(command, ".", option, "other"), 2, f"{option} other: the folder . names the run")
    # A host sets these for its role.
    monkeypatch.setenv(f"FL_NODE_{option.removeprefix('--').upper()}", "other")
    monkeypatch.setattr("fl_node.lab.run_folder.load", lambda _: pytest.fail("reached"))
    monkeypatch.setattr("fl_node.lab.run_folder.reach", lambda *_: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        fl_node(command, ".")


@pytest.mark.parametrize("arguments", [["--node", "a=http://127.0.0.1:1,files"], ["--contract-file", "x"]])
def test_a_live_page_of_a_folder_takes_no_other_nodes(fl_node: FlNode, arguments: list[str]) -> None:
    assert is_one_line(
        fl_node("dashboard", "runs/demo", *arguments), 2, f"{arguments[0]}: the folder runs/demo names"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "--anchor", "nowhere"], "journal nowhere: no such file or folder"),
        (["audit", "--learner", "1"], "--learner 1: should be nodeId=address"),
        (["audit", "--attest", "--key", "nowhere"], "key file nowhere"),
        (["dashboard", "--listen", "lab.example"], "--listen lab.example: should be an IP address"),
    ],
)
def test_options_are_checked_before_nodes_are_started(
    fl_node: FlNode, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    def start(*_: object) -> None:
        pytest.fail("the run's nodes were started")

    monkeypatch.setattr("fl_node.lab.run_folder.endpoints", start)
    nodes = {"header": Node(HEADER.address, "http://127.0.0.1:1", "files")}
    Run("run", "embedded", "Qm", HEADER.address, 1, "0x", nodes).save(Path())
    assert is_one_line(fl_node(*arguments, "."), 2, message)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("j", b""),
        ("j", b'{"account": "0x1'),
        ("j", b"\xff\xfe\0\n"),
        ("j", b"{}\n"),
        ("folder", None),
        ("/dev/zero", None),
    ],
)
def test_an_anchor_with_nothing_to_compare_is_named_before_nodes_are_started(
    fl_node: FlNode, name: str, content: bytes | None
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    Path("folder").mkdir()
    nodes = {"header": Node(HEADER.address, "http://127.0.0.1:1", "files")}
    Run("run", "embedded", "Qm", HEADER.address, 1, "0x", nodes).save(Path())
    assert is_one_line(fl_node("audit", "--anchor", name, "."), 2, f"--anchor {name}: ")


def test_a_chain_that_is_down_is_code_four(fl_node: FlNode, free_port: Callable[[], int]) -> None:
    rpc = f"http://127.0.0.1:{free_port()}"
    ended = fl_node("audit", "--rpc", rpc, "--store", "file:files", "--contract", HEADER.address)
    assert is_one_line(ended, 4, f"chain at {rpc} can't be reached")


def test_a_contract_that_is_not_there_is_code_four_and_no_address_is_code_two(fl_node: FlNode, rpc: str) -> None:
    for command in ("audit", "status", "export"):
        ended = fl_node(command, "--rpc", rpc, "--store", "file:files", "--contract", ALICE.address)
        assert is_one_line(ended, 4, ": no contract at")
        ended = fl_node(command, "--rpc", rpc, "--store", "file:files", "--contract", "0x12")
        assert is_one_line(ended, 2, "'0x12' should be an address")


def test_a_plan_that_no_store_has_is_said_by_audit_and_is_code_five_elsewhere(
    fl_node: FlNode, rpc: str, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_bytes(plans.load(Path(PAPER)).to_bytes() + b"\n")
    chain = Chain(rpc, HEADER)
    contract = str(chain.deploy(FolderStore(tmp_path / "store").add(tmp_path / "plan.json"), OPEN).contract)
    options = ["--rpc", rpc, "--store", tmp_path / "store", "--contract", contract]
    ended = fl_node("audit", *options)
    assert ended.code == 1
    assert "header, plan: " in ended.out
    assert "audit FAILED with 1 finding:" in ended.out
    ended = fl_node("audit", "--json", *options)
    assert ended.code == 1
    assert not json.loads(ended.out)["passed"]
    assert fl_node("status", *options).code == 2


@pytest.mark.parametrize(("final", "is_final"), [(0, False), (9, True), (None, None)])
def test_an_audit_tells_whether_the_chain_can_still_replace_the_run(
    fl_node: FlNode,
    rpc: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    final: int | None,
    is_final: bool | None,
) -> None:
    (tmp_path / "plan.json").write_bytes(b"no plan")
    chain, store = Chain(rpc, HEADER), FolderStore(tmp_path / "store")
    contract = chain.contract(str(chain.deploy(store.add(tmp_path / "plan.json"), OPEN).contract))
    contract.register_learner(1, ALICE.address, chain.nonce())
    offset = 0 if final == 0 else chain.block_number()
    monkeypatch.setattr(Chain, "finalized", lambda _chain: None if final is None else final + offset)
    options = ("--rpc", rpc, "--store", tmp_path / "store", "--contract", contract.address)
    assert json.loads(fl_node("audit", "--json", *options).out)["final"] is is_final
    assert ("is not final yet (final: 0)" in fl_node("audit", *options).out) == (is_final is False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rpc", "http://127.0.0.1:1"), "--rpc and --funder belong together"),
        (("--funder", "funder.key"), "--rpc and --funder belong together"),
        (
            ("--rpc", "http://127.0.0.1:1", "--funder", "funder.key", "--backend", "processes"),
            "--backend processes starts a chain",
        ),
    ],
)
def test_a_lab_on_a_chain_of_ones_own_needs_an_account_that_pays(
    fl_node: FlNode, options: tuple[str, ...], message: str
) -> None:
    assert is_one_line(fl_node("lab", PAPER, *options), 2, message)


@pytest.mark.parametrize(
    ("key", "url", "code"),
    [(None, None, 2), (POOR, None, 4), (HEADER, "nonsense", 2), (HEADER, "http://127.0.0.1:1", 4)],
)
def test_a_lab_on_a_chain_of_ones_own_checks_chain_and_account_before_anything_is_sent(
    fl_node: FlNode, rpc: str, tmp_path: Path, key: Any, url: str | None, code: int
) -> None:
    funder = tmp_path / "funder.key"
    if key is not None:
        funder.write_text(key.key.hex() + "\n")
        funder.chmod(0o600)
    before = Chain(rpc).block_number()
    ended = fl_node("lab", PAPER, "--rpc", url or rpc, "--funder", funder)
    assert is_one_line(ended, code, str(funder) if key is None else url or rpc)
    assert Chain(rpc).block_number() == before
    assert list(Path().iterdir()) == []


def test_global_weights_that_are_not_there_are_one_line(fl_node: FlNode, rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    contract = str(chain.deploy(cid.of_bytes(b"plan"), OPEN).contract)
    ended = fl_node("evaluate", "--rpc", rpc, "--store", "file:files", "--contract", contract, "--round", "3")
    assert is_one_line(ended, 2, "global weights 3 are not published")


def test_the_environment_may_name_chain_store_and_contract(
    monkeypatch: pytest.MonkeyPatch, fl_node: FlNode, rpc: str
) -> None:
    monkeypatch.setenv("FL_NODE_RPC", rpc)
    monkeypatch.setenv("FL_NODE_CONTRACT", ALICE.address)
    assert is_one_line(fl_node("audit"), 4, f"chain at {rpc}: no contract at {ALICE.address}")


# Mistakes of other commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab", PAPER, "--backend", "cloud"], "--backend cloud: should be embedded or processes"),
        (["lab", PAPER, "--learners", "3", "--set", "learners=4"], "the same setting; give one of them"),
        (["lab", PAPER, "--learners", "4", "--nodes", "6"], "--nodes 6: should be 1 to 5"),
        (["lab", PAPER, "--nodes", "0"], "--nodes 0: should be 1 to 3"),
        (["lab", PAPER, "--nodes", "2", "--backend", "embedded"], "--nodes needs --backend processes"),
        (["lab", PAPER, "--nodes", "2", "--scenario", "garbage"], "--nodes can't be combined with --scenario"),
        (["lab", PAPER, "--learners", "5", "--scenario", "garbage"], "--learners can't be combined with --scenario"),
        (["export", "--output", "model.h5"], "--output model.h5: should end in .keras"),
        (["reproduce", PAPER, "--seeds", "1,x"], "--seeds 1,x: should be whole numbers"),
        (["reproduce", ROOT / "examples" / "tabular" / "plan.toml"], "plan tabular has its own data and model"),
        (["reproduce", PAPER, "--seeds", "1,2,1"], "--seeds 1,2,1: should name each seed once"),
        (["sweep", "--seeds", "3,3"], "--seeds 3,3: should name each seed once"),
        (["reproduce", PAPER, "--seeds", ""], "--seeds is empty"),
        (["reproduce", PAPER, "--seeds", "²"], "--seeds ²: should be whole numbers"),
        (["deploy", PAPER, "--learner", "1"], "--learner 1: should be nodeId=address"),
        (["deploy", PAPER, "--learner", "x=0x" + "12" * 20], "should be nodeId=address"),
        (["deploy", PAPER, "--learner", "²=0x" + "12" * 20], "should be nodeId=address"),
        (["deploy", PAPER, "--learner", "1=0x" + "zz" * 20], "should be nodeId=address"),
        (["deploy", PAPER, "--learner", f"1={ALICE.address[:-1]}A"], "wrong checksum"),
        (
            ["deploy", PAPER, "--learner", f"1={ALICE.address}", "--learner", f"1={HEADER.address}"],
            "each nodeId may appear only once",
        ),
    ],
)
def test_a_wrong_option_is_one_line(fl_node: FlNode, arguments: list[str], message: str) -> None:
    assert is_one_line(fl_node(*arguments), 2, message)


def test_a_wrong_number_of_learners_is_a_problem_of_the_plan(fl_node: FlNode) -> None:
    ended = fl_node("lab", PAPER, "--learners", "0")
    assert (ended.code, ended.out) == (2, "")
    assert "\n  learners: should be" in ended.err


def test_a_data_set_that_cannot_be_had_is_code_three(fl_node: FlNode) -> None:
    assert is_one_line(fl_node("lab", PAPER, "--data-dir", "nowhere"), 3, "data folder nowhere")
    assert not Path("runs").exists()


def test_a_picture_that_is_none_is_code_three(fl_node: FlNode) -> None:
    Path("digit.png").write_text("junk")
    assert is_one_line(fl_node("predict", "digit.png"), 3, "image digit.png")


def test_a_learner_that_waits_too_long_for_its_chain_is_code_seven(
    fl_node: FlNode, free_port: Callable[[], int]
) -> None:
    fl_node("key", "role.key")
    rpc = f"http://127.0.0.1:{free_port()}"
    ended = fl_node(
        "learner", "--rpc", rpc, "--store", "file:files", "--contract", ALICE.address, "--patience", "0.1"
    )
    assert ended.code == 7
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("fl-node: gave up after 0.1 s: ")


NOBODY = "0x" + "00" * 20


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (ALICE.address, ALICE.address, f"--learner 2={ALICE.address}: learner 1 has this account already"),
        (ALICE.address.lower(), ALICE.address, f"--learner 2={ALICE.address}: learner 1 has this account already"),
        (ALICE.address, HEADER.address, f"--learner 2={HEADER.address}: this is the header's account"),
        (NOBODY, ALICE.address, f"--learner 1={NOBODY}: the zero address is no account"),
    ],
    ids=["twice", "twice in two forms", "header", "zero"],
)
def test_accounts_that_a_contract_refuses_are_refused_before_anything_is_on_the_chain(
    fl_node: FlNode, rpc: str, tmp_path: Path, first: str, second: str, message: str
) -> None:
    (tmp_path / "role.key").write_text(HEADER.key.hex() + "\n")
    (tmp_path / "role.key").chmod(0o600)
    (tmp_path / "tiny.toml").write_text(TINY)
    before = Chain(rpc).block_number()
    options = ["--rpc", rpc, "--store", "file:files", "--key", tmp_path / "role.key"]
    learners = ["--learner", f"1={first}", "--learner", f"2={second}"]
    assert is_one_line(fl_node("deploy", tmp_path / "tiny.toml", *learners, *options), 2, message)
    assert Chain(rpc).block_number() == before
    assert not list(Path().iterdir())


NO_STORES = [
    "nowhere",
    "a-file",
    "file:",
    "file:a-file",
    "file://host/files",
    "http://127.0.0.1:5001",
    "127.0.0.1:5001",
    "/ip4/127.0.0.1",
    "/ip4/127.0.0.1/tcp/5001\r",
    "/ip4/127.0.0.1/tcp/99999",
]


@pytest.mark.parametrize("store", NO_STORES)
def test_a_store_that_is_none_is_refused_before_anything_is_on_the_chain(
    fl_node: FlNode, rpc: str, tmp_path: Path, store: str
) -> None:
    Path("a-file").write_text("")
    (tmp_path / "role.key").write_text(HEADER.key.hex() + "\n")
    (tmp_path / "role.key").chmod(0o600)
    chain = Chain(rpc)
    before = chain.block_number()
    options = ["--rpc", rpc, "--store", store]
    deploy = ["deploy", PAPER, "--learner", f"1={ALICE.address}", "--learner", f"2={POOR.address}"]
    for command in ([*deploy, "--key", tmp_path / "role.key"], ["status", "--contract", ALICE.address]):
        assert is_one_line(fl_node(*command, *options), 2, f"store {store!r} ", "/ip4/127.0.0.1/tcp/5001")
    ended = fl_node("doctor", "--json", *options)
    answers = {answer["what"]: answer for answer in json.loads(ended.out)}
    assert ended.code == 1
    assert (answers["store"]["state"], answers["swarm peers"]["state"]) == ("wrong", "skipped")
    assert chain.block_number() == before
    assert sorted(path.name for path in Path().iterdir()) == ["a-file"]


@pytest.mark.parametrize("rpc", ["127.0.0.1:8545", "/ip4/127.0.0.1/tcp/8545", "http://127.0.0.1:8545\r"])
def test_an_rpc_that_is_none_is_one_line(fl_node: FlNode, rpc: str) -> None:
    fl_node("key", "role.key")
    for command in ("status", "learner"):
        ended = fl_node(command, "--rpc", rpc, "--store", "file:files", "--contract", ALICE.address)
        assert is_one_line(ended, 2, f"RPC {rpc!r}: should be a URL such as http://127.0.0.1:8545")
    assert fl_node("doctor", "--rpc", rpc).code == 1


@pytest.mark.parametrize(
    "contract", ["0x12", "12" * 20, f"{ALICE.address}\r", f" {ALICE.address}", f"{ALICE.address[:-1]}A"]
)
def test_a_role_does_not_wait_for_a_contract_that_is_no_address(
    fl_node: FlNode, free_port: Callable[[], int], contract: str
) -> None:
    fl_node("key", "role.key")
    where = ["--rpc", f"http://127.0.0.1:{free_port()}", "--store", "file:files"]
    ended = fl_node("learner", *where, "--contract", contract)
    assert is_one_line(ended, 2, f"--contract {contract}".replace("\r", "\\r"), "address")


def test_doctor_says_what_is_wrong_and_ends_with_code_one(fl_node: FlNode, rpc: str) -> None:
    ended = fl_node("doctor", "--rpc", rpc, "--store", "file:files")
    assert ended.code == 1
    assert "account: no key file role.key; create one: fl-node key role.key" in ended.out
    answers = json.loads(fl_node("doctor", "--json", "--rpc", rpc, "--store", "file:files").out)
    assert {answer["what"]: answer["state"] for answer in answers}["account"] == "wrong"


def test_a_run_of_nodes_that_are_up_is_reached_by_its_folder(fl_node: FlNode, rpc: str, tmp_path: Path) -> None:
    from fl_node.artifacts.folder_store import FolderStore

    (tmp_path / "plan.json").write_bytes(plans.load(Path(PAPER)).to_bytes())
    store = FolderStore(tmp_path / "store")
    chain = Chain(rpc, HEADER)
    plan = store.add(tmp_path / "plan.json")
    contract = chain.contract(str(chain.deploy(plan, OPEN).contract))
    nodes = {"header": Node(HEADER.address, rpc, store.address)}
    Run("demo", "embedded", plan, contract.address, chain.chain_id(), chain.genesis(), nodes).save(tmp_path)
    ended = fl_node("status", tmp_path)
    assert ended.code == 0, ended.err
    assert "paper, in round 0 of 5" in ended.out
    assert contract.address in ended.out
    content = json.loads(fl_node("status", "--json", tmp_path).out)
    assert content["plan_cid"] == plan
    assert (content["round"], content["ended"]) == (0, False)


def test_a_learner_takes_part_in_attacks_only_where_its_operator_allows_them(
    fl_node: FlNode, rpc: str, tmp_path: Path
) -> None:
    from fl_node.artifacts.folder_store import FolderStore
    from fl_node.roles.attack import check_allowed

    attacked = ["rounds=1", "attack={learners=[1], update='copy'}", "data.name=digits", "data.train=0", "data.test=0"]
    (tmp_path / "plan.json").write_bytes(plans.load(Path(PAPER), attacked).to_bytes())
    store = FolderStore(tmp_path / "store")
    contract = str(Chain(rpc, HEADER).deploy(store.add(tmp_path / "plan.json"), OPEN).contract)
    create_key(tmp_path / "role.key")
    command = ["learner", "--contract", contract, "--rpc", rpc, "--store", store.address, "--patience", "0.1"]
    command += ["--key", str(tmp_path / "role.key")]
    ended = fl_node(*command)
    assert ended.code == 2
    failed = json.loads(ended.err.splitlines()[-1])
    assert (failed["event"], failed["error"], failed["exit_code"]) == ("role_failed", "ConfigError", 2)
    assert "--allow-attacks" in failed["detail"]
    check_allowed(plans.load(Path(PAPER), attacked), allowed=True)


# As a program


def test_an_account_that_owns_little_is_given_ether_once(fl_node: FlNode, rpc: str, tmp_path: Path) -> None:
    (tmp_path / "role.key").write_text(HEADER.key.hex() + "\n")
    (tmp_path / "role.key").chmod(0o600)
    poor = create_key(tmp_path / "new.key")
    options = ("--rpc", rpc, "--key", tmp_path / "role.key", "--ether", 3)
    assert fl_node("fund", poor, *options).out == f"{poor} got 3 ether\n"
    assert fl_node("fund", poor, *options).out == f"{poor} has enough\n"
    assert Chain(rpc).balance(poor) == 3 * 10**18
    assert fl_node("fund", poor, "--always", *options).code == 0
    assert Chain(rpc).balance(poor) == 6 * 10**18
    told = json.loads(fl_node("fund", poor, HEADER.address, ALICE.address, "--json", *options).out)
    assert told == [{"account": address, "given": 0.0} for address in (poor, HEADER.address, ALICE.address)]
    newest = create_key(tmp_path / "newest.key")
    told = json.loads(fl_node("fund", newest.lower(), newest, "--json", *options).out)
    assert told == [{"account": newest, "given": 3.0}, {"account": newest, "given": 0.0}]
    assert Chain(rpc).balance(newest) == 3 * 10**18
    assert fl_node("fund", HEADER.address, *options).out == f"{HEADER.address} is the sender\n"
    assert is_one_line(fl_node("fund", poor, *options[:4], "--ether", "inf"), 2, "--ether inf: should be a number")
    assert is_one_line(fl_node("fund", f"{ALICE.address[:-1]}A", *options), 2, "wrong checksum")
    assert is_one_line(fl_node("fund", "0x12", *options), 2, "ADDRESS 0x12: should be an address")
    assert is_one_line(fl_node("fund", poor, "--always", *options[:4], "--ether", 10**9), 4, "too little to send")


@pytest.mark.parametrize(
    ("ether", "message"),
    [
        ("1e300", "should be from 1e-18 (1 wei) to 1e+59 ether"),
        ("1e-30", "should be from 1e-18"),
        ("0", "should be from 1e-18"),
        ("-1", "should be from 1e-18"),
        ("1e-400", "should be from 1e-18"),
        ("1.0000000000000000001", "should have at most 18 digits"),
        (f"1.{'0' * 99}1", "should have at most 18 digits"),
        ("nan", "should be a number of ether"),
        ("1e999", "should be a number of ether"),
        ("1_000", "should be a number of ether"),
        ("١", "should be a number of ether"),
    ],
)
def test_an_amount_that_can_not_be_sent_is_one_line(fl_node: FlNode, ether: str, message: str) -> None:
    assert is_one_line(fl_node("fund", ALICE.address, f"--ether={ether}"), 2, f"--ether {ether}: {message}")


@pytest.mark.parametrize(
    ("ether", "wei"), [("1e-18", 1), ("0.123456789012345678", 123456789012345678), ("9007199254740993", 0)]
)
def test_an_amount_is_sent_to_the_wei(fl_node: FlNode, rpc: str, tmp_path: Path, ether: str, wei: int) -> None:
    (tmp_path / "role.key").write_text(HEADER.key.hex() + "\n")
    (tmp_path / "role.key").chmod(0o600)
    poor = create_key(tmp_path / "new.key")
    ended = fl_node("fund", poor, "--always", "--rpc", rpc, "--key", tmp_path / "role.key", "--ether", ether)
    if wei:
        assert ended.out == f"{poor} got {Decimal(ether):f} ether\n"
    else:
        assert is_one_line(ended, 4, f"too little to send {ether}{'0' * 18}")
    assert Chain(rpc).balance(poor) == wei


def test_accounts_get_ether_only_if_there_is_enough_for_all(fl_node: FlNode, rpc: str, tmp_path: Path) -> None:
    (tmp_path / "role.key").write_text(HEADER.key.hex() + "\n")
    (tmp_path / "role.key").chmod(0o600)
    first, second = (create_key(tmp_path / name) for name in ("first.key", "second.key"))
    ether = Chain(rpc).balance(HEADER.address) // 10**18 - 10
    options = ("--rpc", rpc, "--key", tmp_path / "role.key", "--ether", ether)
    assert is_one_line(fl_node("fund", first, second, "--json", *options), 4, f"too little to send {2 * ether}")
    assert Chain(rpc).balance(first) == 0


def test_what_was_given_before_an_error_is_told(
    fl_node: FlNode, rpc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "role.key").write_text(HEADER.key.hex() + "\n")
    (tmp_path / "role.key").chmod(0o600)
    first, second = (create_key(tmp_path / name) for name in ("first.key", "second.key"))
    transfer = Chain.transfer

    def fail_for_second(chain: Chain, address: str, wei: int) -> object:
        if address == second:
            raise ChainError("the second fails")
        return transfer(chain, address, wei)

    monkeypatch.setattr(Chain, "transfer", fail_for_second)
    options = ("--rpc", rpc, "--key", tmp_path / "role.key", "--ether", 3)
    ended = fl_node("fund", first, second, "--json", *options)
    assert (ended.code, json.loads(ended.out)) == (4, [{"account": first, "given": 3.0}])
    assert ended.err == "fl-node: the second fails\n"


def test_a_published_plan_is_a_plan_too(fl_node: FlNode, tmp_path: Path) -> None:
    published = fl_node("plan", "check", "--json", PAPER).out.strip()
    path = tmp_path / "plan.json"
    path.write_text(published)
    assert fl_node("plan", "check", "--json", path).out.strip() == published
    path.write_text("[1]")
    assert is_one_line(fl_node("plan", "check", path), 2, "should be a table of settings")
    path.write_text("{")
    assert is_one_line(fl_node("plan", "check", path), 2, "is not JSON")


UNEVEN = """
name = "some"
learners = 3
data = { name = "digits", partition = "labels", labels_each = 1 }
"""


def test_a_plan_gives_the_same_picture_of_its_shards_each_time(fl_node: FlNode, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(UNEVEN)
    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for path in pictures:
        ended = fl_node("plan", "shards", tmp_path / "plan.toml", "--picture", path)
        assert ended.code == 0
        assert "images by label" in ended.out
    first, second = (path.read_text() for path in pictures)
    assert first == second
    assert "some: images of digits by label, partition labels" in first


def test_an_output_that_can_not_be_written_is_one_line_before_the_work(fl_node: FlNode, tmp_path: Path) -> None:
    (tmp_path / "model.keras").mkdir()
    (tmp_path / "file").write_text("")
    for arguments in (
        ["export", "runs/none", "-o"],
        ["baseline", PAPER, "-o"],
    ):
        for output in (tmp_path / "model.keras", tmp_path / "file" / "model.keras"):
            assert is_one_line(fl_node(*arguments, str(output)), 2, str(tmp_path)), arguments


def test_a_picture_that_can_not_be_written_is_named(fl_node: FlNode, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(UNEVEN)
    path = tmp_path / "plan.toml" / "picture.svg"
    ended = fl_node("plan", "shards", tmp_path / "plan.toml", "--picture", path)
    assert is_one_line(ended, 2, f"--picture {path}: folder {path.parent}: it exists and is not a folder")


@pytest.mark.parametrize("end", ["\r", "\x1b[2K", "\a", "\udcff"])
def test_what_can_not_be_seen_in_a_value_is_visible_in_the_error(
    fl_node: FlNode, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("FL_NODE_DATA_DIR", f"/nowhere{end}")
    ended = fl_node("data")
    assert is_one_line(ended, 3, "/nowhere" + repr(end)[1:-1])
    assert end not in ended.err
    assert is_one_line(fl_node("plan", "check", f"plan{end}.toml"), 2, f"plan{repr(end)[1:-1]}.toml")
    assert is_one_line(fl_node("plan", "check", PAPER, "--set", f"rounds{end}"), 2, f"rounds{repr(end)[1:-1]}")


def test_an_end_of_line_of_another_system_does_not_change_a_setting(fl_node: FlNode) -> None:
    checked = fl_node("plan", "check", PAPER, "--json", "--set", "rounds=3\r", "--set", "name=mine \r\n")
    assert (json.loads(checked.out)["rounds"], json.loads(checked.out)["name"]) == (3, "mine")


# Without data, without space


@pytest.mark.parametrize(
    "command", [["plan", "new", "mine.toml"], ["export", "--contract", ALICE.address], ["lab", "mine.toml"]]
)
def test_a_working_directory_that_is_gone_is_named(fl_node: FlNode, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "here" / "gone").mkdir()
    os.chdir(tmp_path / "here" / "gone")
    (tmp_path / "here" / "gone").rmdir()
    assert is_one_line(fl_node(*command), 2, "plan mine.toml" if command[0] == "lab" else "the working directory")


@pytest.mark.parametrize("command", ["sweep", "reproduce", "lab", "baseline"])
def test_without_the_data_set_nothing_is_begun(fl_node: FlNode, tmp_path: Path, command: str) -> None:
    rules = ["--rules", "fedavg"] if command == "sweep" else []
    ended = fl_node(command, PAPER, "--data-dir", tmp_path / "nowhere", *rules)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.splitlines()[-1].startswith(f"fl-node: data folder {tmp_path / 'nowhere'}: ")
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["baseline", PAPER, "--output"],
        ["report", "nowhere", "--output"],
        ["binaries", "--output"],
        ["plan", "shards", PAPER, "--picture"],
        ["sweep", PAPER, "--rules", "fedavg", "--results"],
        ["reproduce", PAPER, "--results"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_place_that_cannot_be_written_is_found_before_the_work(fl_node: FlNode, arguments: list[str]) -> None:
    option = arguments[-1]
    assert is_one_line(fl_node(*arguments, "/proc/nowhere/result"), 2, f"{option} /proc/nowhere/result")


def test_a_baseline_that_cannot_be_written_is_printed_and_kept(
    fl_node: FlNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(keras_trainer, "KerasTrainer", lambda *_: None)
    monkeypatch.setattr(baseline, "run", lambda *_: baseline.Baseline([0.5], 1.0))
    (tmp_path / "tiny.toml").write_text(TINY)
    ended = fl_node("baseline", tmp_path / "tiny.toml", "--epochs", "1", "--output", "/dev/full", "--json")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("fl-node: /dev/full: No space left on device; the result is in ")
    kept = Path(ended.err.strip().rpartition(" ")[2])
    assert json.loads(kept.read_text()) == json.loads(ended.out)


def test_a_baseline_may_have_the_longest_name(
    fl_node: FlNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_trainer, "KerasTrainer", lambda *_: None)
    monkeypatch.setattr(baseline, "run", lambda *_: baseline.Baseline([0.5], 1.0))
    (tmp_path / "tiny.toml").write_text(TINY)
    output = Path("b" * 250 + ".json")
    ended = fl_node("baseline", tmp_path / "tiny.toml", "--epochs", "1", "--output", output, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(output.read_text()) == json.loads(ended.out)
    assert list(Path().iterdir()) == [output]
    ended = fl_node("baseline", tmp_path / "tiny.toml", "--output", f"b{output}")
    assert is_one_line(ended, 2, f"--output b{output}: File name too long")


@pytest.mark.parametrize(
    "command",
    [
        ["export", "nosuch", "-o", "new/sub/m.keras"],
        ["baseline", PAPER, "-o", "new/x.json", "--data-dir", "/nosuch"],
        ["plan", "shards", PAPER, "--picture", "new/x.svg", "--data-dir", "/nosuch"],
        ["report", "nosuch", "-o", "new/sub"],
        ["attack", "membership", "nosuch", "-o", "new/sub"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_command_that_fails_leaves_no_new_folder(fl_node: FlNode, command: list[str]) -> None:
    assert fl_node(*command).code in (2, 3)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
def test_a_model_replaces_no_pipe_and_no_device(fl_node: FlNode, kind: str) -> None:
    os.mkfifo("pipe")
    output = Path("pipe.keras")
    output.symlink_to(os.devnull if kind == "device" else "pipe")
    if kind == "pipe":
        output.unlink()
        os.mkfifo(output)
    before = os.lstat(output).st_mode
    ended = fl_node("export", "nosuch", "-o", output)
    assert is_one_line(ended, 2, "--output pipe.keras: it exists and is not a regular file")
    assert os.lstat(output).st_mode == before


@pytest.mark.parametrize("place", ["", ".", "..", "../x", "nodes", "logs/x", "report.html", "/dev/null", "/proc/x/y"])
def test_where_event_files_can_not_go_is_said_before_the_run(fl_node: FlNode, tmp_path: Path, place: str) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    assert is_one_line(fl_node("lab", tmp_path / "tiny.toml", "--tensorboard", place), 2, f"--tensorboard {place}")
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    "command", [["lab"], ["baseline"], ["plan", "shards"], ["sweep"], ["deploy", "--learner", f"1={ALICE.address}"]]
)
def test_a_plan_may_be_a_pipe_which_can_be_read_once(fl_node: FlNode, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.write(writer, b'name = "piped"\nlearners = 7\n')
    os.close(writer)
    try:
        ended = fl_node(*command, f"/dev/fd/{reader}", "--set", "learners = 0")
    finally:
        os.close(reader)
    assert ended.code == 2
    assert "learners" in ended.err
    assert "missing" not in ended.err


# Sweeps on several machines


SWEEP = ("sweep", PAPER, "--rules", "fedavg,median", "--attacks", "sign_flip", "--seeds", "1")
AT = ("--scheduler", "tls://127.0.0.1:8786")


def test_the_runs_of_a_sweep_are_listed_and_nothing_is_run(fl_node: FlNode, tmp_path: Path) -> None:
    ended = fl_node(*SWEEP, "--attackers", "0.5", "--list")
    assert (ended.code, ended.err) == (0, "")
    assert len(ended.out.splitlines()) == 4
    content = json.loads(fl_node(*SWEEP, "--attackers", "0.5", "--list", "--json").out)
    assert [run["run"] for run in content["runs"]] == ended.out.splitlines()
    assert content["plan"]["name"] == "paper"
    assert not (tmp_path / "here" / "results").exists()


def test_a_share_that_is_nobody_is_noted(fl_node: FlNode) -> None:
    ended = fl_node(*SWEEP, "--attackers", "0,0.2", "--list")
    assert (ended.code, len(ended.out.splitlines())) == (0, 2)
    assert ended.err == "note: --attackers 0.2 of 2 learners means no attacker\n"
    assert fl_node("sweep", PAPER, "--rules", "fedavg", "--attacks", "", "--list").err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SWEEP, "--tls", "keys"], "--tls needs --scheduler"),
        ([*SWEEP, *AT], "--scheduler needs --tls"),
        ([*SWEEP, *AT, "--tls", "keys", "--backend", "processes"], "--backend processes"),
        ([*SWEEP, *AT, "--tls", "keys", "--jobs", "2"], "--jobs"),
        ([*SWEEP, *AT, "--tls", "keys"], "--tls keys: ca.pem: No such file"),
        ([*SWEEP, "--scheduler", "tcp://127.0.0.1:8786", "--tls", "keys"], "--scheduler tcp://127.0.0.1:8786"),
        ([*SWEEP, "--scheduler", "tls://127.0.0.1", "--tls", "keys"], "--scheduler tls://127.0.0.1"),
        ([*SWEEP, "--scheduler", "tls://127.0.0.1:65536", "--tls", "keys"], "--scheduler tls://127.0.0.1:65536"),
        (["sweep-scheduler", "--listen", "8786", "--tls", "keys"], "--listen 8786"),
        (["sweep-scheduler", "--listen", "127.0.0.1:8786", "--tls", "keys"], "--tls keys: ca.pem: No such file"),
        (["sweep-worker", "nowhere", "--listen", "127.0.0.1:8788", "--tls", "keys"], "SCHEDULER nowhere"),
        (["sweep-keys", "keys", "../header"], "'../header'"),
        ([*SWEEP[:-1], "9" * 5000], "--seeds 999"),
        ([*SWEEP[:-1], "\u0661"], "--seeds"),
        (["sweep", PAPER, "--rules", ",", "--list"], "--rules ,"),
        (["deploy", PAPER, "--learner", "9" * 5000 + "=0x" + "0" * 40], "--learner 999"),
    ],
)
def test_options_are_checked_first(fl_node: FlNode, arguments: list[str], message: str) -> None:
    ended = fl_node(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].startswith(f"fl-node: {message}")
    assert "Traceback" not in ended.err


# Help


def help_texts(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of a command's help and of all commands below it, each with the command's name."""
    for text in (command.help, *(getattr(parameter, "help", None) for parameter in command.params)):
        yield name, text or ""
    for below, one in getattr(command, "commands", {}).items():
        yield from help_texts(one, f"{name} {below}")


def test_no_word_of_a_help_text_is_taken_for_markup() -> None:
    for name, text in help_texts(app.command_line(), "fl-node"):
        plain = re.sub(r"\[/?bold\]", "", text)
        assert Text.from_markup(plain).plain == plain, name


def test_an_argument_that_may_be_left_out_is_in_one_pair_of_brackets(fl_node: FlNode) -> None:
    assert "[OPTIONS] [RUN]" in fl_node("audit", "--help").out
    assert "[OPTIONS] [PLAN]" in fl_node("sweep", "--help").out


# Times


@pytest.mark.parametrize("patience", ["nan", "-3"])
def test_a_patience_that_is_no_time_is_refused(fl_node: FlNode, patience: str) -> None:
    ended = fl_node("header", "--contract", "0x" + "0" * 40, "--patience", patience)
    assert ended.code == 2
    assert "--patience" in ended.err
