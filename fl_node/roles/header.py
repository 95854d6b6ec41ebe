"""The header: leads a run from its initial weights to its last round, in the way that its strategy closes a round."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

from fl_node import events
from fl_node.artifacts.model_file import WeightsFile
from fl_node.errors import FLNodeError
from fl_node.protocol.global_files import initial_file
from fl_node.roles.deploy import start
from fl_node.roles.loop import Done, Waiting
from fl_node.roles.strategy import Context, Strategy
from fl_node.runtime.logs import emit


class Header:
    """The header in one run.

    Parameters
    ----------
    context
        Its node, the run's plan and model, and the files.
    strategy
        Says when a round closes, and makes its global weights.
    evaluate
        Measure each round's global weights in the background.
    """

    def __init__(self, context: Context, strategy: Strategy, *, evaluate: bool) -> None:
        self._context = context
        self._strategy = strategy
        self._site = context.site
        self._plan = context.plan
        self._pending = ""  # the file that no block has taken yet: made again, it is not spoken of again
        self._evaluated: int | None = None
        self._evaluator = ThreadPoolExecutor(1) if evaluate else None

    def close(self) -> None:
        """End what goes on in the background."""
        self._context.arrivals.keep(())
        if self._evaluator:
            self._evaluator.shutdown(cancel_futures=True)

    @property
    def round(self) -> int:
        """The round whose files were looked at last; -1 before the first."""
        return self._strategy.round

    def step(self) -> Waiting | None:
        """Read the contract and take the next step.

        Raises
        ------
        Done
            The run has ended.
        """
        contract, plan, context = self._site.contract, self._plan, self._context
        view = contract.look(self._site.chain.address)
        state = view.state
        if state.global_cid is None:
            initial = initial_file(context.global_path(0), plan, context.plan_cid, context.trainer.initial())
            start(contract, self._site.store, initial)
            return None
        if self._evaluated != state.round:
            self._evaluate(state.round, state.global_cid)
        if state.round >= plan.rounds:
            if self._evaluator:
                self._evaluator.shutdown()
            emit(events.RunFinished(round=state.round))
            raise Done
        if waiting := self._strategy.wait_for(view, state.global_cid):
            return waiting
        file = self._aggregate(state.round)
        return None if self._strategy.is_outdated() else self._publish(file, view.nonce)

    def _aggregate(self, round_: int) -> WeightsFile:
        began = time.monotonic()
        file = self._strategy.aggregate()
        self._context.reader.remember(file)
        is_new = file.cid != self._pending
        if is_new:
            emit(
                events.UpdatesAggregated(
                    round=round_,
                    cid=file.cid,
                    learners=tuple(one.node_id for one in file.global_meta.inputs),
                    seconds=time.monotonic() - began,
                )
            )
        self._site.store.add(file.path)
        if is_new:
            emit(events.FileStored(round=round_, cid=file.cid))
        return file

    def _publish(self, file: WeightsFile, nonce: int) -> Waiting | None:
        number = file.global_meta.round
        self._pending = file.cid
        receipt = self._site.contract.set_global_weight(file.cid, nonce)
        if receipt is None:
            return Waiting("block", f"a block with global weights {number}", round=number)
        self._pending = ""
        emit(events.GlobalWeightsPublished(round=number, cid=file.cid, block=receipt.block, gas=receipt.gas))
        self._strategy.forget(file)
        self._context.reader.forget(file.path)
        return None

    def _evaluate(self, round_: int, name: str) -> None:
        self._evaluated = round_
        if self._evaluator is None:
            return
        tensors = self._context.global_file(round_, name).tensors()

        def work() -> None:
            try:
                score = self._context.trainer.evaluate(tensors)
            except FLNodeError as error:
                emit(events.EvaluationFailed(round=round_, detail=str(error)))
                return
            if not math.isfinite(score.loss):
                detail = f"the model's predictions on the test {self._plan.data.noun} are not finite"
                emit(events.EvaluationFailed(round=round_, detail=detail))
                return
            emit(
                events.GlobalWeightsEvaluated(
                    round=round_,
                    cid=name,
                    accuracy=score.accuracy,
                    loss=score.loss,
                    count=score.count,
                    noun=self._plan.data.noun,
                    calibration_error=score.calibration_error,
                )
            )

        self._evaluator.submit(work)
