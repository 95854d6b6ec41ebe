"""One process that trains for several learners of a host in turn, so that their model library is in memory once.

The process is a :class:`TrainerServer`, behind a socket that only its own user can open. A learner asks it through a
:class:`SharedTrainer`, and loads neither the library nor the images. A training depends on its arguments alone, so
the bits are those of a learner with a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fl_node import events
from fl_node.artifacts.model_file import Shapes, Tensors
from fl_node.attacks.attack import Poison
from fl_node.data.datasets import Images, Labels
from fl_node.errors import ConfigError, FLNodeError
from fl_node.models.trainer import MakeTrainer, OnEpoch, Probabilities, Score, Trainer
from fl_node.plan.schema import Plan
from fl_node.runtime.logs import emit

if TYPE_CHECKING:
    from fl_node.data.loading import Data

BACKLOG = 1024
"""Connections that may wait: more than a run has learners."""
MAX_PATH = 107
"""The most bytes of a socket's path on Linux."""
TRY_AGAIN = 1.0
"""Seconds between attempts to reach the process."""
MANY = 5
"""Connections that end without a result before the learner reports it."""
QUICK = ("shapes", "initial", "labels", "evaluate")
"""What does not wait for the trainings that were asked for before: whoever has trained publishes first."""
_OTHER_VERSION = (
    "--trainer: the process that trains and the learner are of different versions, as after an update of fl-node; "
    "restart both"
)
_UNREADABLE = (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError)
"""Errors of reading what a process of another version of ``fl-node`` sends."""


def serves(plan: Plan) -> bool:
    """Return whether one process can train a plan for several learners.

    It can't where learners attack, because only they know how, or where a learner measures other learners' models.
    """
    return plan.attack is None and not plan.measures_members and plan.mode != "ensemble"


@dataclass(order=True)
class _Request:
    priority: int
    number: int
    plan: Plan = field(compare=False)
    method: str = field(compare=False)
    arguments: dict[str, Any] = field(compare=False)
    answers: queue.SimpleQueue[tuple[str, Any]] = field(compare=False, default_factory=queue.SimpleQueue)
    """Each a kind and its content: ``epoch`` any number of times, then ``result``, ``error``, or ``again``."""
    is_lost: bool = field(compare=False, default=False)
    """Whether nobody waits for the answer any more."""


class _Lost(Exception):
    """Nobody waits for this training any more."""


class TrainerServer:
    """Answers requests one at a time, with the trainer of one plan.

    Parameters
    ----------
    path
        The socket, in a folder that nobody else can write to. That of a process that has ended is replaced.
    make_trainer
        Returns a plan's trainer, with the plan's data.

    Raises
    ------
    ConfigError
        The socket can't be created: others can write to its folder, another process listens on it, or something
        else has its path.
    """

    def __init__(self, path: Path, make_trainer: MakeTrainer) -> None:
        self._make_trainer = make_trainer
        self._trainer: Trainer | None = None
        self._requests: queue.PriorityQueue[_Request] = queue.PriorityQueue()
        self._is_closed = False
        mask = os.umask(0o177)
        try:
            _check_folder("--socket", path)
            _remove_stale(path)
            self._listener = Listener(str(path), "AF_UNIX", BACKLOG)
        except OSError as error:
            raise ConfigError(f"--socket {path}: {error.strerror or error}") from error
        finally:
            os.umask(mask)

    def close(self) -> None:
        """Stop answering."""
        self._is_closed = True
        self._listener.close()

    def serve(self) -> None:
        """Answer requests until one is about another plan than the first one.

        The number of threads is set for a whole process, so another plan needs another process.
        """
        threading.Thread(target=self._accept, daemon=True).start()
        while True:
            request = self._requests.get()
            if self._trainer is not None and self._trainer.plan != request.plan:
                self.close()  # whoever asks again must not ask here, where nobody answers any more
                request.answers.put(("again", None))
                return
            if not request.is_lost:
                request.answers.put(self._answer(request))

    def _accept(self) -> None:
        numbers = itertools.count()
        while not self._is_closed:
            try:
                connection = self._listener.accept()
            except (EOFError, OSError, AuthenticationError):
                continue
            # Each has a thread of its own, so that a learner that is suspended holds up nobody.
            threading.Thread(target=self._attend, args=(connection, next(numbers)), daemon=True).start()

    def _attend(self, connection: Connection, number: int) -> None:
        """Read a request and send its answers."""
        with connection, contextlib.suppress(EOFError, OSError):
            try:
                plan, method, arguments = connection.recv()
            except _UNREADABLE:
                connection.send(("error", ConfigError(_OTHER_VERSION)))
                return
            request = _Request(0 if method in QUICK else 1, number, plan, method, arguments)
            self._requests.put(request)
            try:
                kind = "epoch"
                while kind == "epoch":
                    kind, content = request.answers.get()
                    connection.send((kind, content))
            finally:
                request.is_lost = True

    def _answer(self, request: _Request) -> tuple[str, Any]:
        def on_epoch(*epoch: float) -> None:
            if request.is_lost:
                raise _Lost
            request.answers.put(("epoch", epoch))

        arguments = request.arguments | ({"on_epoch": on_epoch} if request.method == "train" else {})
        try:
            if self._trainer is None:
                self._trainer = self._make_trainer(request.plan)
            return "result", getattr(self._trainer, request.method)(**arguments)
        except (FLNodeError, _Lost) as error:
            return "error", error


def _check_folder(option: str, path: Path) -> None:
    """Check that nobody else can put a socket at this path: both sides execute what they receive (pickle).

    Parameters
    ----------
    option
        The option that names the socket.
    path
        The socket.

    Raises
    ------
    ConfigError
        Others can write to its folder.
    OSError
        There is no such folder.
    """
    folder = path.absolute().parent.stat()
    if folder.st_uid not in (0, os.geteuid()) or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{option} {path}: others can write to its folder; use one that only this user can write to: mkdir -m 700"
        )


def _check_socket(path: Path) -> None:
    """Check that a process can be reached at this path, now or when it is up.

    Parameters
    ----------
    path
        The socket.

    Raises
    ------
    ConfigError
        Something else than a socket has the path, or no socket can have it.
    OSError
        Nothing has the path.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(f"--trainer {path}: the path of a socket has at most {MAX_PATH} bytes")
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(f"--trainer {path}: it is not a socket; name that of fl-node trainer --socket")


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that has ended.

    Raises
    ------
    ConfigError
        A process listens on it, or something else has its path.
    OSError
        It can't be removed.
    """
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError(f"--socket {path}: it exists and is not a socket; name a path that is not in use")
    with socket.socket(socket.AF_UNIX) as attempt:
        attempt.settimeout(TRY_AGAIN)
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            attempt.connect(str(path))
            raise ConfigError(f"--socket {path}: another process listens on it; stop it, or name another path")
    path.unlink(missing_ok=True)


class SharedTrainer:
    """A plan's trainer in another process of this host.

    If that process ends, it is asked again when it is back: it starts the training anew, to the same bits.

    Parameters
    ----------
    plan
        The run's plan, which the process can train (:func:`serves`).
    path
        The socket of a :class:`TrainerServer`.
    """

    def __init__(self, plan: Plan, path: Path) -> None:
        self.plan = plan
        self.data: Data | None = None
        self._path = path
        self._known: dict[str, Any] = {}

    def initial(self) -> Tensors:
        """Return the weights that a run starts from."""
        known: Tensors = self._once("initial")
        return known

    def shapes(self) -> Shapes:
        """Return the names and shapes of the model's tensors."""
        known: Shapes = self._once("shapes")
        return known

    def labels(self) -> Labels:
        """Return the labels of all training images, shape ``(count,)``."""
        known: Labels = self._once("labels")
        return known

    def train(
        self,
        weights: Tensors,
        samples: npt.NDArray[np.int64],
        seed: int,
        on_epoch: OnEpoch = lambda _epoch, _accuracy, _loss: None,
        *,
        poison: Poison | None = None,
        teacher: Tensors | None = None,
        secret: bytes | None = None,
    ) -> Tensors:
        """Train when it is this learner's turn.

        Parameters
        ----------
        weights, samples, seed, on_epoch, teacher, secret
            As for :meth:`fl_node.models.trainer.Trainer.train`.
        poison
            None: a learner that attacks trains by itself.
        """
        assert poison is None
        trained: Tensors = self._ask(
            "train",
            on_epoch,
            weights=dict(weights),
            samples=samples,
            seed=seed,
            teacher=None if teacher is None else dict(teacher),
            secret=secret,
        )
        return trained

    def evaluate(self, weights: Tensors) -> Score:
        """Return what ``weights`` reach on the plan's test images."""
        score: Score = self._ask("evaluate", weights=dict(weights))
        return score

    def tests(self) -> tuple[Images, Labels]:
        """Return the plan's test images and their labels."""
        tests: tuple[Images, Labels] = self._ask("tests")
        return tests

    def predict(self, weights: Tensors, images: Images) -> Probabilities:
        """Return the probability of each class for each image, shape ``(count, classes)``."""
        probabilities: Probabilities = self._ask("predict", weights=dict(weights), images=images)
        return probabilities

    def members(self, weights: Tensors) -> dict[str, Score]:
        """Return what each model of an ensemble reaches alone, by its architecture; nothing for one model."""
        scores: dict[str, Score] = self._ask("members", weights=dict(weights))
        return scores

    def save(self, weights: Tensors, path: Path) -> None:
        """Write ``weights`` as a ``.keras`` model that Keras alone can load."""
        self._ask("save", weights=dict(weights), path=path)

    def _once(self, method: str) -> Any:
        if method not in self._known:
            self._known[method] = self._ask(method)
        return self._known[method]

    def _ask(self, method: str, on_epoch: OnEpoch = lambda _epoch, _accuracy, _loss: None, **arguments: Any) -> Any:
        seen = 0
        for connection in self._connections():
            with connection:
                for kind, content in _answers(connection, (self.plan, method, arguments)):
                    if kind == "error":
                        raise content
                    if kind == "result":
                        return content
                    # Not again after the process was started anew.
                    if kind == "epoch" and content[0] > seen:
                        seen = content[0]
                        on_epoch(*content)
        raise AssertionError("there is always another connection")

    def _connections(self) -> Iterator[Connection]:
        """Yield a new connection whenever the process can be reached.

        Raises
        ------
        ConfigError
            Others can write to the folder of the socket, or what has its path can be no socket.
        """
        told, broken = False, 0
        while True:
            try:
                _check_folder("--trainer", self._path)
                _check_socket(self._path)
                connection = Client(str(self._path), "AF_UNIX")
            except (OSError, EOFError, AuthenticationError) as error:
                if not told:
                    told = True
                    self._report(getattr(error, "strerror", None) or "it closes the connection")
            else:
                told = False
                yield connection
                # Once is nothing: it was killed, or starts anew for another plan.
                broken += 1
                if broken == MANY:
                    self._report("it has closed the connection many times without a result; its log says why")
            time.sleep(TRY_AGAIN)

    def _report(self, reason: str) -> None:
        detail = f"the process that trains for this host's learners ({self._path}): {reason}"
        emit(events.Waiting(reason="trainer", detail=detail))


def _answers(connection: Connection, request: tuple[Plan, str, dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield what a process answers, until the connection breaks.

    Raises
    ------
    ConfigError
        The answer can't be read.
    """
    try:
        connection.send(request)
        while True:
            try:
                answer = connection.recv()
            except _UNREADABLE as error:
                raise ConfigError(_OTHER_VERSION) from error
            yield answer
    except (EOFError, OSError):
        return
