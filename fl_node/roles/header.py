"""The header: averages the learners' local weights into the next global weights."""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_node import events
from fl_node.aggregation import (
    check_bounds,
    follows_parent,
    global_file,
    global_shapes,
    initial_file,
    local_shapes,
)
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.download import Arrival, Downloads, logged, with_share
from fl_node.artifacts.model_file import Refusal, WeightsFile
from fl_node.artifacts.store import TooLarge, WrongContent
from fl_node.chain.client import View
from fl_node.data.partition import shard_size
from fl_node.errors import FLNodeError, StoreError, StoreUnreachable, WeightsError
from fl_node.models.evidence import evidence
from fl_node.models.keras_trainer import Trainer
from fl_node.plan.schema import Plan
from fl_node.protocol import history
from fl_node.protocol.publications import MISSING
from fl_node.roles.deploy import start
from fl_node.roles.loop import Done, Site, Waiting
from fl_node.runtime.logs import emit

FETCH_TRY = 2.0
"""Seconds in which a file should be here; then the header looks after the other learners while it arrives."""
LOOKS = 3
"""How often in a round the average is made again because somebody published in the meantime."""


@dataclass
class _Round:
    """What the header has seen of the files of the current round; a new process sees it all again."""

    parent: str
    number: int
    start: float
    """On the role's clock, in seconds."""
    taken: dict[tuple[int, str], WeightsFile | Refusal] = field(default_factory=dict)
    arrivals: dict[tuple[int, str], Arrival] = field(default_factory=dict)
    newest: dict[int, str] = field(default_factory=dict)
    """What each learner published last, as far as it was seen."""
    changes: Counter[int] = field(default_factory=Counter)
    """How often each learner was seen to publish something else."""
    too_often: set[int] = field(default_factory=set)
    """Learners of whom nothing more is read in this round."""
    said_missing: set[tuple[int, str]] = field(default_factory=set)
    looks: int = 0

    def is_missing(self, key: tuple[int, str]) -> bool:
        """Return whether a file was refused because nobody had it."""
        taken = self.taken.get(key)
        return isinstance(taken, Refusal) and taken.reason == MISSING

    def is_open(self, key: tuple[int, str]) -> bool:
        """Return whether a file is still waited for: it is not here, or was refused because nobody had it."""
        return key not in self.taken or self.is_missing(key)


class Header:
    """The header in one run."""

    def __init__(self, site: Site, plan: Plan, trainer: Trainer, *, evaluate: bool) -> None:
        self._site = site
        self._plan = plan
        self._plan_cid = site.contract.plan()
        self._trainer = trainer
        self._shapes = trainer.shapes()
        self._evidence = evidence(plan, trainer)
        self._round: _Round | None = None
        self._globals: dict[Path, WeightsFile] = {}
        self._pending = ""  # the file that no block has taken yet: made again, it is not spoken of again
        self._evaluated: int | None = None
        self._evaluator = ThreadPoolExecutor(1) if evaluate else None
        self._downloads: Downloads[tuple[int, str | int]] = Downloads(site.store)

    def close(self) -> None:
        """End what goes on in the background."""
        self._downloads.keep(())
        if self._evaluator:
            self._evaluator.shutdown(cancel_futures=True)

    @property
    def round(self) -> int:
        """The round whose files were looked at last; -1 before the first."""
        return self._round.number if self._round else -1

    def step(self) -> Waiting | None:
        """Look at the contract and do the next thing."""
        contract, plan = self._site.contract, self._plan
        view = contract.look(self._site.chain.address)
        state = view.state
        if state.global_cid is None:
            path = self._site.folder / "global-0.safetensors"
            start(contract, self._site.store, initial_file(path, plan, self._plan_cid, self._trainer.initial()))
            return None
        if self._evaluated != state.round:
            self._evaluate(state.round, state.global_cid)
        if state.round >= plan.rounds:
            if self._evaluator:
                self._evaluator.shutdown()
            emit(events.RunFinished(round=state.round))
            raise Done
        return self._lead(view, state.global_cid)

    def _lead(self, view: View, global_cid: str) -> Waiting | None:
        """Bring the round on that starts from these global weights."""
        contract, plan = self._site.contract, self._plan
        state, learners = view.state, list(view.learners)
        if len(learners) < plan.required_learners:
            return Waiting("registration", f"{plan.required_learners - len(learners)} more learners to be registered")
        if self._round is None or self._round.number != state.round or self._round.parent != global_cid:
            self._round = _Round(global_cid, state.round, self._site.timing.clock.monotonic())
            emit(events.RoundStarted(round=state.round, cid=global_cid))
        current = self._round
        published = contract.local_weights(current.number, learners)
        seen = self._changes()
        self._take(current, published)
        if waiting := self._wait_for(current, published, learners):
            return replace(waiting, watch=self._changes, seen=seen)
        file = self._aggregate(current, published, learners)
        self._site.store.add(file.path)
        if file.cid != self._pending:
            emit(events.FileStored(round=current.number, cid=file.cid))
        if current.looks < LOOKS and contract.local_weights(current.number, learners) != published:
            # Take it in; but one that publishes again and again must not keep a round open.
            current.looks += 1
            return None
        return self._publish(file, view.nonce)

    def _changes(self) -> tuple[int, int]:
        """Return what changes when there is something new to see: a block, or a file that has come."""
        return self._site.chain.block_number(), self._downloads.ended

    def _take(self, current: _Round, published: dict[int, str]) -> None:
        """Fetch and check what was published and is not here yet; what takes long arrives in the background."""
        start = self._global(current.number, current.parent)
        self._look_for_newer(current, published)
        wanted = [key for key in sorted(published.items()) if current.is_open(key)]
        self._downloads.keep(wanted)
        for key in wanted:
            arrival = current.arrivals.setdefault(key, Arrival(time.monotonic()))
            if self._downloads.get(key) is None and arrival.is_due():
                limit = model_file.size_of(self._local_shapes(key[0]))
                self._downloads.start(key, key[1], self._local_path(*key), limit, self._plan.fetch_timeout)
        self._downloads.wait(wanted, FETCH_TRY)
        away: StoreUnreachable | None = None
        for key in wanted:
            try:
                self._take_one(current, key, start)
            except StoreUnreachable as error:
                away = error
        if away is not None:
            raise away

    def _look_for_newer(self, current: _Round, published: dict[int, str]) -> None:
        """Forget what a learner has replaced, and read no more of one that publishes again and again."""
        for node_id, name in published.items():
            if current.newest.get(node_id) == name:
                continue
            current.newest[node_id] = name
            current.changes[node_id] += 1
            for key in [key for key in current.taken if key[0] == node_id and key[1] != name]:
                del current.taken[key]
                self._local_path(*key).unlink(missing_ok=True)
            for key in [key for key in current.arrivals if key[0] == node_id and key[1] != name]:
                del current.arrivals[key]
            if (
                current.changes[node_id] > history.MOST_PUBLICATIONS
                and node_id not in current.too_often
                # The chain has the last word: what was seen may be gone with a block.
                and history.too_often(self._site.contract.log(), node_id, current.number)
            ):
                current.too_often.add(node_id)
            if node_id in current.too_often:
                self._refuse(current, node_id, name, history.TOO_OFTEN, "too_many_publications")

    def _take_one(self, current: _Round, key: tuple[int, str], start: WeightsFile) -> None:
        """Take or refuse a file that has arrived, or say that it is missing."""
        node_id, name = key
        path, arrival = self._local_path(node_id, name), current.arrivals[key]
        download = self._downloads.take(key)
        if download is None:
            running = self._downloads.get(key)
            if running is not None and not running.received and running.idle >= FETCH_TRY:
                self._say_missing(current, key, "nothing of it has come yet")
            return
        try:
            download.finish()
            file = model_file.read(path, self._local_shapes(node_id), name)
            model_file.check_local(
                file,
                plan=self._plan_cid,
                node_id=node_id,
                round_=current.number,
                parent=current.parent,
                samples=shard_size(self._plan, node_id),
            )
            check_bounds(file, start, self._plan)
        except StoreUnreachable:
            arrival.failed(download, counts=False)
            raise
        except (TooLarge, WrongContent, WeightsError) as error:
            path.unlink(missing_ok=True)
            self._refuse(current, node_id, name, str(error), error.code)
        except StoreError as error:
            # Nobody has it, or what the hash names is no file: either may change while the round is open.
            arrival.failed(download)
            self._say_missing(current, key, str(error))
            if arrival.is_missing(self._plan.fetch_timeout) and key not in current.taken:
                self._refuse(current, node_id, name, MISSING, MISSING)
        else:
            current.taken[key] = file
            meta = file.local_meta
            emit(
                events.UpdateAccepted(
                    round=current.number, learner=node_id, cid=name, accuracy=meta.accuracy, loss=meta.loss
                )
            )

    def _say_missing(self, current: _Round, key: tuple[int, str], why: str) -> None:
        if key not in current.said_missing:
            current.said_missing.add(key)
            emit(events.UpdateMissing(round=current.number, learner=key[0], cid=key[1], detail=why))

    def _local_shapes(self, node_id: int) -> model_file.Shapes:
        return local_shapes(self._plan, self._shapes, node_id)

    def _local_path(self, node_id: int, name: str) -> Path:
        # By learner too: two may publish one hash, and only one of them rightly.
        return self._site.folder / f"learner-{node_id}-{name}.safetensors"

    def _refuse(self, current: _Round, node_id: int, name: str, reason: str, code: str) -> None:
        current.taken[node_id, name] = Refusal(node_id, name, model_file.as_reason(reason))
        emit(events.UpdateRejected(round=current.number, learner=node_id, cid=name, reason=code, detail=reason))

    def _wait_for(self, current: _Round, published: dict[int, str], learners: list[int]) -> Waiting | None:
        """Return what the round still waits for, or None if it can close now."""
        plan = self._plan
        good = [key[0] for key in published.items() if isinstance(current.taken.get(key), WeightsFile)]
        refused = [key[0] for key in published.items() if isinstance(current.taken.get(key), Refusal)]
        coming = [key for key in published.items() if key not in current.taken]
        silent = [node_id for node_id in learners if node_id not in published]
        unregistered = plan.learners - len(learners)
        everyone = not silent and not coming and unregistered <= 0
        deadline = current.start + plan.round_timeout if plan.round_timeout else None
        late = deadline is not None and self._site.timing.clock.monotonic() >= deadline
        if (everyone or late) and len(good) >= plan.required_learners:
            return None
        downloads = {key: self._downloads.get(key) for key in coming}
        shares = {key: download.share if download else 0.0 for key, download in downloads.items()}
        parts = []
        if silent:
            parts.append(f"learner {', '.join(map(str, silent))} to publish")
        if coming:
            files = ", ".join(with_share(key[0], shares[key]) for key in coming)
            parts.append(f"the file of learner {files} to arrive")
        if unregistered > 0:
            parts.append(f"{unregistered} more to register")
        if refused and (everyone or late):
            parts.append(f"learner {', '.join(map(str, refused))}, whose file was refused, to publish another")
        if late:
            parts.append(f"at least {plan.required_learners} good files, there are {len(good)}")
        return Waiting(
            "updates",
            f"round {current.number}: {'; '.join(parts)}",
            round=current.number,
            learners=tuple(sorted({*silent, *(key[0] for key in coming), *(refused if everyone or late else ())})),
            arriving={str(key[0]): share for key, share in shares.items() if share} or None,
            until=None if late else deadline,
        )

    def _aggregate(self, current: _Round, published: dict[int, str], learners: list[int]) -> WeightsFile:
        start = time.monotonic()
        # What was published and could not be had until now is refused for that, whoever's fault it is.
        taken = [current.taken.get(key, Refusal(*key, MISSING)) for key in sorted(published.items())]
        inputs = [file for file in taken if isinstance(file, WeightsFile)]
        refused = [refusal for refusal in taken if isinstance(refusal, Refusal)]
        spoken_for = {file.local_meta.node_id for file in inputs} | {r.node_id for r in refused}
        file = global_file(
            self._site.folder / f"global-{current.number + 1}.safetensors",
            self._plan,
            self._plan_cid,
            round_=current.number + 1,
            parent=current.parent,
            inputs=inputs,
            parent_file=self._global(current.number, current.parent) if follows_parent(self._plan) else None,
            evidence=self._evidence,
            refused=refused,
            absent=[node_id for node_id in learners if node_id not in spoken_for],
        )
        if file.cid != self._pending:
            emit(
                events.UpdatesAggregated(
                    round=current.number,
                    cid=file.cid,
                    learners=tuple(one.local_meta.node_id for one in inputs),
                    seconds=time.monotonic() - start,
                )
            )
        return file

    def _publish(self, file: WeightsFile, nonce: int) -> Waiting | None:
        number = file.global_meta.round
        self._pending = file.cid
        receipt = self._site.contract.set_global_weight(file.cid, nonce)
        if receipt is None:
            return Waiting("block", f"a block that takes global weights {number}", round=number)
        self._pending = ""
        emit(events.GlobalWeightsPublished(round=number, cid=file.cid, block=receipt.block, gas=receipt.gas))
        self._forget(file)
        return None

    def _forget(self, current: WeightsFile) -> None:
        self._downloads.keep(())
        if self._round is not None:
            # Should the block be replaced and the round be open again, they are fetched anew.
            self._round.taken.clear()
            self._round.arrivals.clear()
        self._globals = {current.path: current}
        for path in [*self._site.folder.glob("*.safetensors"), *self._site.folder.glob("*.part")]:
            if path != current.path:
                path.unlink(missing_ok=True)

    def _global(self, round_: int, name: str) -> WeightsFile:
        """Return the file of global weights; that which this header made is still there, another is fetched."""
        path = self._site.folder / f"global-{round_}.safetensors"
        known = self._globals.get(path)
        if known is not None and known.cid == name and path.exists():
            return known
        shapes = global_shapes(self._plan, self._shapes)
        if not path.exists() or cid.of_file(path) != name:
            limit = model_file.size_of(shapes)
            self._site.store.fetch(name, path, limit, self._plan.fetch_timeout, logged(name))
        self._globals[path] = model_file.read(path, shapes, name)
        return self._globals[path]

    def _evaluate(self, round_: int, name: str) -> None:
        self._evaluated = round_
        if self._evaluator is None:
            return
        tensors = self._global(round_, name).tensors()

        def work() -> None:
            try:
                score = self._trainer.evaluate(tensors)
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
