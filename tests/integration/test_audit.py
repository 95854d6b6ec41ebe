"""The audit finds every lie: each is really published, by a header or learner that plays false, on a real chain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node.artifacts import cid, model_file
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.model_file import Input, Rejection, Tensors
from fl_node.artifacts.store import Progress, silent
from fl_node.chain.abi import artifact, encoder
from fl_node.chain.client import DEPLOY_GAS
from fl_node.chain.contract import Contract, Terms
from fl_node.chain.keys import load_key
from fl_node.errors import ConfigError, ContractError, StoreUnreachable
from fl_node.plan import loading
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.global_files import initial_file
from fl_node.protocol.history import History
from fl_node.protocol.names import learner_name
from fl_node.protocol.terms import terms_of
from tests.helpers import constructors
from tests.helpers.lies import LIES, NOWHERE, PATIENT, SOME, Place, one_bit, publishes_bad, random_tensors, rewritten
from tests.helpers.runs import Run, World, plan
from tests.helpers.stub import StubTrainer
from tests.helpers.warm import fl_node


def places(run: Run) -> set[Place]:
    audited = run.audit()
    assert audited.passed == (not audited.findings)
    return {(finding.round, finding.node, finding.field) for finding in audited.findings}


# Honest runs


def test_an_honest_run_passes(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=4))
    with ExitStack() as stack:
        header = stack.enter_context(run.header())
        learners = [stack.enter_context(run.learner(n)) for n in (1, 2, 3)]
        for role in (header, *learners):
            role.finish()
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == []
    assert (audited.rounds, audited.files) == (4, 1 + 5 + 4 * 3)
    files = [run.files / name for name in {path.name for path in run.files.iterdir()} - {run.plan_cid}]
    assert audited.bytes == sum(path.stat().st_size for path in files)


def test_an_audit_leaves_no_model_files_behind(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    assert run.audit().passed
    assert not list(run.folder.glob("audit-*/*.safetensors"))


def test_a_run_that_goes_on_passes_so_far(world: World) -> None:
    run = world.deploy(plan(rounds=3))
    run.close_round()
    run.publish_locals(1)
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == ["the run is in progress: 1 of 3 rounds are closed"]


def test_a_run_that_has_not_begun_is_a_note(world: World) -> None:
    audited = founded(world, plan()).audit()
    assert audited.passed, audited.findings
    assert audited.notes == ["the run has not started: no initial weights"]


def test_a_round_that_closes_while_the_audit_reads_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.deploy(plan(rounds=3))
    run.close_round()
    read, closings = history.read, iter([True])

    def read_and_close(contract: Contract) -> History:
        past = read(contract)
        if next(closings, False):
            run.close_round()
        return past

    monkeypatch.setattr(history, "read", read_and_close)
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.rounds == 2


def test_a_round_that_closes_while_the_plan_is_fetched_is_no_finding(world: World) -> None:
    run = world.deploy(plan(rounds=3))
    run.close_round()

    class Slow(FolderStore):
        def fetch(
            self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent
        ) -> None:
            super().fetch(file_cid, path, max_bytes, timeout, progress)
            if path.name == "plan.json":
                run.close_round()

    audited = run.audit(store=Slow(run.files))
    assert audited.passed, audited.findings
    assert audited.rounds == 1


def test_a_closed_round_takes_no_more_local_weights(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=2, **PATIENT))
    files, late = run.publish_locals(1, 2), run.local(3)
    run.time_out()
    assert not publishes(run, 3, late.cid)
    assert not publishes(run, 2, run.local(2, accuracy=0.75).cid)
    run.publish_global(run.average(files, absent=[3]))
    run.close_round()
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == []


def test_what_a_replaced_block_puts_behind_the_end_of_its_round_is_refused(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=2, **PATIENT))
    files, late = run.publish_locals(1, 2), run.local(3)
    start = (0, run.current().cid)
    run.time_out()
    run.publish_global(run.average(files, absent=[3]))
    learner = run.as_node("learner-3")
    assert learner.set_local_weight(3, late.cid, learner.chain.nonce(), trained_from=start) is None
    run.close_round()
    audited = run.audit()
    assert (audited.passed, audited.notes) == (True, []), audited


def publishes(run: Run, node_id: int, name: str) -> bool:
    """Whether the contract takes a learner's local weights."""
    learner = run.as_node(f"learner-{node_id}")
    return learner.set_local_weight(node_id, name, learner.chain.nonce()) is not None


def test_a_learner_may_replace_its_weights_while_the_round_is_open(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.publish_local(1, run.local(1, accuracy=0.75))
    run.publish_local(1, run.local(1, round=7))
    run.close_round()
    audited = run.audit()
    assert (audited.passed, audited.notes) == (True, []), audited


def test_a_learner_may_publish_the_same_again(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    first = run.local(1)
    run.publish_local(1, first)
    run.publish_local(1, run.local(1, accuracy=0.75))
    files = run.publish_locals()
    assert files[0].cid == first.cid
    run.publish_global(run.average(files))
    audited = run.audit()
    assert (audited.passed, audited.notes) == (True, []), audited


def test_a_file_refused_as_missing_that_is_there_now_is_a_note(world: World) -> None:
    # Whether it was away at the time, only who looked then can tell.
    run = world.deploy(plan(learners=3, rounds=1, min_learners=2, fetch_timeout=1000.0))
    files = run.publish_locals()
    run.publish_global(run.average(files[:2], refused=[Rejection(3, files[2].cid, "missing")]))
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == [f"round 0: learner 3's {files[2].cid} was rejected as missing, but is available now"]


def test_a_file_that_was_refused_and_is_bad_is_a_note_with_both_reasons(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1, min_learners=2))
    good = run.publish_locals(1, 2)
    bad = run.publish_local(3, run.local(3, samples=10**9))
    run.publish_global(run.average(good, refused=[Rejection(3, bad, "smells")]))
    audited = run.audit()
    assert audited.passed, audited.findings
    (note,) = audited.notes
    assert note.startswith(
        f"round 0: learner 3's {bad} was rejected (smells); this verification: metadata: samples is 1000000000"
    )


def test_a_round_with_too_few_valid_files_keeps_the_weights(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=2, min_learners=2))
    before = run.current()
    files, refused = run.publish_locals(1), publishes_bad(run, 2, 3)
    made = run.average(files, refused=refused)
    assert [entry.share for entry in made.global_meta.inputs] == [0.0]
    assert all(made.tensor(name).tobytes() == before.tensor(name).tobytes() for name in before.shapes)
    run.publish_global(made)
    run.close_round()
    audited = run.audit()
    assert audited.passed, audited.findings
    assert len(audited.notes) == 2  # of the rejections


# What the learners said of global weights


def test_withdrawn_weights_and_a_new_header_are_notes(world: World) -> None:
    run = world.deploy(plan(learners=3))
    run.close_round()
    files = run.publish_locals()
    good, lie = run.average(files), run.publish_global(run.average(files, tensors=one_bit))
    run.reject(1, 2, "tensor dense/kernel")
    assert run.current().cid == lie
    run.reject(3, 2, "tensor dense/kernel")
    assert run.contract.state().header == world.accounts["learner-1"]
    with pytest.raises(ContractError, match="NotHeader"):
        run.publish_global(good)
    run.publish_global(good, "learner-1")
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == [
        f"global weights 2: {lie} was withdrawn: rejected by learners 1, 3 (tensor dense/kernel)",
        f"the header changed to {world.accounts['learner-1']}, learner 1",
    ]


def test_a_majority_that_withdraws_correct_weights_is_named(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1))
    good = run.publish_global(run.average(run.publish_locals()))
    run.reject(1, 1, "smells")
    run.reject(3, 1, "smells")
    assert run.publish_global(good, "learner-1") == good
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes[0] == (
        f"global weights 1: {good} was withdrawn: rejected by learners 1, 3 (smells), although they are correct"
    )


def test_who_rejects_correct_weights_without_a_majority_is_named(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1))
    run.close_round()
    run.reject(2, 1, "smells")
    assert run.contract.state().header == world.accounts["header"]
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes == ["learner 2 rejected correct global weights 1 (smells), without a majority"]


def test_who_rejects_wrong_weights_without_a_majority_is_not_accused(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1))
    run.publish_global(run.average(run.publish_locals(), tensors=one_bit))
    run.reject(2, 1, "tensor dense/kernel")
    audited = run.audit()
    assert {(finding.round, finding.node, finding.field) for finding in audited.findings} == {
        (1, "header", "tensor dense/kernel")
    }
    assert audited.notes == []


def test_later_weights_are_withdrawn_with_those_that_they_follow_from(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=2, min_learners=1, round_timeout=1.0))
    start, files = run.current(), run.publish_locals()
    lie = run.publish_global(run.average(files, tensors=one_bit))
    more = run.publish_locals(1)
    run.time_out()
    later = run.publish_global(run.average(more, absent=[2, 3]))
    for node_id in (2, 3):
        run.reject(node_id, 1, "tensor dense/kernel")
    assert run.contract.state().global_cid == start.cid
    run.publish_global(run.average(files), "learner-1")
    run.publish_global(run.average(run.publish_locals()), "learner-1")
    audited = run.audit()
    assert audited.passed, audited.findings
    assert audited.notes[:2] == [
        f"global weights 1: {lie} was withdrawn: rejected by learners 2, 3 (tensor dense/kernel)",
        f"global weights 2: {later} was withdrawn together with the weights it was based on",
    ]


# Lies about a round: what is published in place of global weights 2, after an honest round


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_is_found_where_it_was_told(world: World, kind: str) -> None:
    lie = LIES[kind]
    run = world.deploy(plan(learners=3, **lie.settings))
    run.close_round()
    lie.tell(run)
    audited = run.audit()
    assert not audited.passed
    assert {(finding.round, finding.node, finding.field) for finding in audited.findings} == lie.found, (
        audited.findings
    )
    assert any(lie.text in finding.message for finding in audited.findings), audited.findings
    assert all("\n" not in str(finding) for finding in audited.findings)


@pytest.mark.parametrize("rule", ["trimmed_mean", "multi_krum"])
def test_a_rule_that_has_too_few_files_is_found(world: World, rule: str) -> None:
    run = world.deploy(plan(learners=5, rounds=1, aggregation={"rule": rule, "num_malicious": 1}))
    files, refused = run.publish_locals(1, 2), publishes_bad(run, 3, 4, 5)
    # The rule itself makes nothing of them, so the weights should stay as they are.
    good = run.average(files, refused=refused)
    inputs = tuple(replace(entry, share=0.5) for entry in good.global_meta.inputs)
    run.publish_global(rewritten(run, good, files[0].tensors(), inputs=inputs))
    assert places(run) == {
        *((1, f"learner {n}", "share") for n in (1, 2)),
        *((1, "header", f"tensor {name}") for name in run.trainer.shapes()),
    }


OPEN_ROUNDS: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    "missing in a plan that waits for ever": (SOME, [1, 2, 3], [1, 2]),
    "missing before the time is up": (PATIENT | {"round_timeout": 1000.0}, [1, 2, 3], [1, 2]),
    "missing and never registered": (SOME, [1, 2], [1, 2]),
    "too few": (PATIENT, [1, 2, 3], [1]),
    "nobody": (PATIENT, [1, 2, 3], []),
}
"""Settings, the learners that are registered, and those that have published."""


@pytest.mark.parametrize("kind", OPEN_ROUNDS)
def test_the_contract_refuses_global_weights_while_their_round_is_open(world: World, kind: str) -> None:
    settings, registered, published = OPEN_ROUNDS[kind]
    run = world.deploy(plan(learners=3, rounds=1, **settings), learners=registered)
    files = [run.local(node_id) for node_id in published]
    for file in files:
        run.publish_local(file.local_meta.node_id, file)
    world.pass_time(2)
    made = run.average(files, absent=[node_id for node_id in registered if node_id not in published])
    header = run.contract
    assert header.close_round(header.chain.nonce()) is None
    assert header.set_global_weight(made.cid, header.chain.nonce()) is None
    assert (header.state().round, header.state().closed) == (0, False)
    for node_id in {1, 2, 3} - set(registered):
        run.register(node_id, f"learner-{node_id}")
    run.close_round()
    assert (header.state().round, places(run)) == (1, set())


def test_an_honest_round_after_a_lie_is_not_accused(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=3))
    run.close_round()
    run.publish_global(run.average(run.publish_locals(), tensors=one_bit))
    run.close_round()
    assert places(run) == {(2, "header", "tensor dense/kernel")}


def test_a_finding_stays_a_line_whatever_a_header_wrote(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.publish_global(run.average(run.publish_locals(), rule="x" * 1000))
    (finding,) = run.audit().findings
    assert (finding.round, finding.node, finding.field) == (1, "header", "rule")
    assert len(str(finding)) < 1000


# Lies about the run as a whole


def founded(
    world: World, given: Plan, plan_file: bytes | None = None, bytecode: str = "", terms: Terms | None = None
) -> Run:
    """A run that was deployed and has not begun, with this content of its plan file, code and terms if given."""
    folder = world.folder / f"founded-{cid.of_bytes(str(world.chain('header').block_number()).encode())}"
    folder.mkdir()
    path = folder / "plan.json"
    path.write_bytes(given.to_bytes() if plan_file is None else plan_file)
    chain = world.chain("header")
    name = FolderStore(folder / "files").add(path)
    terms = terms_of(given) if terms is None else terms
    address = str(chain.deploy(name, terms).contract) if not bytecode else deploy_code(world, bytecode, name, terms)
    run = Run(world, given, address, folder, StubTrainer(given))
    for node_id in range(1, given.learners + 1):
        run.register(node_id, f"learner-{node_id}")
    return run


def deploy_code(world: World, bytecode: str, plan_cid: str, terms: Terms) -> str:
    chain = world.chain("header")
    factory = chain.web3.eth.contract(abi=artifact()["abi"], bytecode=bytecode)
    transaction = factory.constructor(cid.to_digest(plan_cid), astuple(terms)).build_transaction(
        {
            "from": chain.web3.to_checksum_address(chain.address),
            "nonce": chain.web3.eth.get_transaction_count(chain.web3.to_checksum_address(chain.address)),
            "chainId": chain.chain_id(),
            "gas": DEPLOY_GAS,
            "maxFeePerGas": 10**11,
            "maxPriorityFeePerGas": 1,
        }
    )
    signed = load_key(world.keys["header"]).sign_transaction(transaction)
    receipt = chain.web3.eth.wait_for_transaction_receipt(
        chain.web3.eth.send_raw_transaction(signed.raw_transaction), timeout=600, poll_latency=0.01
    )
    return str(receipt["contractAddress"])


INITIAL: dict[str, tuple[dict[str, Any], Callable[[dict[str, model_file.Tensor]], Tensors], set[Place]]] = {
    "random": (
        {},
        random_tensors,
        {(0, "header", "tensor dense/bias"), (0, "header", "tensor dense/kernel")},
    ),
    "one bit": ({}, one_bit, {(0, "header", "tensor dense/kernel")}),
    "rule": ({"rule": "pretrained"}, dict, {(0, "header", "rule")}),
    "parent": ({"parent": NOWHERE}, dict, {(0, "header", "parent")}),
    "inputs": ({"inputs": (Input(1, NOWHERE, 34, 1.0),)}, dict, {(0, "header", "inputs")}),
    "refused": ({"refused": (Rejection(1, NOWHERE, "smells"),)}, dict, {(0, "header", "refused")}),
    "absent": ({"absent": (1,)}, dict, {(0, "header", "absent")}),
    "round": ({"round": 1}, dict, {(0, "header", "round")}),
    "another plan": ({"plan": NOWHERE}, dict, {(0, "header", "plan")}),
}


@pytest.mark.parametrize("kind", INITIAL)
def test_wrong_initial_weights_are_found(world: World, kind: str) -> None:
    changes, tensors, found = INITIAL[kind]
    run = founded(world, plan())
    good = initial_file(run.folder / "global-0.safetensors", run.plan, run.plan_cid, run.trainer.initial())
    forged = rewritten(run, good, tensors(good.tensors()), **changes)
    run.publish_global(forged)
    assert places(run) == found


def test_a_report_of_a_run_that_began_with_another_model_says_so(world: World) -> None:
    run = founded(world, plan())
    other = StubTrainer(run.plan, {"dense/bias": np.zeros(9, np.float32)})
    run.publish_global(initial_file(run.folder / "global-0.safetensors", run.plan, run.plan_cid, other.initial()))
    initial = run.collect().initial
    assert initial is not None
    assert initial.problem == "tensor dense/kernel is missing"


def test_rounds_beyond_the_plan_are_found(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    for _ in range(3):
        run.close_round()
    assert places(run) == {(2, "header", "round")}


def test_a_learner_can_not_take_part_before_it_is_registered(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=1, **PATIENT), learners=[1, 2])
    files = run.publish_locals(1, 2)
    run.time_out()
    run.publish_global(run.average([*files, run.local(3)]))
    run.register(3, "learner-3")
    assert places(run) == {(1, "learner 3", "inputs"), (0, "learner 3", "cid")}


def test_a_learner_registered_after_a_round_is_not_missed_in_it(world: World) -> None:
    run = world.deploy(plan(learners=3, rounds=2, **PATIENT), learners=[1, 2])
    files = run.publish_locals(1, 2)
    run.time_out()
    run.register(3, "learner-3")
    run.publish_global(run.average(files))
    run.close_round()
    assert places(run) == set()


def test_a_contract_with_other_terms_than_the_plans_is_found(world: World) -> None:
    given = plan(learners=3, rounds=1)
    run = founded(world, given, terms=Terms(3, 1, 1))
    run.publish_global(
        initial_file(run.folder / "global-0.safetensors", run.plan, run.plan_cid, run.trainer.initial())
    )
    run.close_round()
    assert places(run) == {(None, "header", "terms")}


@pytest.mark.parametrize("content", [None, b'{"name":"another"}'], ids=["missing", "damaged"])
def test_a_plan_that_is_gone_or_damaged_is_found(world: World, content: bytes | None) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    path = run.files / run.plan_cid
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert places(run) == {(None, "header", "plan")}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 60_000,
        b"x" * 100_000,
        b'{"name":"no plan","colour":"red"}',
        json.dumps(plan().model_dump(), indent=2).encode(),
    ],
    ids=["empty", "nested", "huge", "no plan", "not canonical"],
)
def test_a_plan_that_is_none_is_found(world: World, content: bytes) -> None:
    run = founded(world, plan(), content)
    assert places(run) == {(None, "header", "plan")}
    assert "\n" not in str(run.audit().findings[0])


def test_a_contract_with_other_code_is_found(world: World) -> None:
    code = artifact()["bytecode"]
    other = code[:-2] + f"{int(code[-2:], 16) ^ 1:02x}"
    run = founded(world, plan(rounds=1), bytecode=other)
    run.publish_global(
        initial_file(run.folder / "global-0.safetensors", run.plan, run.plan_cid, run.trainer.initial())
    )
    run.close_round()
    assert places(run) == {(None, "header", "contract")}


def forging(world: World, plan_cid: str, terms: Terms, topics: Sequence[bytes], data: bytes) -> str:
    """Return code that deploys the genuine contract, after it has put an event of the deployer's own into its log."""
    chain = world.chain("header")
    runtime = constructors.genuine_code(chain, plan_cid, terms)
    return constructors.returning(runtime, constructors.logging(topics, data) + constructors.storing(chain))


def topic(run: Run, name: str) -> bytes:
    return bytes.fromhex(str(encoder().events[name]().topic).removeprefix("0x"))


def test_an_event_that_nobody_signed_is_found(world: World) -> None:
    # What other code than the contract's own wrote as it deployed it: it looks as if learner 2 had published.
    given = plan(learners=3, rounds=1, **PATIENT)
    honest = founded(world, given)
    start = initial_file(honest.folder / "global-0.safetensors", given, honest.plan_cid, honest.trainer.initial())
    honest.publish_global(start)
    invented = honest.local(2)
    topics = [topic(honest, "LocalWeightSet"), *(number.to_bytes(32, "big") for number in (0, 2))]
    code = forging(world, honest.plan_cid, terms_of(given), topics, cid.to_digest(invented.cid))
    run = founded(world, given, bytecode=code)
    run.publish_global(start)
    run.store.add(invented.path)
    files = run.publish_locals(1, 3)
    run.time_out()
    run.publish_global(run.average([*files, invented]))
    assert run.contract.has_known_code()
    assert places(run) >= {(None, "header", "constructor"), (0, "learner 2", "sender")}


def test_votes_that_nobody_cast_are_found_and_no_learner_takes_part(world: World) -> None:
    given = plan(rounds=1)
    honest, chain = founded(world, given), world.chain("header")
    state = {constructors.STATE: constructors.VOTES | int(chain.address, 16)}
    runtime = constructors.genuine_code(chain, honest.plan_cid, terms_of(given))
    run = founded(world, given, bytecode=constructors.returning(runtime, constructors.storing(chain, state)))
    # One real vote of two deposes the header, and log and functions agree.
    voter = run.as_node("learner-1")
    assert voter.vote(0, voter.chain.nonce()) is not None
    assert run.contract.header() == voter.chain.address
    start = initial_file(run.folder / "global-0.safetensors", given, run.plan_cid, run.trainer.initial())
    run.publish_global(start, "learner-1")
    with pytest.raises(ConfigError, match=r"refused \(constructor\): it was deployed by"), run.learner(2) as learner:
        learner.finish()
    assert places(run) == {(None, "header", "constructor")}


@pytest.mark.parametrize("topics", [[], [bytes(32)], ["LocalWeightSet"]], ids=["no topic", "unknown", "too few"])
def test_a_log_that_no_run_has_is_found(world: World, topics: list[Any]) -> None:
    given = plan(rounds=1)
    honest = founded(world, given)
    some = [topic(honest, one) if isinstance(one, str) else one for one in topics]
    run = founded(world, given, bytecode=forging(world, honest.plan_cid, terms_of(given), some, b""))
    assert places(run) == {(None, "header", "constructor"), (None, "header", "log")}


class _LyingNode(Contract):
    """A node whose answers are not those of its log."""

    def global_weight_at(self, round_: int) -> str | None:
        return NOWHERE if round_ == 1 else super().global_weight_at(round_)

    def local_weight_at(self, round_: int, node_id: int, block: str | None = None) -> str | None:
        return NOWHERE if (round_, node_id) == (0, 2) else super().local_weight_at(round_, node_id, block)


def test_a_node_whose_answers_differ_from_its_log_is_found(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    found = {(finding.round, finding.node, finding.field) for finding in run.audit(_lying(run)).findings}
    assert found == {(1, "header", "globalWeightAt"), (0, "learner 2", "localWeightAt")}


def _lying(run: Run) -> Contract:
    return _LyingNode(run.contract.chain, run.address)


class _AwayStore(FolderStore):
    """A store whose daemon ends after some files."""

    left = 3

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        if not self.left:
            raise StoreUnreachable("IPFS can't be reached; is the daemon running?")
        self.left -= 1
        super().fetch(file_cid, path, max_bytes, timeout, progress)


def test_a_store_that_goes_away_accuses_nobody(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    run.close_round()
    with pytest.raises(StoreUnreachable):
        run.audit(store=_AwayStore(run.files))


# The command line, which builds the Keras model


def test_the_command_line_tells_honest_runs_from_lies_by_its_exit_code(world: World, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\nrounds = 1\nlearners = 2\nfetch_timeout = 1.0\n'
        'data = { name = "digits", train = 40, test = 10 }\nmodel = { name = "mlp" }\n'
    )
    files = tmp_path / "files"
    deployed = fl_node(
        *("deploy", tmp_path / "tiny.toml", "--json"),
        *("--rpc", world.rpc, "--store", f"file:{files}", "--key", world.keys["header"]),
        *(f"--learner=1={world.accounts['learner-1']}", f"--learner=2={world.accounts['learner-2']}"),
    )
    assert deployed.returncode == 0, deployed.stderr
    address = json.loads(deployed.stdout)["contract"]
    first = world.chain("header").contract(address)
    tiny = loading.from_bytes((files / first.plan()).read_bytes())
    initial = model_file.read(files / str(first.global_weight_at(0))).tensors()

    honest = Run(world, tiny, address, tmp_path, StubTrainer(tiny, initial))
    honest.close_round()
    swapped = tmp_path / "swapped"
    shutil.copytree(files, swapped)
    victim = swapped / str(honest.contract.local_weight_at(0, 2))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    other_start = {name: tensor + np.float32(1) for name, tensor in initial.items()}
    forged = world.deploy(tiny, lambda given: StubTrainer(given, other_start))
    forged.close_round()

    def audited(store: Path, contract: str) -> tuple[int, dict[str, Any]]:
        done = fl_node("audit", "--json", "--rpc", world.rpc, "--store", store, "--contract", contract)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    code, result = audited(files, address)
    assert (code, result["passed"], result["findings"]) == (0, True, [])
    assert (result["rounds"], result["files"]) == (1, 5)
    code, result = audited(swapped, address)
    assert (code, result["passed"]) == (1, False)
    assert [(f["round"], f["node"], f["field"]) for f in result["findings"]] == [(0, "learner 2", "file")]
    code, result = audited(forged.files, forged.address)
    assert (code, result["passed"]) == (1, False)
    assert {(f["round"], f["node"], f["field"].split()[0]) for f in result["findings"]} == {(0, "header", "tensor")}


def test_an_account_that_is_not_the_one_an_auditor_knows_is_found(world: World) -> None:
    run = world.deploy(plan(rounds=1))
    accounts = {n: world.accounts[learner_name(n)] for n in (1, 2)}
    assert run.audit(accounts=accounts).passed
    # The header may register any accounts as the plan's learners.
    (finding,) = run.audit(accounts=accounts | {2: world.accounts["mallory"]}).findings
    assert (finding.node, finding.field) == ("learner 2", "account")


def test_a_learner_beyond_the_plan_in_a_forged_log_is_found(world: World) -> None:
    given = plan(rounds=1)
    honest = founded(world, given)
    account = int(world.accounts["mallory"], 16)
    topics = [topic(honest, "LearnerRegistered"), *(number.to_bytes(32, "big") for number in (3, account))]
    run = founded(world, given, bytecode=forging(world, honest.plan_cid, terms_of(given), topics, b""))
    assert (None, "learner 3", "registered") in places(run)
