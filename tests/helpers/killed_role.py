"""A role that ends by SIGKILL when it logs a certain event of a round, or at a batch within that round's training.

python -m tests.helpers.killed_role EVENT|batch ROUND header|learner OPTION…
"""

from __future__ import annotations

import sys
from typing import Any

from fl_node.cli import app
from fl_node.models.keras_trainer import KerasTrainer
from tests.helpers.at_event import at_event, kill


def main() -> None:
    where, round_ = sys.argv[1], int(sys.argv[2])
    sys.argv[1:] = sys.argv[3:]
    if where == "batch":
        at_event("training_started", round_, _kill_while_training)
    else:
        at_event(where, round_, kill)
    app.main()


def _kill_while_training() -> None:
    import keras

    class Killer(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            if batch == 3:
                kill()

    original = KerasTrainer.train

    def train(self: KerasTrainer, *arguments: Any, **options: Any) -> Any:
        fit = self.model.fit
        self.model.fit = lambda *args, **kwargs: fit(*args, callbacks=[Killer()], **kwargs)
        return original(self, *arguments, **options)

    KerasTrainer.train = train  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
