"""Compatibility: plans, model files and runs written by earlier versions stay readable.

A run is audited by the version whose contract it is on: another contract has other rules.

``tests/compatibility/VERSION`` is the folder of a run on the embedded chain, as that version wrote it, with the plan
and the module it was started from. A new version adds a folder and leaves those of the others as they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fl_node.artifacts import cid, model_file
from fl_node.audit import auditor
from fl_node.data import loading
from fl_node.errors import WeightsError
from fl_node.lab import run_folder
from fl_node.models import ensemble
from fl_node.plan import loading as plans
from fl_node.plan.schema import Plan
from tests.helpers.checkout import ROOT

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


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old run's folder."""
    copy = tmp_path / "old"
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
    for path in sorted((old / "nodes" / "files").iterdir()):
        try:
            file = model_file.read(path)
        except WeightsError:
            assert plans.from_bytes(path.read_bytes()).to_bytes() == path.read_bytes()
            kinds.add(Plan)
        else:
            kinds.add(type(file.meta))
            again = model_file.write(tmp_path / "again", file.meta, file.tensors())
            assert again.cid == file.cid == path.name
    assert kinds == {Plan, model_file.LocalMeta, model_file.GlobalMeta}


def test_an_audit_of_a_run_on_another_versions_contract_says_so(old: Path, tmp_path: Path) -> None:
    # The rules of that contract are not those that this version's audit goes by.
    with run_folder.reach(old, print) as (contract, store):
        found = auditor.audit(contract, store, tmp_path, lambda plan: ensemble.trainer_for(plan, modules=old))
    assert [(finding.node, finding.field, finding.message) for finding in found.findings] == [
        ("header", "contract", "its code differs from FederatedLearning.sol")
    ]


def test_the_files_of_an_old_run_are_those_that_its_contract_names(old: Path) -> None:
    with run_folder.reach(old, print) as (contract, _):
        assert contract.address == json.loads((old / "run.json").read_text())["contract"]
        final = contract.global_weight_at(2)
        assert final == "QmZ4ADAsDHu5mQ8ivQBq9zEfCwZ19DEVngCbKu9E8HheWz"
        assert contract.plan() == run_folder.load(old).plan
    assert model_file.read(old / "nodes" / "files" / final).global_meta.round == 2
