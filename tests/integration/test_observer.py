"""A run watched from outside, on a chain with real transactions."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_node.artifacts import cid, model_file
from fl_node.chain.client import Chain
from fl_node.chain.keys import create_key, load_key
from fl_node.monitor import reading
from fl_node.monitor.observer import Observer
from fl_node.monitor.state import MonitorState, NodeView, Part
from fl_node.nodes.backends import EmbeddedBackend, Endpoint
from fl_node.runtime.waiting import wait_until
from tests.helpers.chain import OPEN
from tests.helpers.runs import Run, World, plan

PATIENCE = 600.0
"""Seconds after which something has hung."""


@contextlib.contextmanager
def watching(run: Run, folder: Path, **options: Any) -> Iterator[Observer]:
    folder.mkdir(exist_ok=True)
    nodes = {"header": Endpoint(run.world.rpc, str(run.files))}
    with Observer(nodes, lambda: run.address, folder, **options) as observer:
        yield observer


def sees(observer: Observer, what: Callable[[MonitorState], object]) -> MonitorState:
    """Wait until something can be seen, and return all of it."""
    assert wait_until(lambda: bool(what(observer.state)), PATIENCE), observer.state
    return observer.state


def header(seen: MonitorState) -> NodeView:
    return next(node for node in seen.nodes if node.name == "header")


def chain_of(seen: MonitorState) -> Part:
    part = header(seen).chain
    assert part is not None
    return part


def test_a_run_is_seen_from_chain_and_store_alone(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan())
    with watching(run, tmp_path / "w") as observer:
        seen = sees(observer, lambda now: now.run and now.run.name)
        assert seen.run is not None
        assert (seen.run.contract, seen.run.plan_cid, seen.run.rounds) == (run.address, run.plan_cid, 2)
        assert [node.name for node in seen.nodes] == ["header", "learner-1", "learner-2"]
        assert header(seen).waits_for == "waits for learners 1, 2"

        run.close_round()

        def is_read(now: MonitorState) -> bool:
            files = now.rounds[0].local.values() if now.rounds and now.rounds[0].result else ()
            return len(files) == 2 and all(file.state == "read" for file in files)

        seen = sees(observer, is_read)  # files are read in any order
        assert seen.run is not None
        assert seen.run.round == 1
        assert {node_id: file.accuracy for node_id, file in seen.rounds[0].local.items()} == {1: 0.5, 2: 0.5}
        assert header(seen).last is not None

        def is_shown(now: MonitorState) -> bool:
            actions = now.blocks[0].actions if now.blocks else ()
            return bool(actions) and actions[0].text.startswith("header published global weights 1")

        sees(observer, is_shown)  # blocks may be read a moment after the contract

        run.close_round()
        assert sees(observer, lambda now: now.run and now.run.ended)


def test_a_node_whose_address_is_not_known_is_not_said_to_be_up_or_down(world: World, tmp_path: Path) -> None:
    with watching(world.deploy(plan()), tmp_path / "w") as observer:
        seen = sees(observer, lambda now: len(now.nodes) == 3)
        assert seen.nodes[1].chain is None
        assert seen.nodes[1].files is None


def test_listeners_hear_of_each_change_and_of_nothing_else(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan())
    heard: list[MonitorState] = []
    with watching(run, tmp_path / "w") as observer:
        # Until all is read, there is a change without a publication: the initial weights come after the plan.
        sees(observer, lambda now: now.run and now.run.name and not now.problem and observer.newest)
        with observer.listening(lambda: heard.append(observer.state)):
            time.sleep(2.5)  # several looks
            quiet = len(heard)
            run.publish_locals(1)
            assert wait_until(lambda: bool(heard and heard[-1].rounds[0].local), PATIENCE)
        assert quiet == 0


def test_a_chain_that_goes_is_said_to_be_down_since_then_and_comes_back(tmp_path: Path) -> None:
    key = tmp_path / "header.key"
    backend = EmbeddedBackend(tmp_path / "nodes", {"header": create_key(key)})
    try:
        end = backend.start()["header"]
        address = str(Chain(end.rpc, load_key(key)).deploy(cid.of_bytes(b"plan"), OPEN).contract)
        with Observer({"header": end}, lambda: address, tmp_path) as observer:
            sees(observer, lambda now: now.run)
            gone = time.time()
            backend.stop()

            seen = sees(observer, lambda now: not chain_of(now).up)
            assert chain_of(seen).since >= gone - 1
            assert "can't be reached" in chain_of(seen).problem
            assert chain_of(seen).height == 1
            sees(observer, lambda now: "can't reach the chain" in now.problem)
            assert observer.state.run is not None  # what was seen is shown still

            backend.check()
            sees(observer, lambda now: chain_of(now).up and not now.problem)
    finally:
        backend.stop()


def test_a_chain_that_was_begun_anew_is_read_anew(tmp_path: Path) -> None:
    key = tmp_path / "header.key"
    create_key(key)
    heights = []
    backend = EmbeddedBackend(tmp_path / "nodes", {"header": create_key(key)})
    try:
        end = backend.start()["header"]
        with Observer({"header": end}, lambda: None, tmp_path) as observer:
            for count in (3, 1):
                for _ in range(count):
                    Chain(end.rpc, load_key(key)).send_noop()
                heights.append(sees(observer, lambda now, n=count: now.blocks and now.blocks[0].number == n).blocks)
                backend.stop()
                (tmp_path / "nodes" / "blocks").unlink()
                backend.check()
    finally:
        backend.stop()
    assert [len(blocks) for blocks in heights] == [4, 2]


def test_another_contract_is_another_run(world: World, tmp_path: Path) -> None:
    runs = [world.deploy(plan(name=name)) for name in ("one", "two")]
    (tmp_path / "w").mkdir()
    current = [runs[0].address]
    for run in runs:  # one store, as in a swarm
        for path in run.files.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    nodes = {"header": Endpoint(world.rpc, str(tmp_path))}
    with Observer(nodes, lambda: current[0], tmp_path / "w") as observer:
        sees(observer, lambda now: now.run and now.run.name == "one")
        current[0] = runs[1].address
        seen = sees(observer, lambda now: now.run and now.run.name == "two")
        assert any("another run" in one.text for block in seen.blocks for one in block.actions)


def test_before_there_is_a_run_blocks_and_nodes_are_seen(world: World, tmp_path: Path) -> None:
    world.deploy(plan())
    with Observer({"header": Endpoint(world.rpc, str(tmp_path))}, lambda: None, tmp_path) as observer:
        seen = sees(observer, lambda now: now.blocks)
        assert seen.run is None
        assert not seen.problem


def test_a_contract_that_is_not_there_is_named(world: World, tmp_path: Path) -> None:
    nobody = world.accounts["mallory"]
    with Observer({"header": Endpoint(world.rpc, str(tmp_path))}, lambda: nobody, tmp_path) as observer:
        # At first the problem may be that the chain has not answered yet.
        sees(observer, lambda now: nobody in now.problem)


def test_a_file_that_is_no_model_is_shown_with_its_reason_and_the_rest_goes_on(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan())
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"rubbish" * 100)
    with watching(run, tmp_path / "w") as observer:
        run.publish_local(1, rubbish)
        run.publish_locals(2)
        # Files that become wanted together are read in any order.
        seen = sees(
            observer,
            lambda now: (
                now.rounds
                and len(now.rounds[0].local) == 2
                and now.rounds[0].local[1].state != "coming"
                and now.rounds[0].local[2].accuracy
            ),
        )
        bad = seen.rounds[0].local[1]
        assert bad.state == "bad"
        assert bad.problem


def test_files_that_are_too_large_are_no_bad_files_and_it_is_said_what_does_not_work(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    run = world.deploy(plan())
    with watching(run, tmp_path / "w") as observer:
        run.publish_locals(1)
        seen = sees(
            observer, lambda now: now.rounds and now.rounds[0].local and now.rounds[0].local[1].state == "large"
        )
        assert seen.rounds[0].local[1].problem == reading.TOO_LARGE
        assert seen.run is not None
        assert seen.run.unread == observer.unread == reading.UNREAD
        assert seen.run.name == run.plan.name, "the plan is read"
        assert not seen.run.problem


def test_a_file_that_nobody_has_is_waited_for_while_others_are_read(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan())
    with watching(run, tmp_path / "w") as observer:
        file = run.local(1)
        run.publish_local(1, file.cid)  # the hash alone
        run.publish_locals(2)
        seen = sees(
            observer, lambda now: now.rounds and len(now.rounds[0].local) == 2 and now.rounds[0].local[2].accuracy
        )
        assert seen.rounds[0].local[1].state == "coming"
        run.store.add(file.path)
        sees(observer, lambda now: now.rounds[0].local[1].accuracy == 0.5)


def test_only_the_newest_global_weights_are_kept(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan(rounds=4))
    with watching(run, tmp_path / "w") as observer:
        for number in range(4):
            run.close_round()
            sees(observer, lambda now, number=number: observer.newest and observer.newest.round == number + 1)
        newest = observer.newest
        assert newest is not None
        assert newest.path.exists()
        assert newest.plan == run.plan
        # A file that is being read is in the folder too, until it has been.
        assert wait_until(lambda: len(list((tmp_path / "w").iterdir())) <= 2, PATIENCE)


def test_a_learners_file_that_says_it_is_global_is_not_kept_as_such(world: World, tmp_path: Path) -> None:
    run = world.deploy(plan(rounds=2))
    false = model_file.write(run.path(), replace(run.current().global_meta, round=10**6), run.current().tensors())
    run.publish_local(1, false)
    run.close_round()
    last = str(run.contract.state().global_cid)
    with watching(run, tmp_path / "w") as observer:
        sees(
            observer,
            lambda now: now.rounds and {entry.state for entry in now.rounds[0].local.values()} == {"read"},
        )
        newest = observer.newest
    assert newest is not None
    assert (newest.cid, newest.round) == (last, 1)


def test_what_roles_say_in_their_logs_is_told_and_the_headers_measurements_are_taken(
    world: World, tmp_path: Path
) -> None:
    run = world.deploy(plan())
    run.close_round()
    logs = tmp_path / "logs"
    logs.mkdir()
    measured = {"event": "global_weights_evaluated", "round": 1, "cid": run.contract.state().global_cid}
    withdrawn = measured | {"cid": cid.of_bytes(b"withdrawn")}
    lines = [
        measured | {"accuracy": 0.9525, "message": "x"},
        withdrawn | {"accuracy": 0.25, "message": "x"},
        {"event": "round_started", "round": 1, "message": "round 1 began"},
    ]
    (logs / "header.log").write_text("a line of a library\n" + "".join(f"{json.dumps(line)}\n" for line in lines))
    (logs / "learner-1.log").write_text('{"event": "training_started", "message": "training"}\n')
    with watching(run, tmp_path / "w", logs=logs) as observer:
        seen = sees(observer, lambda now: now.rounds and now.rounds[0].result and now.rounds[0].result.accuracy)
        assert seen.rounds[0].result is not None
        assert seen.rounds[0].result.accuracy == pytest.approx(0.9525)
        # The log of the header is read before that of the learner.
        seen = sees(observer, lambda now: any(node.says == "training" for node in now.nodes))
        assert {node.name: node.says for node in seen.nodes} == {
            "header": "round 1 began",
            "learner-1": "training",
            "learner-2": "",
        }
