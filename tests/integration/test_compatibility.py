"""Compatibility: plans, model files and runs written by earlier versions stay readable, and runs can be audited.

``tests/compatibility/0.1`` is the folder of a run on the embedded chain, as that version wrote it, with the plan and
the module it was started from; those named after a day are by the development version of that day. Of a new contract,
a run is added, and those of the others stay as they are.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.audit import auditor
from fl_node.chain import deployment, earlier
from fl_node.chain.abi import artifact
from fl_node.chain.contract import Contract
from fl_node.data import loading
from fl_node.errors import ConfigError
from fl_node.lab import run_folder
from fl_node.models import ensemble
from fl_node.monitor.observer import Observer
from fl_node.plan import loading as plans
from fl_node.protocol import openings
from fl_node.protocol.global_files import initial_file
from fl_node.protocol.names import HEADER, learner_name
from fl_node.roles import policy
from fl_node.runtime.waiting import wait_until
from tests.helpers import constructors
from tests.helpers.checkout import ROOT
from tests.helpers.runs import PATIENCE, Run, World, plan
from tests.helpers.stub import StubTrainer

RUNS = sorted((ROOT / "tests" / "compatibility").iterdir())
PLANS = {
    "async": "QmPD4F7emRmryv9qhPzFxiieb2DCDmQTTKTsWsBAt3qeYN",
    "demo": "QmYSFnrcorCByRwvmyQy5UtbisW1WZdX57jgvsxjiZszg5",
    "ensemble": "Qme3DwYsdFUrQTVitfNx6EnHUsm7qbzBtSGCJkUctyJwTd",
    "sweep": "QmZyPuJvTb2tjHRTxeMHpkZfHneu3jCjUC81LTyUWMMXV8",
    "paper": "QmUjkPFQrqeRLakWf7C9Gdf4dFgU2MFK5UMtF9vm37K2cs",
    "scenario": "QmUUkyZKQM2NMAguavsr1EtYoTy2xnAj1g89AukYhm3akU",
}
"""The CID of each plan in ``plans/``, as it is published with all defaults filled in."""
FINAL = {
    "0.1": "QmZ4ADAsDHu5mQ8ivQBq9zEfCwZ19DEVngCbKu9E8HheWz",
    "2026-11-27": "QmZ4ADAsDHu5mQ8ivQBq9zEfCwZ19DEVngCbKu9E8HheWz",
    "2026-11-29": "QmXaJ63GTgQzUJPEdh4KJPzCB2ZAySCCNPNSP9qJ1hrq88",
}
"""The CID of each run's last global weights."""
MASKED = "2026-11-29"
"""The run with secure aggregation."""
NOTES = {"0.1": 2, "2026-11-27": 3, "2026-11-29": 0}
"""Number of notes about each run's contract: that it is of an earlier version, and what it allows."""


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old run's folder."""
    copy: Path = tmp_path / request.param.name
    shutil.copytree(request.param, copy)
    return copy


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_published_under_the_same_cid_as_before(name: str) -> None:
    assert cid.of_bytes(plans.load(ROOT / "plans" / f"{name}.toml").to_bytes()) == PLANS[name]


def test_the_plan_file_of_an_old_run_still_gives_the_plan_it_published(old: Path) -> None:
    plan = plans.load(old / "plan.toml")
    complete = loading.complete(plan, loading.load(plan, modules=old))
    assert cid.of_bytes(complete.to_bytes()) == run_folder.load(old).plan


def test_each_file_of_an_old_run_is_read_and_written_again_byte_for_byte(old: Path, tmp_path: Path) -> None:
    kinds = set()
    plan = run_folder.load(old).plan
    for path in sorted((old / "nodes" / "files").iterdir()):
        content = path.read_bytes()
        if path.name == plan:
            assert plans.from_bytes(content).to_bytes() == content
        elif content.startswith(b"{"):
            assert openings.parse(content).to_bytes() == content
        else:
            file = model_file.read(path)
            kinds.add(type(file.meta))
            again = model_file.write(tmp_path / "again", file.meta, file.tensors())
            assert again.cid == file.cid == path.name
    local = model_file.MaskedMeta if old.name == MASKED else model_file.LocalMeta
    assert kinds == {local, model_file.GlobalMeta}


def test_an_old_run_is_recomputed_and_its_contracts_weaknesses_are_named(old: Path, tmp_path: Path) -> None:
    with run_folder.reach(old, print) as (contract, store):
        found = auditor.audit(contract, store, tmp_path, lambda plan: ensemble.trainer_for(plan, modules=old))
    assert found.passed, found.findings
    assert found.rounds == 2
    assert found.weights[2] == FINAL[old.name]
    assert [note.code for note in found.notes].count(auditor.EARLIER_CONTRACT) == NOTES[old.name]


def test_the_live_page_shows_an_old_run(old: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    address = run_folder.load(old).contract
    with (
        run_folder.endpoints(old, print) as endpoints,
        Observer(endpoints, lambda: address, tmp_path / "work") as observer,
    ):
        assert wait_until(lambda: observer.state.run is not None and observer.state.run.ended, PATIENCE), (
            observer.state
        )
        assert observer.state.run is not None
        assert observer.state.run.round == 2


@pytest.fixture(scope="module")
def first_creation(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The creation code of the first contract, from the chain of a run with it."""
    copy = tmp_path_factory.mktemp("first") / "0.1"
    shutil.copytree(ROOT / "tests" / "compatibility" / "0.1", copy)
    with run_folder.reach(copy, print) as (contract, _):
        blocks = contract.chain.blocks(range(4), full=True)
        inputs = [each["input"] for block in blocks.values() for each in block["transactions"] if not each["to"]]
    (created,) = inputs
    return bytes.fromhex(created.removeprefix("0x"))[: earlier.EARLIER[0].creation_size]


class FirstRun(Run):
    """A run with the first contract."""

    def as_node(self, node: str) -> Contract:
        return earlier.reading(super().as_node(node))


@pytest.fixture
def first_run(world: World, first_creation: bytes, tmp_path: Path) -> FirstRun:
    """A run with the first contract, in round 0, for three learners of whom one may be late."""
    three = plan(learners=3, round_timeout=5.0, min_learners=2)
    path = tmp_path / "plan.json"
    path.write_bytes(three.to_bytes())
    plan_cid = FolderStore(tmp_path / "files").add(path)
    header = world.chain("header")
    data = "0x" + (first_creation + cid.to_digest(plan_cid)).hex()
    receipt = header.send(None, data, 3_000_000, header.nonce())
    assert receipt is not None
    run = FirstRun(world, three, str(receipt.contract), tmp_path, StubTrainer(three))
    for node_id in range(1, 4):
        run.register(node_id, learner_name(node_id))
    run.publish_global(initial_file(run.path(), three, plan_cid, run.trainer.initial()))
    return run


def test_a_run_of_the_first_contract_is_read_and_passes(first_run: FirstRun) -> None:
    assert isinstance(first_run.contract, earlier.FirstContract)
    first_run.close_round()
    first_run.close_round()
    found = first_run.audit(first_run.contract)
    assert found.passed, found.findings
    assert sorted(found.weights) == [0, 1, 2]
    assert first_run.contract.header() == first_run.contract.deployer() == first_run.world.accounts[HEADER]


def test_whom_the_first_contract_let_the_header_leave_out_is_noted(first_run: FirstRun) -> None:
    files = first_run.publish_locals()
    first_run.publish_global(first_run.average(files[:2], absent=[3]))
    found = first_run.audit(first_run.contract)
    assert found.passed, found.findings
    (note,) = [note for note in found.notes if note.code == auditor.LEFT_OUT]
    assert note == f"round 0: learner 3 published {files[2].cid}, but the header left it out"


def test_a_publication_that_the_first_contracts_header_used_may_be_replaced_later(first_run: FirstRun) -> None:
    files = first_run.publish_locals()
    first_run.publish_local(3, first_run.local(3, accuracy=0.75))
    first_run.publish_global(first_run.average(files))
    assert first_run.audit(first_run.contract).passed


def test_a_lie_about_the_sum_is_found_with_the_first_contract_too(first_run: FirstRun) -> None:
    files = first_run.publish_locals()
    first_run.publish_global(first_run.average(files, tensors=lambda t: {n: 2 * v for n, v in t.items()}))
    found = first_run.audit(first_run.contract)
    assert {(finding.round, finding.node) for finding in found.findings} == {(1, HEADER)}


def test_a_learner_that_the_first_contracts_header_does_not_even_call_missing_is_found(first_run: FirstRun) -> None:
    files = first_run.publish_locals()
    first_run.publish_global(first_run.average(files[:2]))
    (finding,) = first_run.audit(first_run.contract).findings
    assert (finding.round, finding.node, finding.field) == (1, "learner 3", "inputs")


def test_a_contract_that_only_answers_as_the_first_did_is_not_known(first_run: FirstRun) -> None:
    # The deployed code behind a constructor of somebody else.
    header = first_run.world.chain(HEADER)
    code = bytes(header.web3.eth.get_code(header.web3.to_checksum_address(first_run.address)))
    receipt = header.send(None, constructors.returning(code), 3_000_000, header.nonce())
    assert receipt is not None
    contract = earlier.reading(header.contract(str(receipt.contract)))
    assert isinstance(contract, earlier.FirstContract)
    assert deployment.origin_of(contract).earlier is None
    findings = {finding.field: finding.message for finding in first_run.audit(contract).findings}
    assert findings["contract"] == "its code differs from FederatedLearning.sol"


def test_no_role_works_with_an_earlier_contract(first_run: FirstRun) -> None:
    with pytest.raises(ConfigError, match=r"is refused \(contract\): it is of an earlier version"):
        policy.check_contract(first_run.world.chain(HEADER).contract(first_run.address), first_run.plan)


def test_old_contracts_are_known_when_the_contract_changes() -> None:
    code = bytes.fromhex(artifact()["bytecode"].removeprefix("0x"))
    digest = hashlib.sha256(code).hexdigest()
    assert digest == "aaadf789ed29bc97ba85f701cd0530d7dd44f85ba4986735cf038e015974d086", (
        "the contract changed: append this digest to EARLIER in fl_node/chain/earlier.py, and write the new one here"
    )
    assert earlier.version_of(code) is None
    assert len({version.creation_digest for version in earlier.EARLIER}) == len(earlier.EARLIER)


def test_the_files_of_an_old_run_are_those_that_its_contract_names(old: Path) -> None:
    with run_folder.reach(old, print) as (contract, _):
        assert contract.plan() == run_folder.load(old).plan
        state = contract.state()
        assert state.round == 2
        assert contract.global_weight_at(2) == state.global_cid
    assert model_file.read(old / "nodes" / "files" / str(state.global_cid)).global_meta.round == 2
