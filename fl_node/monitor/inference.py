"""Asks a run's global weights about an image, in a process of its own.

TensorFlow takes seconds to load and half a gigabyte, and its number of threads can't be changed afterwards. So
a server runs it in a child, which is started by the first question and ends when nobody has asked for a
while. Question and answer are a line of JSON each.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fl_node.errors import DataError, FLNodeError, JsonError, WeightsError
from fl_node.monitor.reading import Newest
from fl_node.nodes.process import python
from fl_node.plan.data_sets import SIDE
from fl_node.runtime import strict_json
from fl_node.runtime.arithmetic import pin_environment

PATIENCE = 120.0
"""Seconds for one answer; the first has to load TensorFlow."""
IDLE = 600.0
"""Seconds without a question after which the process ends."""
WAITING = 4
"""Questions that may wait while one is answered."""


class Busy(FLNodeError):
    """Too many questions wait already."""


class NoAnswer(FLNodeError):
    """The question can't be answered; the message says why."""


@dataclass(frozen=True)
class TestImage:
    """A test image of the run's data set, and what it shows."""

    pixels: bytes
    label: int
    number: int
    count: int


class Predictor:
    """Answers one question after another until it is closed."""

    def __init__(self, data_dir: Path | None = None) -> None:
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._threads = 0
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(WAITING + 1)
        self._idle: threading.Timer | None = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._end()

    def predict(self, newest: Newest, pixels: bytes) -> list[float]:
        """Return the probability of each class for 28 × 28 grey pixels as MNIST has them."""
        answer = self._ask(newest, {"pixels": base64.b64encode(pixels).decode()})
        return [float(probability) for probability in answer["probabilities"]]

    def measure(self, newest: Newest) -> float:
        """Return the share of the plan's test images that these weights get right."""
        return float(self._ask(newest, {"measure": True})["accuracy"])

    def image(self, newest: Newest, draw: Callable[[int], int]) -> TestImage:
        """Return one of the plan's test images; ``draw`` chooses among that many."""
        count = int(self._ask(newest, {"count": True})["count"])
        number = draw(count)
        answer = self._ask(newest, {"image": number})
        return TestImage(base64.b64decode(answer["pixels"]), int(answer["label"]), number, count)

    def _ask(self, newest: Newest, question: Mapping[str, Any]) -> dict[str, Any]:
        if not self._waiting.acquire(blocking=False):
            raise Busy("the predictor is busy; try again in a moment")
        try:
            with self._turn:
                content = {"plan": newest.plan.model_dump(), "weights": str(newest.path), **question}
                answer = self._answer(newest.plan.training.threads, json.dumps(content).encode() + b"\n")
        finally:
            self._waiting.release()
        if "error" in answer:
            raise NoAnswer(str(answer["error"]))
        return answer

    def _answer(self, threads: int, line: bytes) -> dict[str, Any]:
        if self._process is not None and (self._process.poll() is not None or self._threads != threads):
            self._end()
        if self._process is None:
            self._start()
            self._threads = threads
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise NoAnswer("the model process did not start")
        end = threading.Timer(PATIENCE, process.kill)
        end.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = b""
        finally:
            end.cancel()
        self._rest()
        try:
            content: dict[str, Any] = strict_json.loads(answer)
        except JsonError:
            self._end()
            raise NoAnswer("the model process ended or timed out; is there enough memory?") from None
        return content

    def _start(self) -> None:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if self._data_dir is not None:
            environment["FL_NODE_DATA_DIR"] = str(self._data_dir)
        self._process = subprocess.Popen(
            python("fl_node.monitor.inference"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, at whose end this one reads the end of its input
        )

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = threading.Timer(IDLE, self._fall_asleep)
        self._idle.daemon = True
        self._idle.start()

    def _fall_asleep(self) -> None:
        if self._turn.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._turn.release()

    def _end(self) -> None:
        process, self._process = self._process, None
        if self._idle is not None:
            self._idle.cancel()
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was never read
                    pipe.close()


class _Model:
    """The model of the plan that was asked for last, and its data set."""

    def __init__(self) -> None:
        self._plan: Any = None
        self._trainer: Any = None
        self._data: Any = None

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        from fl_node.plan.schema import Plan

        plan = Plan.model_validate(question["plan"])
        if plan != self._plan:
            self._plan, self._trainer, self._data = plan, None, None
        if plan.custom is not None or plan.data.image_size != (SIDE, SIDE):
            raise DataError(
                f"the form needs a model for images of {SIDE} × {SIDE} pixels; the run's model takes others"
            )
        if "count" in question:
            return {"count": len(self._tests(plan)[1])}
        if "image" in question:
            images, labels = self._tests(plan)
            number = int(question["image"])
            return {"pixels": base64.b64encode(images[number].tobytes()).decode(), "label": int(labels[number])}
        trainer, tensors = self._weights(plan, Path(question["weights"]))
        if "measure" in question:
            from fl_node.models.keras_trainer import score

            images, labels = self._tests(plan)
            return {"accuracy": score(trainer.predict(tensors, images), labels).accuracy}
        pixels = np.frombuffer(base64.b64decode(question["pixels"]), np.uint8).reshape(1, SIDE, SIDE)
        return {"probabilities": [float(probability) for probability in trainer.predict(tensors, pixels)[0]]}

    def _tests(self, plan: Any) -> tuple[Any, Any]:
        from fl_node.data import datasets, loading

        if self._data is None:
            # A folder is named, so that nothing is downloaded for this.
            folder = Path(os.environ.get("FL_NODE_DATA_DIR") or datasets.cache_dir())
            self._data = loading.load_images(plan, folder)
        count = plan.data.test
        return self._data.test_images[:count], self._data.test_labels[:count]

    def _weights(self, plan: Any, path: Path) -> tuple[Any, Any]:
        from fl_node.artifacts import model_file
        from fl_node.protocol.global_files import global_shapes

        # Before TensorFlow is loaded: by then there may be newer weights, and these gone.
        file = model_file.read(path)
        tensors = file.tensors()
        if self._trainer is None:
            from fl_node.models.ensemble import trainer_for

            self._trainer = trainer_for(plan)
        if file.shapes != global_shapes(plan, self._trainer.shapes()):
            raise WeightsError("the global weights do not fit the plan's model")
        return self._trainer, tensors


def main() -> None:
    """Answer questions from standard input on standard output, until there are no more."""
    pin_environment()
    answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    model = _Model()
    for line in sys.stdin.buffer:
        try:
            answer = model.answer(strict_json.loads(line))
        except OSError as error:
            answer = {"error": error.strerror or "the weights can't be read"}
        except (FLNodeError, ValueError, KeyError, IndexError) as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
