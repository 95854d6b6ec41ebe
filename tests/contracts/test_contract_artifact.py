"""The committed artifact is what the source compiles to, and what the testbed's chain can run."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from deployment import ARTIFACT

CONTRACTS = Path(__file__).parents[2] / "contracts"
NODE = shutil.which("node")

needs_compiler = pytest.mark.skipif(
    NODE is None or not (CONTRACTS / "node_modules/solc").is_dir(),
    reason="the compiler is not installed: needs Node.js and `npm ci --prefix contracts`",
)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A copy of contracts/ in another folder."""
    for name in ("FederatedLearning.sol", "FederatedLearning.json", "compile.mjs", "package.json"):
        shutil.copy(CONTRACTS / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(CONTRACTS / "node_modules", target_is_directory=True)
    return tmp_path


def run_compiler(contracts: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(NODE), "compile.mjs", *args], cwd=contracts, capture_output=True, text=True, timeout=600
    )


@needs_compiler
def test_the_artifact_is_what_the_source_compiles_to() -> None:
    done = run_compiler(CONTRACTS, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_compiler
def test_the_artifact_does_not_depend_on_the_folder_or_on_comments_in_its_code(elsewhere: Path) -> None:
    source = elsewhere / "FederatedLearning.sol"
    source.write_text(source.read_text().replace("pragma solidity", "// a comment\npragma solidity"))
    artifact = elsewhere / "FederatedLearning.json"
    artifact.unlink()
    assert run_compiler(elsewhere).returncode == 0
    assert artifact.read_bytes() == (CONTRACTS / "FederatedLearning.json").read_bytes()


def _no_artifact(folder: Path) -> None:
    (folder / "FederatedLearning.json").unlink()


def _other_source(folder: Path) -> None:
    source = folder / "FederatedLearning.sol"
    source.write_text(source.read_text().replace("nodeId == 0", "nodeId == 1"))


def _other_documentation(folder: Path) -> None:
    source = folder / "FederatedLearning.sol"
    source.write_text(source.read_text().replace("@notice Starts a run", "@notice Begins a run"))


def _other_artifact(folder: Path) -> None:
    artifact = folder / "FederatedLearning.json"
    artifact.write_text(artifact.read_text().replace('"0x60', '"0x61'))


@needs_compiler
@pytest.mark.parametrize("change", [_no_artifact, _other_source, _other_documentation, _other_artifact])
def test_an_artifact_that_is_not_fresh_is_told_in_one_line(elsewhere: Path, change: Callable[[Path], None]) -> None:
    change(elsewhere)
    done = run_compiler(elsewhere, "--check")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "run `node contracts/compile.mjs`" in done.stderr


def test_the_compiler_is_the_one_that_package_and_source_name() -> None:
    pinned = json.loads((CONTRACTS / "package.json").read_text())["devDependencies"]["solc"]
    assert ARTIFACT["compiler"]["version"].startswith(f"{pinned}+commit.")
    assert f"\npragma solidity {pinned};\n" in (CONTRACTS / "FederatedLearning.sol").read_text()


def test_the_artifact_is_for_london_the_last_fork_that_clique_seals() -> None:
    assert ARTIFACT["compiler"]["settings"]["evmVersion"] == "london"


def test_every_public_name_is_documented() -> None:
    documented = ARTIFACT["userdoc"]["methods"].keys() | ARTIFACT["devdoc"].get("stateVariables", {}).keys()
    for entry in ARTIFACT["abi"]:
        if entry["type"] == "constructor":
            assert "constructor" in documented
            continue
        signature = f"{entry['name']}({','.join(argument['type'] for argument in entry['inputs'])})"
        where = {"event": "events", "error": "errors"}.get(entry["type"])
        assert signature in (ARTIFACT["userdoc"][where] if where else documented), signature
