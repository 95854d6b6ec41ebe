"""A learner's curves as event files of TensorBoard (https://www.tensorflow.org/tensorboard)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_node import events
from fl_node.errors import ConfigError
from fl_node.runtime.logs import emit

_SCALAR = 1
"""``DATA_CLASS_SCALAR`` of TensorBoard's format."""


class EventFiles:
    """Event files of learners, each in its folder ``learner-N``; learners call this object with their values.

    A learner that was killed and started again writes one more file to its folder; the round that it trains again
    has the same figures at the same steps. Nothing here touches what is trained.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, Any] = {}
        self._broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--tensorboard {folder}: {error.strerror}") from error

    def __call__(self, node_id: int, tag: str, value: float, step: int) -> None:
        """Write a value and flush the file."""
        if self._broken:
            return
        import tensorflow as tf

        try:
            if node_id not in self._writers:
                self._writers[node_id] = tf.summary.create_file_writer(str(self._folder / f"learner-{node_id}"))
            with self._writers[node_id].as_default():
                # As tf.summary.scalar does, which needs the package that shows the files.
                kind = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"}, data_class=_SCALAR)
                tf.summary.write(tag, tf.constant(value, tf.float32), step, kind)
            self._writers[node_id].flush()
        except tf.errors.OpError as error:
            # A full disk is no reason to train no more.
            self._broken = True
            emit(events.EventFilesStopped(detail=" ".join(str(error).split())))
