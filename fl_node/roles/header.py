"""The header: leads a run from its initial weights to its last round; its strategy closes the rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NoReturn

from fl_node import events
from fl_node.artifacts.model_file import WeightsFile
from fl_node.chain.contract import State
from fl_node.errors import ContractError, FLNodeError
from fl_node.plan.schema import Plan
from fl_node.protocol.global_files import initial_file
from fl_node.protocol.names import learners_label
from fl_node.roles.deploy import start
from fl_node.roles.ending import Ending
from fl_node.roles.impasse import Lookout, name_wrong_keys
from fl_node.roles.loop import Done, Site, Waiting
from fl_node.roles.pruner import Pruner
from fl_node.roles.strategy import Context, Strategy
from fl_node.runtime.logs import emit

_EVALUATION = "evaluation-{}.model"
"""Name of a second link to global weights while they are evaluated."""


class Header:
    """The header of a run.

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
        self._evaluated = ""  # the CID of the weights that were measured last
        self._successor: str | None = None  # the account that is the header while this one stands by
        self._ending = Ending(context.site, context.plan, context.global_file)
        self._lookout = Lookout(context.site, context.plan, context.reader)
        self._keys_seen = False  # whether it has named what is wrong with the first keys
        self._evaluator = ThreadPoolExecutor(1) if evaluate else None
        for left in self._site.folder.glob(_EVALUATION.format("*")):  # by a killed process
            left.unlink(missing_ok=True)
        self._pruner = Pruner.of(context.site, context.plan)

    def close(self) -> None:
        """Stop background work."""
        if self._pruner is not None:
            self._pruner.close()
        self._context.arrivals.keep(())
        if self._evaluator:
            self._evaluator.shutdown(cancel_futures=True)

    @property
    def round(self) -> int:
        """The last round whose files were processed; -1 before the first."""
        return self._strategy.round

    def step(self) -> Waiting | None:
        """Read the contract and take the next step.

        Raises
        ------
        Done
            The run has ended.
        RunStuck
            The run has masks and can never go on.
        """
        contract, plan, context = self._site.contract, self._plan, self._context
        view = contract.view(self._site.chain.address)
        self._site.see(view, plan)
        state = view.state
        is_last = self._ending.is_last(state)
        if is_last and (waiting := self._ending.wait_for_attestations(state)) is None:
            self._finish(state)
        if state.header != self._site.chain.address:
            return self._stand_by(state)
        if self._successor is not None:
            self._successor = None
            emit(events.HeaderTakenOver(round=state.round))
        if state.global_cid is None:
            keys = contract.keys(0, view.learners, view.block) if plan.is_masked else {}
            if plan.is_masked and len(keys) < plan.learners:
                return _missing_keys(plan, keys)
            if plan.is_masked and not self._keys_seen:
                self._keys_seen = True
                name_wrong_keys(0, keys)
            initial = initial_file(context.global_path(0), plan, context.plan_cid, context.trainer.initial(), keys)
            start(contract, self._site.store, initial)
            return None
        self._evaluate(state.round, state.global_cid)
        if is_last:
            return waiting
        if waiting := self._strategy.wait_for(view, state.global_cid):
            if self._pruner is not None and not state.closed:
                self._pruner.look(state.round, None)
            return waiting
        return self._publish(self._aggregate(state.round), view.nonce)

    def _finish(self, state: State) -> NoReturn:
        """End the role after the last global weights are evaluated.

        Raises
        ------
        Done
            Always.
        """
        if self._evaluator:
            if state.header == self._site.chain.address:
                self._evaluate(state.round, str(state.global_cid))
            self._evaluator.shutdown()
        if self._pruner is not None:
            self._pruner.finish(None)
        emit(events.RunFinished(round=state.round))
        raise Done

    def _stand_by(self, state: State) -> Waiting:
        """Wait until the contract names this account; another one leads the run."""
        if self._successor != state.header:
            self._successor = state.header
            self._context.arrivals.keep(())
            emit(events.HeaderReplaced(round=state.round, header=str(state.header)))
        return self._lookout.wait(state) or standing_by(self._site, state)

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
        try:
            receipt = self._site.contract.set_global_weight(file.cid, nonce)
        except ContractError as error:
            if error.name != "NotHeader":
                raise
            return None  # replaced a moment ago
        if receipt is None:
            return Waiting("block", f"a block with global weights {number}", round=number)
        self._pending = ""
        emit(events.GlobalWeightsPublished(round=number, cid=file.cid, block=receipt.block, gas=receipt.gas))
        self._strategy.forget(file)
        self._context.reader.forget(file.path)
        return None

    def _evaluate(self, round_: int, name: str) -> None:
        if self._evaluator is None or self._evaluated == name:
            return
        self._evaluated = name
        file = self._context.global_file(round_, name)
        # The file of a round is deleted when the next one begins, perhaps before it is evaluated.
        path = file.path.with_name(_EVALUATION.format(round_))
        path.unlink(missing_ok=True)
        try:
            path.hardlink_to(file.path)
            tensors = replace(file, path=path).on_demand()
        except OSError:  # a file system without links
            tensors = file.tensors()

        def work() -> None:
            try:
                score = self._context.trainer.evaluate(tensors)
            except (FLNodeError, OSError) as error:
                emit(events.EvaluationFailed(round=round_, detail=str(error)))
                return
            finally:
                path.unlink(missing_ok=True)
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


def _missing_keys(plan: Plan, keys: Collection[int]) -> Waiting:
    """Return the wait of a run with masks before its first round."""
    who = tuple(node_id for node_id in range(1, plan.learners + 1) if node_id not in keys)
    return Waiting("keys", f"{learners_label(who)} to announce a key for masks", learners=who)


def standing_by(site: Site, state: State) -> Waiting:
    """Return the wait of a header while another account is the header.

    Parameters
    ----------
    site
        Its node.
    state
        What the contract says now.
    """
    text = f"to become the header; the contract names {state.header}"
    return Waiting("standby", text, round=state.round, watch=site.contract.state, seen=state, by_event=True)
