"""A member of a run that writes what no role would write does not stop the others, and the audit judges the run."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rlp
from eth_utils.crypto import keccak

from fl_node import events
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import GlobalMeta, Input, LocalMeta, Rejection
from fl_node.audit.auditor import audit
from fl_node.chain import deployment
from fl_node.chain.abi import artifact
from fl_node.chain.client import Chain
from fl_node.chain.keys import load_key
from fl_node.data.partition import shard_size
from fl_node.errors import ConfigError, PlanError, Reverted, WeightsError
from fl_node.nodes import dev_chain
from fl_node.plan.schema import Plan
from fl_node.plan.sections import PrivacyPlan
from fl_node.protocol import journal, masked, openings
from fl_node.protocol.journal import FIRST, Entry
from fl_node.protocol.names import HEADER, MISSING
from fl_node.protocol.terms import terms_of
from fl_node.protocol.verification.asynchronous import tolerance
from fl_node.roles import asynchronous as asynchronous_role
from fl_node.roles import masking, policy
from tests.helpers import constructors
from tests.helpers.masked import FIXED, FOUR, plan_of, until
from tests.helpers.network import Network
from tests.helpers.runs import PATIENCE, Run, World, plan
from tests.helpers.stub import StubTrainer
from tests.integration.test_asynchronous_trust import aggregated, asynchronous

Start = Callable[[Plan], Network]


def test_fedasync_weights_of_two_updates_are_a_finding_and_rejected(world: World) -> None:
    run = world.deploy(asynchronous(aggregation={"rule": "fedasync"}))
    files, start = run.publish_locals(), run.current()
    inputs = tuple(Input(f.local_meta.node_id, f.cid, f.local_meta.samples, 0.3, 0) for f in files[:2])
    meta = GlobalMeta(
        plan=run.plan_cid, round=1, parent=start.cid, rule="fedasync", inputs=inputs, taken=((1, 1), (2, 1))
    )
    run.publish_global(model_file.write(run.path(), meta, start.tensors()))
    assert "2 updates, the plan requires 1" in [finding.message for finding in run.audit().findings]
    with run.learner(3) as learner:
        assert learner.wait_for(events.GlobalWeightsRejected, round=1)


def test_false_scores_of_a_masked_file_depose_no_header(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = masking.masked_file

    def lying(path: Path, plan: Plan, plan_cid: str, *, node_id: int, **more: Any) -> model_file.WeightsFile:
        file = honest(path, plan, plan_cid, node_id=node_id, **more)
        if node_id != 3:
            return file
        tensors = file.tensors()
        tensors[model_file.SCORES] = tensors[model_file.SCORES] + np.array([0, 1 << 50], np.uint64)
        return model_file.write(path, file.meta, tensors)

    monkeypatch.setattr(masking, "masked_file", lying)
    network = start(plan_of(aggregation={**FIXED, "modulus_bits": 64}))
    until(network, network.nodes, lambda: network.as_node(HEADER).state().round == 2)
    assert "GlobalWeightRejected" not in {entry.name for entry in network.log()}
    current = str(network.as_node(HEADER).state().global_cid)
    scores = model_file.read(network.folder / "store" / current).global_meta.scores
    assert scores is not None
    assert scores[1] == masked.LARGEST_LOSS


@contextlib.contextmanager
def served(chain: dev_chain.EmbeddedChain) -> Iterator[str]:
    """Serve a chain in this process; give its URL."""
    server = dev_chain._Server(0, chain)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


def test_a_contract_in_the_genesis_was_created_by_no_transaction(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = plan(learners=3)
    path = tmp_path / "plan.json"
    path.write_bytes(three.to_bytes())
    plan_cid = FolderStore(tmp_path / "files").add(path)
    key, deployer = world.keys[HEADER], world.accounts[HEADER]
    account = bytes.fromhex(deployer[2:])
    code = constructors.genuine_code(world.chain(HEADER), plan_cid, terms_of(three))
    address = keccak(rlp.encode([account, 0]))[12:]
    genuine = dev_chain._Chain.from_genesis

    def forged(db: Any, params: Any, state: dict[bytes, Any]) -> Any:
        # With a vote against the header.
        storage = {constructors.STATE: int.from_bytes(account, "big") | constructors.VOTES, 2: 1}
        return genuine(db, params, state | {address: {"balance": 0, "nonce": 1, "code": code, "storage": storage}})

    monkeypatch.setattr(dev_chain._Chain, "from_genesis", forged)
    data = artifact()["bytecode"].removeprefix("0x") + cid.to_digest(plan_cid).hex() + "00" * 160
    # A call of its own account; a creation, which fails because the address has code.
    for receiver in (deployer, None):
        folder = tmp_path / f"chain-{receiver}"
        with served(dev_chain.EmbeddedChain(folder, [deployer])) as rpc:
            chain = Chain(rpc, load_key(key))
            with contextlib.suppress(Reverted):
                chain.send(receiver, "0x" + data, 3_000_000, 0)
            contract = chain.contract(chain.web3.to_checksum_address(address))
            assert contract.has_known_code()
            message = f"transaction 0 of {deployer} did not create it"
            assert deployment.problem_of(contract) == ("deployment", message)
            with pytest.raises(ConfigError, match="did not create it"):
                policy.check_contract(contract, three)


def write_journal(run: Run, entries: Sequence[dict[str, Any]]) -> None:
    """Write the journal of learner 1, signed with its key, with these fields in its entries."""
    account, folder = load_key(run.world.keys["learner-1"]), run.folder / "learner-1" / "role"
    folder.mkdir(parents=True, exist_ok=True)
    head, lines = FIRST, []
    for number, fields in enumerate(entries):
        common = {
            "number": number,
            "previous": head,
            "contract": run.address,
            "role": "learner",
            "account": account.address,
            "kind": "opened",
            "round": 0,
            "cid": "x",
            "block": "0x",
            "height": 1,
            "sealed": 0,
            "seen": 1.0,
            "before": None,
            "top": 0,
        }
        lines.append(journal.signed(Entry(**(common | fields)), account))
        head = journal.digest(lines[-1])
    (folder / journal.FILE).write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("field", ["height", "round", "sealed", "top"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_journal_with_an_impossible_number_is_damaged(world: World, field: str, value: int) -> None:
    run = world.deploy(plan())
    run.close_round()
    write_journal(run, [{field: value}])
    (path,) = run.journals()
    assert "wrong type" in journal.read(path).problem
    assert run.audit().passed


def test_of_a_journal_with_many_unknown_weights_the_first_are_reported(world: World) -> None:
    run = world.deploy(plan())
    run.close_round()
    write_journal(run, [{"cid": f"unknown-{number}", "round": number} for number in range(150)])
    findings = [finding.message for finding in run.audit().findings]
    assert len(findings) == 101
    assert findings[-1] == "recorded 50 more global files that the chain does not have"


@pytest.mark.parametrize("field", ["noise_multiplier", "epsilon_max", "epsilon", "delta"])
def test_a_plan_with_a_tiny_privacy_setting_is_no_plan(field: str) -> None:
    with pytest.raises((PlanError, ValueError), match=field):
        plan(privacy=PrivacyPlan.model_validate({"dp": {"noise_multiplier": 1.0} | {field: 1e-200}}))


def test_many_rejections_with_long_reasons_fit_into_one_file(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous_role, "MAX_REJECTIONS", 5)
    settings = {
        "mode": "async",
        "learners": 4,
        "rounds": 2,
        "aggregation": {"rule": "fedbuff", "buffer": 2},
        "data": {"name": "digits", "train": 1000, "test": 10},
    }
    chosen = Plan.model_validate(plan().model_dump() | settings)
    network = start(chosen)
    header = network.as_node(HEADER)
    until(network, (HEADER,), lambda: header.state().started)
    for node_id in (1, 2):
        contract = network.as_node(f"learner-{node_id}")
        nonce = contract.chain.nonce()
        for number in range(5):
            wrong = {"dtype": "\U0001f642" * 300, "shape": [], "data_offsets": [0, 4], "n": [node_id, number]}
            text = json.dumps({"a": wrong}, ensure_ascii=False).encode()
            path = network.folder / "wrong"
            path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
            contract.set_local_weight(node_id, network.store.add(path), nonce + number)
    parent = model_file.read(network.folder / "store" / str(header.state().global_cid))
    for node_id in (3, 4):
        meta = LocalMeta(
            plan=header.plan(),
            node_id=node_id,
            round=0,
            parent=parent.cid,
            samples=shard_size(chosen, node_id),
            accuracy=0.5,
            loss=1.0,
        )
        tensors = {name: tensor + 1 for name, tensor in parent.tensors().items()}
        file = model_file.write(network.folder / "good", meta, tensors)
        contract = network.as_node(f"learner-{node_id}")
        contract.set_local_weight(node_id, network.store.add(file.path), contract.chain.nonce())
    until(network, (HEADER,), lambda: header.state().round == 1)
    meta = model_file.read(network.folder / "store" / str(header.state().global_cid)).global_meta
    assert [one.node_id for one in meta.inputs] == [3, 4]
    assert len(meta.refused) == 5
    assert all(one.reason.isascii() and len(one.reason) <= 200 for one in meta.refused)
    folder = network.folder / "audit"
    folder.mkdir()
    assert audit(header, network.store, folder, StubTrainer).passed


def play(world: World, *, missing: bool, **more: Any) -> Run:
    """Play three rounds that each end with two of three updates at once."""
    run = world.deploy(asynchronous(rounds=3, **more))
    for number in range(3):
        files = [run.local(node_id) for node_id in (1, 2, 3)]
        for file in files if missing else files[:1]:
            run.publish_local(file.local_meta.node_id, file)
        used, refused = (files[:2], (Rejection(3, files[2].cid, MISSING),)) if missing else (files[:1], ())
        file = aggregated(run, used, refused)
        taken = dict.fromkeys([f.local_meta.node_id for f in used] + [r.node_id for r in refused], number + 1)
        meta = replace(file.global_meta, taken=tuple(sorted(taken.items())))
        run.publish_global(model_file.write(run.path(), meta, file.tensors()))
    return run


def test_with_the_usual_timeout_a_file_that_is_called_missing_at_once_is_found(world: World) -> None:
    assert "refused" in {finding.field for finding in play(world, missing=True, fetch_timeout=30.0).audit().findings}


def test_a_round_that_ends_at_once_is_found_or_noted(world: World) -> None:
    found = play(world, missing=False, round_timeout=30.0).audit()
    assert {(finding.field, finding.message) for finding in found.findings} == {
        ("inputs", "1 update, the plan requires 2")
    }
    short = play(world, missing=False, round_timeout=8.0).audit()
    assert short.passed
    assert [note for note in short.notes if "round_timeout is 8 s" in note]
    assert [tolerance(timeout) for timeout in (5, 20, 30, 60, 600)] == [10, 10, 15, 30, 30]


def test_an_opening_for_more_members_than_a_run_can_have_is_none() -> None:
    plan_cid = cid.of_bytes(b"plan")
    opening = openings.Opening(plan_cid, 1, 0, plan_cid, tuple(range(1, openings.MAX_MEMBERS + 1)), {})
    assert openings.parse(opening.to_bytes()) == opening
    more = replace(opening, members=tuple(range(1, openings.MAX_MEMBERS + 2)))
    with pytest.raises(WeightsError, match="no opening"):
        openings.parse(more.to_bytes())


def test_a_note_of_an_audit_is_short(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = masking.open_shares

    def lying(plan: Plan, plan_cid: str, node_id: int, *more: Any) -> Any:
        opening, faults = honest(plan, plan_cid, node_id, *more)
        members = tuple(range(10**8, 10**8 + 2 * openings.MAX_MEMBERS, 2))
        return (replace(opening, members=members) if node_id == 4 else opening), faults

    monkeypatch.setattr(masking, "open_shares", lying)
    network = start(FOUR)
    until(network, network.nodes, lambda: network.as_node(HEADER).state().round == 1)
    folder = network.folder / "audit"
    folder.mkdir()
    notes = audit(network.as_node(HEADER), network.store, folder, StubTrainer).notes
    assert notes
    assert max(map(len, notes)) <= 501


@pytest.mark.parametrize("code", ["00", "60006000fd", "fe"])
def test_a_contract_that_answers_nothing_is_a_finding(world: World, code: str) -> None:
    run, chain = world.deploy(plan()), world.chain(HEADER)
    address = constructors.deploy(chain, constructors.returning(bytes.fromhex(code)))
    (finding,) = run.audit(chain.contract(address)).findings
    assert (finding.field, finding.message) == ("contract", "its code differs from FederatedLearning.sol")
