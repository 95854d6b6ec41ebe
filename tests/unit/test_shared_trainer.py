"""One process that trains for several learners: their turns, their bits, and what if either side is lost."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fl_node.errors import ConfigError, DataError
from fl_node.models import shared_trainer
from fl_node.models.shared_trainer import SharedTrainer, TrainerServer
from fl_node.models.trainer import MakeTrainer, OnEpoch
from fl_node.plan.schema import Plan
from fl_node.runtime.tensors import Tensors
from fl_node.runtime.waiting import wait_until
from tests.helpers.runs import plan
from tests.helpers.stub import StubTrainer, add, depend_on_everything

PLAN = plan(rounds=2)
SAMPLES = np.arange(5)
Serve = Callable[..., SharedTrainer]


def eventually(holds: Callable[[], bool]) -> bool:
    return wait_until(holds, 30, 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trainer.sock"


@pytest.fixture
def servers() -> Iterator[list[TrainerServer]]:
    started: list[TrainerServer] = []
    yield started
    for server in started:
        server.close()


@pytest.fixture
def serve(path: Path, servers: list[TrainerServer]) -> Serve:
    """Serve a trainer in a thread, and return what a learner has of it."""

    def start(make: MakeTrainer = lambda plan: StubTrainer(plan, update=depend_on_everything)) -> SharedTrainer:
        servers.append(TrainerServer(path, make))
        threading.Thread(target=servers[-1].serve, daemon=True).start()
        return SharedTrainer(PLAN, path)

    return start


def train(trainer: Any, seed: int = 1, on_epoch: OnEpoch = lambda *_: None) -> Tensors:
    trained: Tensors = trainer.train(trainer.initial(), SAMPLES, seed, on_epoch)
    return trained


def is_same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_its_bits_are_those_of_a_trainer_of_ones_own(serve: Serve) -> None:
    shared, own = serve(), StubTrainer(PLAN, update=depend_on_everything)
    assert shared.shapes() == own.shapes()
    assert is_same(shared.initial(), own.initial())
    assert is_same(train(shared), train(own))
    assert shared.evaluate(own.initial()) == own.evaluate(own.initial())


def test_learners_that_ask_at_the_same_time_get_their_own_results(serve: Serve) -> None:
    shared, own = serve(), StubTrainer(PLAN, update=depend_on_everything)
    with ThreadPoolExecutor(10) as pool:
        trained = list(pool.map(lambda seed: train(SharedTrainer(PLAN, shared._path), seed), range(10)))
    assert all(is_same(tensors, train(own, seed)) for seed, tensors in enumerate(trained))


def test_a_learner_hears_what_each_epoch_reached(serve: Serve) -> None:
    epochs: list[tuple[float, ...]] = []
    train(serve(lambda plan: StubTrainer(plan, update=add(1.0))), on_epoch=lambda *epoch: epochs.append(epoch))
    assert epochs == [(1, 0.5, 0.25)]


def test_nobody_else_can_open_its_socket(serve: Serve, path: Path) -> None:
    serve()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_socket_that_can_not_be_created_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        TrainerServer(tmp_path / "missing" / "trainer.sock", lambda plan: StubTrainer(plan, update=add(1.0)))


def stub(asked: Plan) -> StubTrainer:
    return StubTrainer(asked, update=add(1.0))


def test_a_file_that_has_the_path_of_the_socket_stays(path: Path) -> None:
    path.write_text("a key")
    with pytest.raises(ConfigError, match=r"trainer\.sock"):
        TrainerServer(path, stub)
    assert path.read_text() == "a key"


def test_a_link_that_has_the_path_of_the_socket_stays(path: Path) -> None:
    path.symlink_to("elsewhere")
    with pytest.raises(ConfigError, match=r"trainer\.sock"):
        TrainerServer(path, stub)
    assert path.is_symlink()


def test_a_second_process_does_not_take_the_socket_of_the_first(serve: Serve, path: Path) -> None:
    first = serve()
    with pytest.raises(ConfigError, match=r"trainer\.sock"):
        TrainerServer(path, stub)
    assert first.shapes()


def test_the_socket_of_a_process_that_was_killed_is_replaced(serve: Serve, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert serve().shapes()


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777])
def test_a_folder_in_which_others_could_put_a_socket_is_refused_by_both_sides(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    path = folder / "trainer.sock"
    with Listener(str(path), "AF_UNIX"):
        folder.chmod(mode)
        with pytest.raises(ConfigError, match="--trainer"):
            SharedTrainer(PLAN, path).shapes()
    with pytest.raises(ConfigError, match="--socket"):
        TrainerServer(path, stub)


def test_a_folder_of_another_user_is_refused_by_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    path = folder / "trainer.sock"
    with Listener(str(path), "AF_UNIX"):
        if os.geteuid() == 0:
            os.chown(folder, 65534, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
        with pytest.raises(ConfigError, match="--trainer"):
            SharedTrainer(PLAN, path).shapes()
        with pytest.raises(ConfigError, match="--socket"):
            TrainerServer(path, stub)


def test_an_error_is_the_learners_too(serve: Serve) -> None:
    def without_data(_plan: Plan) -> StubTrainer:
        raise DataError("no images")

    with pytest.raises(DataError, match="no images"):
        serve(without_data).shapes()


def test_what_is_quick_does_not_wait_for_trainings_that_were_asked_for_before(
    serve: Serve, servers: list[TrainerServer]
) -> None:
    order: list[str] = []
    may_end = threading.Event()

    class Recording(StubTrainer):
        def train(self, *arguments: Any, **named: Any) -> Tensors:
            order.append("train")
            may_end.wait(30)
            return super().train(*arguments, **named)

        def evaluate(self, weights: Tensors) -> Any:
            order.append("evaluate")
            return super().evaluate(weights)

    shared = serve(lambda plan: Recording(plan, update=add(1.0)))
    initial = shared.initial()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(train, SharedTrainer(PLAN, shared._path))
        assert eventually(lambda: order == ["train"])
        second = pool.submit(train, SharedTrainer(PLAN, shared._path))
        third = pool.submit(shared.evaluate, initial)
        assert eventually(lambda: servers[0]._requests.qsize() == 2)
        may_end.set()
        for each in (first, second, third):
            each.result(30)
    assert order == ["train", "evaluate", "train"]


def test_a_process_that_is_lost_in_the_middle_is_asked_again(
    serve: Serve, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_trainer, "TRY_AGAIN", 0.01)
    epochs: list[int] = []
    broken = Listener(str(path), "AF_UNIX")
    with ThreadPoolExecutor(1) as pool:
        shared = SharedTrainer(PLAN, path)
        shared._known["initial"] = StubTrainer(PLAN, update=add(1.0)).initial()
        trained = pool.submit(train, shared, 1, lambda epoch, *_: epochs.append(epoch))
        with broken.accept() as connection:
            connection.recv()
            connection.send(("epoch", (1, 0.5, 0.25)))
        broken.close()
        serve(lambda plan: StubTrainer(plan, update=add(1.0)))
        assert is_same(trained.result(30), train(StubTrainer(PLAN, update=add(1.0))))
    assert epochs == [1]


def test_a_training_that_nobody_waits_for_any_more_is_given_up(serve: Serve, path: Path) -> None:
    begun, lost = threading.Event(), threading.Event()
    ended: list[int] = []

    def update(_plan: Plan, weights: Tensors, _samples: Any, _seed: int, on_epoch: OnEpoch) -> Tensors:
        begun.set()
        lost.wait(30)
        for epoch in range(1, 10_000_000):
            ended.append(epoch)
            on_epoch(epoch, 0.5, 0.5)
        return weights

    shared = serve(lambda plan: StubTrainer(plan, update=update))
    with Client(str(path), "AF_UNIX") as learner:
        arguments = {"weights": shared.initial(), "samples": SAMPLES, "seed": 1}
        learner.send((PLAN, "train", arguments))
        begun.wait(30)
    lost.set()
    assert shared.evaluate(shared.initial()).count  # the next one's turn has come
    assert len(ended) < 9_999_999


def test_what_a_learner_of_another_version_sends_is_an_error_of_that_learner_alone(serve: Serve, path: Path) -> None:
    shared = serve()
    for unreadable in (b"no pickle", pickle.dumps(("too", "few")), b"cno_such_module\nname\n."):
        with Client(str(path), "AF_UNIX") as learner:
            learner.send_bytes(unreadable)
            kind, error = learner.recv()
        assert kind == "error"
        assert isinstance(error, ConfigError)
    assert shared.shapes()


def test_an_answer_of_another_version_is_an_error(path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, Listener(str(path), "AF_UNIX") as other:
        asked = pool.submit(SharedTrainer(PLAN, path).shapes)
        with other.accept() as connection:
            connection.recv()
            connection.send_bytes(b"cno_such_module\nname\n.")
            with pytest.raises(ConfigError):
                asked.result(30)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(shared_trainer, "time", SimpleNamespace(sleep=sleep))


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_an_error_and_not_waited_for(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    else:
        path.with_name("file").write_text("")
        path.symlink_to("file") if kind == "link" else path.with_name("file").rename(path)
    with pytest.raises(ConfigError, match=f"--trainer {path}: it is not a socket"):
        SharedTrainer(PLAN, path).shapes()


@pytest.mark.usefixtures("no_waiting")
def test_a_path_that_no_socket_can_have_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a socket has at most 107 bytes"):
        SharedTrainer(PLAN, tmp_path / ("a" * 107)).shapes()


def test_a_process_that_never_answers_is_reported(
    serve: Serve, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_trainer, "TRY_AGAIN", 0.01)
    caplog.set_level("INFO")
    with ThreadPoolExecutor(1) as pool:
        with Listener(str(path), "AF_UNIX") as broken:
            asked = pool.submit(SharedTrainer(PLAN, path).shapes)
            for _ in range(shared_trainer.MANY):
                broken.accept().close()
            assert eventually(lambda: "waiting" in [getattr(record, "event", "") for record in caplog.records])
        serve()
        assert asked.result(30)


def test_another_plan_ends_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_trainer, "TRY_AGAIN", 0.01)
    server = TrainerServer(path, lambda plan: StubTrainer(plan, update=add(1.0)))
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    SharedTrainer(PLAN, path).shapes()
    other = plan(rounds=3)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(SharedTrainer(other, path).shapes)
        thread.join(30)
        assert not thread.is_alive()
        server.close()
        second = TrainerServer(path, lambda plan: StubTrainer(plan, update=add(1.0)))
        threading.Thread(target=second.serve, daemon=True).start()
        assert asked.result(30) == StubTrainer(other, update=add(1.0)).shapes()
    second.close()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"attack": {"data": "label_flip", "learners": [1]}}, False),
    ],
)
def test_learners_that_attack_train_by_themselves(settings: dict[str, Any], expected: bool) -> None:
    assert shared_trainer.serves(plan(**settings)) is expected
