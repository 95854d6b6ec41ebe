"""Whole runs with masks: the same weights as without, whoever is lost or killed, and no secret that stays on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from fl_node.artifacts import cid, model_file
from fl_node.audit.auditor import audit
from fl_node.audit.result import Audit
from fl_node.chain.contract import KEY_ANNOUNCED, LOCAL_WEIGHT_SET, MASKS_OPENED
from fl_node.plan.schema import Plan
from fl_node.privacy.round_keys import FOLDER
from fl_node.protocol import history
from fl_node.protocol.verification.masked import LEARNER_LOST, NOT_OPENED, WRONG_OPENING
from fl_node.report.collect import collect
from tests.helpers.masked import ATTEMPTS, FOUR, PLAN, plan_of, until
from tests.helpers.network import Network
from tests.helpers.stub import StubTrainer


def audited(network: Network) -> Audit:
    folder = network.folder / "audit"
    folder.mkdir()
    return audit(network.as_node("header"), network.store, folder, StubTrainer)


def final(network: Network, name: str) -> dict[str, bytes]:
    file = model_file.read(network.folder / "store" / name)
    return {name: file.tensor(name).tobytes() for name in file.shapes}


def secrets_on_disk(network: Network) -> list[Path]:
    return [path for path in network.folder.rglob("*.key") if path.parent.name == FOLDER]


def test_a_masked_run_ends_with_the_weights_of_one_without_masks(start: Callable[[Plan], Network]) -> None:
    network, plain = start(PLAN), start(plan_of(privacy={}))
    assert final(network, network.finish()) == final(plain, plain.finish())
    result = audited(network)
    assert (result.findings, result.notes) == ([], [])
    assert secrets_on_disk(network) == []
    # Nobody ever had a file with weights of a single learner in clear.
    local = [path for path in network.folder.rglob("*.safetensors") if path.name.startswith("local-")]
    assert len(local) == 3
    assert all(b'"kind":"masked"' in path.read_bytes() for path in local)
    # The report has what the files say in clear.
    (network.folder / "report").mkdir()
    reported = collect(network.as_node("header"), network.store, network.folder / "report")
    entries = [entry for closed in reported.rounds for entry in closed.local.values()]
    assert [(entry.problem, entry.accuracy) for entry in entries] == [(None, None)] * 6
    assert all(entry.samples for entry in entries)


@pytest.mark.nightly
def test_roles_that_are_killed_after_every_step_continue_with_the_same_bits(start: Callable[[Plan], Network]) -> None:
    network, plain = start(PLAN), start(plan_of(privacy={}))
    waiting = set(network.nodes)
    for _ in range(ATTEMPTS):
        for node in sorted(waiting):
            if network.step(node):
                waiting.discard(node)
            network.kill(node)
        if not waiting:
            break
    past = network.log()
    counts = {
        name: sum(entry.name == name for entry in past) for name in (KEY_ANNOUNCED, LOCAL_WEIGHT_SET, MASKS_OPENED)
    }
    # Made again, a masked file has the same CID, so it is published once; so is an opening.
    assert counts == {KEY_ANNOUNCED: 3, LOCAL_WEIGHT_SET: 6, MASKS_OPENED: 6}
    # Who is killed after every step may not come to the end of its verification; undisturbed, it erases its secrets.
    assert final(network, network.finish()) == final(plain, plain.finish())
    assert audited(network).passed
    assert secrets_on_disk(network) == []


def test_a_learner_lost_before_it_publishes_is_left_out_and_comes_back(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    everyone, others = network.nodes, network.nodes[:-1]
    until(network, everyone, lambda: contract.state().round == 1)
    until(network, others, lambda: contract.state().round == 2)
    # It has no key in round 2, so it announces one for round 3 and sits out.
    until(network, everyone, lambda: contract.state().round == 3)
    first, second, third = (
        model_file.read(network.folder / "store" / str(contract.global_weight_at(n))) for n in (1, 2, 3)
    )
    taking_part = [[entry.node_id for entry in file.global_meta.inputs] for file in (first, second, third)]
    assert taking_part == [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3]]
    assert [dict(file.global_meta.keys or ()).keys() for file in (first, second, third)] == [
        {1, 2, 3, 4},
        {1, 2, 3},
        {1, 2, 3, 4},
    ]
    result = audited(network)
    assert result.passed, result.findings
    lost = [(note.round, note.about) for note in result.notes if note.code == LEARNER_LOST]
    assert lost == [(1, "learner 4")]


def test_a_learner_lost_before_it_opens_does_not_stop_the_round(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().closed)
    until(network, network.nodes[:-1], lambda: contract.state().round == 1)
    past = history.read(contract)
    assert {entry.node_id for entry in past.rounds[0].openings} <= {1, 2, 3}
    assert {entry.node_id for entry in past.rounds[0].published} == {1, 2, 3, 4}
    network.kill("learner-4")
    until(network, network.nodes, lambda: contract.state().round == 3)
    result = audited(network)
    assert result.passed
    assert (0, "learner 4") in [(note.round, note.about) for note in result.notes if note.code == NOT_OPENED]


def test_a_block_that_is_replaced_may_change_the_members_of_a_round(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    others = network.nodes[:-1]
    until(network, network.nodes, lambda: contract.state().global_cid is not None)
    # The round closes with three learners, and they do all they can before the next block.
    until(network, others, lambda: contract.state().closed)
    for node in others * 5:
        network.step(node)
    assert contract.openings_and_next_keys(0, [1, 2, 3])[0] == {}
    # Another sealer's block has the fourth learner's file in its place.
    network.lose_blocks(1)
    assert not contract.state().closed
    until(network, ("learner-4",), lambda: contract.local_weights(0, [4]) != {})
    until(network, network.nodes, lambda: contract.state().round == 1)
    file = model_file.read(network.folder / "store" / str(contract.global_weight_at(1)))
    assert [entry.node_id for entry in file.global_meta.inputs] == [1, 2, 3, 4]


def test_a_learner_that_is_no_member_any_more_reads_the_state_again(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("learner-4")
    until(network, network.nodes, lambda: contract.state().global_cid is not None)
    until(network, network.nodes[:-1], lambda: contract.state().closed)
    # As after a block with its file was replaced, when it has read that block, and sends its opening.
    assert contract.open_masks(0, cid.of_bytes(b"shares"), contract.chain.nonce()) is None
    until(network, network.nodes, lambda: contract.state().round == 1)


def test_below_the_threshold_the_round_waits_and_says_for_whom(start: Callable[[Plan], Network]) -> None:
    network = start(PLAN)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().closed)
    two = network.nodes[:-1]
    until(network, two, lambda: len(contract.openings_and_next_keys(0, [1, 2, 3])[0]) == 2)
    for node in two * 5:
        network.step(node)
    assert (contract.state().round, contract.state().closed) == (0, True)
    waiting = network.role("header").step()
    assert waiting is not None
    assert (waiting.reason, waiting.learners) == ("openings", (3,))
    # Nobody votes against a header that can do nothing.
    network.clock.sleep(10 * PLAN.header_timeout)
    for node in two * 5:
        network.step(node)
    assert contract.state().header == network.accounts[0]


def test_wrong_shares_are_named_and_do_no_harm(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().closed)
    network.kill("learner-4")
    liar = network.as_node("learner-4")
    until(network, network.nodes[1:2], lambda: bool(contract.opening_at(0, 1)))
    content = json.loads((network.folder / "store" / str(contract.opening_at(0, 1))).read_bytes())
    content["node_id"] = 4
    path = network.folder / "lie"
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))
    assert liar.open_masks(0, network.store.add(path), liar.chain.nonce()) is not None
    until(network, network.nodes[:-1], lambda: contract.state().round == 1)
    until(network, network.nodes, lambda: contract.state().round == 3)
    result = audited(network)
    assert result.passed, result.findings
    wrong = {(note.round, note.about) for note in result.notes if note.code == WRONG_OPENING}
    assert wrong == {(0, "learner 4")}


@pytest.mark.nightly
def test_a_learner_opens_a_round_for_one_set_of_members_only(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().closed)
    path = network.folder / "learner-1" / f"opening-0-{contract.state().global_cid}.json"
    until(network, ("learner-1",), lambda: contract.opening_at(0, 1) is not None)
    content = json.loads(path.read_bytes())
    content["members"] = [1, 2, 3]
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))
    network.kill("learner-1")
    # A block is replaced, so that its opening is to be sent again, for another set than it had opened.
    network.lose_blocks(1)
    for _ in range(20):
        network.step("learner-1")
    assert contract.opening_at(0, 1) is None
    assert json.loads(path.read_bytes()) == content


def test_a_learner_publishes_no_second_file_with_the_same_masks(start: Callable[[Plan], Network]) -> None:
    network = start(PLAN)
    contract = network.as_node("header")
    until(network, ("header", *network.learners), lambda: contract.state().started)
    until(network, ("learner-1",), lambda: contract.local_weight_at(0, 1) is not None)
    first = contract.local_weight_at(0, 1)
    network.kill("learner-1")
    path = network.folder / "learner-1" / "local-0.safetensors"
    file = model_file.read(path)
    # As if it had trained again, on other data: the difference of both files has no masks.
    tensors = file.tensors()
    tensors[model_file.SCORES] = tensors[model_file.SCORES] + np.uint32(1)
    assert model_file.write(path, file.meta, tensors).cid != first
    for _ in range(10):
        network.step("learner-1")
    assert contract.local_weight_at(0, 1) == first
    network.finish()
    assert audited(network).passed


@pytest.mark.nightly
def test_another_header_goes_on_with_a_masked_round(start: Callable[[Plan], Network]) -> None:
    network, plain = start(PLAN), start(plan_of(privacy={}))
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().closed)
    until(network, network.learners, lambda: len(contract.openings_and_next_keys(0, [1, 2, 3])[0]) == 3)
    for node in network.learners * 4:
        network.step(node)
    network.clock.sleep(PLAN.header_timeout + 1)
    until(network, network.learners, lambda: contract.state().header != network.accounts[0])
    assert contract.state().header == network.accounts[1]
    assert final(network, network.finish()) == final(plain, plain.finish())
    assert audited(network).passed


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2))
def test_kills_lies_and_reorganisations_lead_to_the_same_weights(start: Callable[[Plan], Network], seed: int) -> None:
    network, plain, random = start(PLAN), start(plan_of(privacy={})), Random(seed)
    for _ in range(40):
        match random.randrange(8):
            case 0:
                network.kill(random.choice(network.role_names))
            case 1 if network.height() > network.floor:
                network.lose_blocks(random.randint(1, 3))
            case _:
                for _ in range(random.randint(1, 4)):
                    network.step(random.choice(network.role_names))
    assert final(network, network.finish()) == final(plain, plain.finish())
    result = audited(network)
    assert result.passed, result.findings
