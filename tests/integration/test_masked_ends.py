"""Runs with masks that can't go on end and say because of whom, or wait for named learners; nothing is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import MaskedMeta
from fl_node.audit.auditor import audit
from fl_node.chain.contract import MASKS_OPENED, Contract
from fl_node.errors import ChainError, ConfigError, RunStuck, StoreError, WeightsError
from fl_node.plan.schema import Plan
from fl_node.privacy.dealing import RoundKey
from fl_node.privacy.round_keys import FOLDER
from fl_node.protocol import history
from fl_node.protocol.masked import unmasked_file
from fl_node.report.collect import Result, collect
from fl_node.roles import impasse, synchronous
from fl_node.roles.verifier import Verdict, Verifier
from tests.helpers.masked import ATTEMPTS, FOUR, PLAN, plan_of, until
from tests.helpers.network import Network
from tests.helpers.runs import PATIENCE, Run, World
from tests.helpers.runs import plan as small_plan
from tests.helpers.stub import StubTrainer
from tests.helpers.waiting import eventually

FIXED = {"rule": "fedavg", "arithmetic": "fixed", "range": 4.0}
LEARNER_DP = plan_of(
    aggregation={**FIXED, "weighting": "uniform"},
    learners=4,
    privacy={
        "secure_aggregation": True,
        "threshold": 3,
        "dp": {"unit": "learner", "noise_multiplier": 1.0, "clipping_norm": 1.0},
    },
)
"""The sum needs the noise of all four."""
DP_SGD = plan_of(
    privacy={"secure_aggregation": True, "dp": {"noise_multiplier": 1.0}},
)


def ended(network: Network, *roles: str) -> dict[str, RunStuck]:
    """Step through roles until all of them have ended because the run can't go on."""
    found: dict[str, RunStuck] = {}
    for _ in range(ATTEMPTS):
        for node in roles:
            if node in found:
                continue
            try:
                network.role(node).step()
            except RunStuck as error:
                found[node] = error
            except (ChainError, StoreError, WeightsError):
                pass
        if len(found) == len(roles):
            return found
        network.clock.sleep(1.0)
    raise AssertionError(f"{set(roles) - found.keys()} did not end; the log: {network.log()}")


def garbage(network: Network, name: str) -> str:
    path = network.folder / name
    path.write_bytes(name.encode())
    return network.store.add(path)


def too_large(network: Network, name: str) -> str:
    path = network.folder / name
    path.write_bytes(bytes(10**6))
    return network.store.add(path)


def other_content(network: Network, name: str) -> str:
    kept = garbage(network, name)
    (network.folder / "store" / kept).write_bytes(b"other")
    return kept


def another_learners(network: Network, _name: str) -> str:
    return str(network.as_node("header").local_weight_at(0, 1))


BAD = {"garbage": garbage, "too large": too_large, "other content": other_content, "another's": another_learners}


def close_with(network: Network, names: Mapping[int, str]) -> Contract:
    """Close the round: these learners publish these files, and the others their own."""
    contract = network.as_node("header")
    honest = [node for n, node in enumerate(network.learners, 1) if n not in names]
    until(network, ("header", *network.learners), lambda: contract.state().started)
    until(network, ("header", *honest), lambda: len(contract.local_weights(0, contract.learners())) == len(honest))
    for node_id, make in names.items():
        liar = network.as_node(f"learner-{node_id}")
        liar.set_local_weight(node_id, BAD[make](network, f"bad-{node_id}"), liar.chain.nonce())
    assert contract.state().closed
    return contract


def collected(network: Network) -> Result:
    folder = network.folder / "status"
    folder.mkdir()
    return collect(network.as_node("header"), network.store, folder)


def openings(network: Network) -> int:
    return sum(entry.name == MASKS_OPENED for entry in network.log())


@pytest.mark.parametrize("kind", BAD)
def test_a_closed_round_with_too_few_valid_files_ends_all_roles_and_nothing_is_opened(
    start: Callable[[Plan], Network], kind: str
) -> None:
    network = start(PLAN)
    contract = close_with(network, {3: kind})
    errors = ended(network, "header", "learner-1", "learner-2", "learner-3", "standby-1")
    assert {error.learners for error in errors.values()} == {(3,)}
    assert all("learner 3" in str(error) and "\n" not in str(error) for error in errors.values())
    assert (contract.state().round, contract.state().closed, openings(network)) == (0, True, 0)
    result = collected(network)
    assert not result.ended
    assert result.stuck in {str(error) for error in errors.values()}
    # Started again, they come to the same end.
    for node in ("header", "learner-1"):
        network.kill(node)
    assert ended(network, "header", "learner-1").keys() == {"header", "learner-1"}


@pytest.mark.parametrize("plan", [LEARNER_DP, DP_SGD], ids=["learners", "examples"])
def test_it_does_so_with_differential_privacy(start: Callable[[Plan], Network], plan: Plan) -> None:
    network = start(plan)
    close_with(network, {plan.learners: "garbage"})
    errors = ended(network, "header", "learner-1", "standby-2")
    assert {error.learners for error in errors.values()} == {(plan.learners,)}
    assert openings(network) == 0


@pytest.mark.parametrize("kind", ["too large", "other content"])
def test_an_invalid_file_of_a_learner_that_may_be_lost_does_no_harm(
    start: Callable[[Plan], Network], kind: str
) -> None:
    network = start(FOUR)
    contract = close_with(network, {4: kind})
    until(network, network.nodes[:-1], lambda: contract.state().round == 1)
    until(network, network.nodes, lambda: contract.state().round == FOUR.rounds)
    folder = network.folder / "audit"
    folder.mkdir()
    result = audit(network.as_node("header"), network.store, folder, StubTrainer)
    assert result.passed, result.findings


def test_learners_that_lost_their_keys_end_a_run_that_can_not_close_without_them(
    start: Callable[[Plan], Network],
) -> None:
    network = start(PLAN)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().round == 1)
    lose_keys(network, "learner-3")
    errors = ended(network, *network.nodes, "standby-1")
    assert {error.learners for error in errors.values()} == {(3,)}
    assert collected(network).stuck in {str(error) for error in errors.values()}
    assert history.sitting_out(history.read(contract).rounds[1]) == (3,)


def test_with_a_timeout_a_round_waits_only_for_as_many_as_it_needs(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().round == 1)
    lose_keys(network, "learner-3", "learner-4")
    errors = ended(network, *network.nodes, "standby-1")
    assert {error.learners for error in errors.values()} == {(3, 4)}


def lose_keys(network: Network, *nodes: str) -> None:
    for node in nodes:
        network.kill(node)
        for path in (network.folder / node / FOLDER).iterdir():
            path.unlink()


def wrong_opening(network: Network, node_id: int) -> None:
    liar = network.as_node(f"learner-{node_id}")
    assert liar.open_masks(0, garbage(network, f"opening-{node_id}"), liar.chain.nonce()) is not None


def test_a_round_that_too_few_can_still_open_ends_the_run(start: Callable[[Plan], Network]) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().closed)
    for node_id in (3, 4):
        network.kill(f"learner-{node_id}")
        wrong_opening(network, node_id)
    errors = ended(network, "header", "learner-1", "learner-2", "standby-1")
    assert {error.learners for error in errors.values()} == {(3, 4)}
    assert contract.state().round == 0


def test_shares_that_nobody_can_read_end_the_run_and_name_their_dealer(start: Callable[[Plan], Network]) -> None:
    network = start(PLAN)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().started)
    path = network.folder / "learner-3" / "local-0.safetensors"
    until(network, ("learner-3",), path.exists)
    network.kill("learner-3")
    file = model_file.read(path)
    sealed = f"{model_file.PRIVATE}sealed"
    tensors = file.tensors()
    tensors[sealed] = np.zeros_like(tensors[sealed])
    model_file.write(path, file.meta, tensors)
    until(network, network.nodes, lambda: contract.state().closed)
    errors = ended(network, "header", "learner-1", "learner-2", "standby-1")
    assert all(3 in error.learners for error in errors.values())
    assert contract.state().round == 0


def test_a_missing_file_is_waited_for_and_its_learner_is_named(start: Callable[[Plan], Network]) -> None:
    network = start(plan_of(fetch_timeout=0.3))
    contract = network.as_node("header")
    until(network, ("header", *network.learners), lambda: contract.state().closed)
    name = str(contract.local_weight_at(0, 3))
    path = network.folder / "store" / name
    content = path.read_bytes()
    for node in network.role_names:
        network.kill(node)
    for copy in network.folder.rglob(f"*{name}*"):
        copy.unlink()
    wanted = {"header": ("updates", (3,)), "learner-1": ("updates", (3,)), "standby-1": ("standby", None)}

    def waits() -> bool:
        network.clock.sleep(2 * impasse.LOOK_AGAIN)
        steps = {node: network.role(node).step() for node in wanted}
        return {node: (one.reason, one.learners) for node, one in steps.items() if one is not None} == wanted

    eventually(waits, PATIENCE)  # once the learner has verified the global weights
    assert all(waits() for _ in range(3))
    assert collected(network).stuck == ""
    assert openings(network) == 0
    path.write_bytes(content)
    network.finish()


def test_a_standby_that_lacks_the_files_of_a_round_stands_by(start: Callable[[Plan], Network]) -> None:
    network = start(plan_of(fetch_timeout=0.3))
    contract = close_with(network, {3: "garbage"})
    for copy in network.folder.rglob(f"*{contract.state().global_cid}*"):
        copy.unlink()
    for _ in range(3):
        waiting = network.role("standby-1").step()
        network.clock.sleep(2 * PLAN.header_timeout)
    assert waiting is not None
    assert waiting.reason == "standby"


def announce(network: Network, node_id: int, key: bytes) -> None:
    liar = network.as_node(f"learner-{node_id}")
    assert liar.announce_key(0, key, liar.chain.nonce()) is not None


def test_too_few_usable_keys_end_the_run_at_once(
    start: Callable[[Plan], Network], caplog: pytest.LogCaptureFixture
) -> None:
    network = start(PLAN)
    announce(network, 3, (1).to_bytes(32, "little"))  # a point of small order
    errors = ended(network, "header", "learner-1", "learner-2", "standby-1")
    assert {error.learners for error in errors.values()} == {(3,)}
    (line,) = told(caplog, events.WrongKey)
    assert "learner 3" in line
    assert collected(network).stuck in {str(error) for error in errors.values()}


def test_a_learner_with_an_unusable_key_is_named_and_left_out(
    start: Callable[[Plan], Network], caplog: pytest.LogCaptureFixture
) -> None:
    network = start(FOUR)
    announce(network, 4, (1).to_bytes(32, "little"))
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().round == FOUR.rounds)
    (line,) = told(caplog, events.WrongKey)
    assert "learner 4" in line


def test_a_key_of_another_learner_is_named(
    start: Callable[[Plan], Network], caplog: pytest.LogCaptureFixture
) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    until(network, ("learner-2",), lambda: bool(contract.keys(0, [2])))
    announce(network, 4, bytes.fromhex(contract.keys(0, [2])[2]))
    until(network, network.nodes[:-1], lambda: contract.state().round == 1)
    lines = told(caplog, events.WrongKey)
    assert len(lines) == 2
    assert all("learner 2" in line and "learner 4" in line for line in lines)


def told(caplog: pytest.LogCaptureFixture, kind: type[events.Event]) -> list[str]:
    return [record.getMessage() for record in caplog.records if getattr(record, "event", "") == kind.name]


def test_a_learner_whose_host_secret_is_removed_says_so_and_continues(
    start: Callable[[Plan], Network], caplog: pytest.LogCaptureFixture
) -> None:
    network = start(PLAN)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().round == 1)
    assert not told(caplog, events.SecretReplaced)
    network.kill("learner-3")
    secret = network.folder / "learner-3.secret"
    secret.unlink()
    network.finish()
    (line,) = told(caplog, events.SecretReplaced)
    assert str(secret) in line


@pytest.mark.parametrize("damage", ["garbage", "another round's"])
def test_an_opening_on_disk_that_is_not_the_learners_own_is_named_and_not_sent(
    start: Callable[[Plan], Network], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    network = start(FOUR)
    contract = network.as_node("header")
    until(network, network.nodes, lambda: contract.state().closed)
    path = network.folder / "learner-1" / f"opening-0-{contract.state().global_cid}.json"
    if damage == "garbage":
        path.write_bytes(b"damaged")
    else:
        until(network, ("learner-1",), lambda: contract.opening_at(0, 1) is not None)
        until(network, (*network.nodes[2:], "header"), lambda: contract.state().round == 1)
        until(network, network.nodes, lambda: contract.state().closed)
        other = path.with_name(f"opening-1-{contract.state().global_cid}.json")
        path, content = other, path.read_bytes()
        path.write_bytes(content)
    round_ = contract.state().round
    for _ in range(20):
        network.step("learner-1")
    assert contract.opening_at(round_, 1) is None
    (line,) = set(told(caplog, events.OpeningRefused))
    assert path.name in line
    until(network, network.nodes, lambda: contract.state().round == FOUR.rounds)


def test_a_replaced_block_ends_an_impasse(start: Callable[[Plan], Network]) -> None:
    network = start(PLAN)
    contract = close_with(network, {3: "garbage"})

    def sees_it() -> bool:
        waiting = network.role("header").step()
        return waiting is not None and (waiting.reason, waiting.learners) == ("round_end", (3,))

    eventually(sees_it, PATIENCE)
    network.lose_blocks(1)
    assert not contract.state().closed
    network.clock.sleep(2 * impasse.SETTLE)
    network.finish()


def test_processes_of_roles_end_and_a_standby_too(world: World) -> None:
    settings = {"rule": "fedavg", "arithmetic": "fixed"}
    run = world.deploy(
        small_plan(
            learners=3, aggregation=settings, privacy={"secure_aggregation": True}, header_timeout=1.0, rounds=1
        )
    )
    third = run.as_node("learner-3")
    assert third.announce_key(0, RoundKey(bytes(range(32))).public, third.chain.nonce()) is not None
    with ExitStack() as stack:
        roles = [stack.enter_context(one) for one in (run.header(), run.learner(1), run.learner(2), run.standby(1))]
        roles[0].wait_for(events.RoundStarted, round=0)
        run.publish_local(3, _file(run, b"no model"))
        for role in roles:
            with pytest.raises(RunStuck):
                role.finish()
            role.error = None
            assert role.wait_for(events.Waiting, reason="round_end", learners=(3,))


def _file(run: Run, content: bytes) -> Path:
    path = run.path()
    path.write_bytes(content)
    return path


FALSE_KEYS: dict[str, Callable[[int], bytes]] = {
    "unusable": lambda _node_id: (1).to_bytes(32, "little"),
    "the header's own": lambda node_id: RoundKey(bytes([node_id]) * 32).public,
}


@pytest.mark.parametrize("make", FALSE_KEYS.values(), ids=FALSE_KEYS)
def test_no_learner_gives_a_masked_file_away_for_keys_that_the_header_has_exchanged(
    start: Callable[[Plan], Network], monkeypatch: pytest.MonkeyPatch, make: Callable[[int], bytes]
) -> None:
    network = start(PLAN)
    contract, lies = network.as_node("header"), set[str]()

    def lying(path: Path, *given: Any, **more: Any) -> model_file.WeightsFile:
        file = unmasked_file(path, *given, **more)
        if contract.state().header != network.accounts[0]:
            return file
        # All but the key of learner 1, who takes part in the round then.
        keys = tuple((n, key if n == 1 else make(n).hex()) for n, key in file.global_meta.keys or ())
        lie = model_file.write(path, replace(file.global_meta, keys=keys), file.tensors())
        lies.add(lie.cid)
        return lie

    may_verify = threading.Event()

    def slowly(verifier: Verifier, number: int, name: str) -> Verdict:
        if name in lies:
            assert may_verify.wait(PATIENCE)
        return verify_one(verifier, number, name)

    verify_one = Verifier._verify_one
    monkeypatch.setattr(synchronous, "unmasked_file", lying)
    monkeypatch.setattr(Verifier, "_verify_one", slowly)
    try:
        until(network, network.nodes, lambda: contract.state().round == 1)
        # They train while the global weights are verified.
        for node in network.learners * 10:
            network.step(node)
        stored = [model_file.read(path).meta for path in (network.folder / "store").glob("*") if is_model(path)]
    finally:
        may_verify.set()
    assert not [meta for meta in stored if isinstance(meta, MaskedMeta) and meta.parent in lies]
    until(network, network.role_names, lambda: contract.state().header != network.accounts[0])
    network.finish()


def test_a_model_too_large_for_the_clipping_norm_is_refused_before_anything_is_deployed(
    start: Callable[[Plan], Network],
) -> None:
    dp = {"unit": "learner", "noise_multiplier": 100.0, "clipping_norm": 2e-6}
    plan = plan_of(
        aggregation={**FIXED, "weighting": "uniform"}, privacy={"secure_aggregation": True, "threshold": 3, "dp": dp}
    )
    with pytest.raises(ConfigError, match=r"aggregation\.fraction_bits: should be at least \d+ for a model of"):
        start(plan)


def is_model(path: Path) -> bool:
    return not path.read_bytes().startswith(b"{")
