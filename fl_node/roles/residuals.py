"""Error feedback: stores what compressed updates left out, and adds it to the learner's next update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fl_node import events
from fl_node.artifacts.model_file import Shapes, Tensors
from fl_node.runtime import files
from fl_node.runtime.logs import emit


class Residuals:
    """A learner's residuals in a run: the one that the last trained round started from, and the one that it left.

    Each is kept under the first round in which it counts. So a round that is trained again, after a kill or because
    its global weights were withdrawn, starts from the same residual, also if the learner missed rounds before it.

    Parameters
    ----------
    folder
        The learner's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, round_: int, shapes: Shapes) -> Tensors:
        """Return the residuals for a round, by name; empty if no update left anything out yet.

        Parameters
        ----------
        round_
            The round.
        shapes
            The shapes of the learner's model.
        """
        newest = self._start(round_)
        if newest < 0:
            return {}
        path = self._path(newest)
        try:
            residual = load_file(path)
        except (OSError, SafetensorError) as error:
            return self._discard(round_, path, str(error))
        found = {name: tensor.shape for name, tensor in residual.items()}
        if found != dict(shapes) or not all(np.isfinite(tensor).all() for tensor in residual.values()):
            return self._discard(round_, path, "it has other tensors than this model, or values that are not finite")
        return residual

    def save(self, round_: int, residual: Tensors) -> None:
        """Save what this round's update leaves out, and delete the residuals of other rounds."""
        files.write(self._path(round_ + 1), save(dict(residual)))
        kept = (self._start(round_), round_ + 1)
        for number in self._numbers():
            if number not in kept:
                self._path(number).unlink(missing_ok=True)

    def _discard(self, round_: int, path: Path, detail: str) -> Tensors:
        emit(events.ResidualDiscarded(round=round_, file=path.name, detail=detail))
        return {}

    def _path(self, number: int) -> Path:
        return self._folder / f"residual-{number}.safetensors"

    def _start(self, round_: int) -> int:
        """Return the number of the residual that a round starts from; -1 if there is none."""
        return max((number for number in self._numbers() if number <= round_), default=-1)

    def _numbers(self) -> list[int]:
        names = [path.stem.removeprefix("residual-") for path in self._folder.glob("residual-*.safetensors")]
        return [int(name) for name in names if name.isdecimal()]
