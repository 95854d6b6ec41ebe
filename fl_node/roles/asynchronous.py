"""Header and learner of an asynchronous run: each update counts when it comes, and nobody waits for the slowest.

A learner starts from the newest global weights whenever it is ready, and publishes what it made of them whichever
round it is by then. The header takes what is published in the order of the chain. All it must know to go on stands in
the newest global file: how many of each learner's publications were taken before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fl_node import events
from fl_node.aggregation import check_bounds
from fl_node.aggregation.asynchronous import Update, asynchronous_file
from fl_node.artifacts import model_file
from fl_node.artifacts.download import Arrival, with_share
from fl_node.artifacts.model_file import Refusal, WeightsFile
from fl_node.artifacts.store import TooLarge, WrongContent
from fl_node.chain.client import View
from fl_node.errors import StoreError, StoreUnreachable, WeightsError
from fl_node.protocol import history
from fl_node.protocol.publications import MISSING, Publication, check_update, publications, too_often
from fl_node.roles.header import FETCH_TRY, Header
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Waiting
from fl_node.runtime.logs import emit


class AsynchronousHeader(Header):
    """The header in an asynchronous run."""

    _seen: dict[tuple[int, int], WeightsFile | Refusal]
    _arrivals: dict[tuple[int, int], Arrival]
    _said_missing: set[tuple[int, int]]
    _said_round: int = -1
    _round_start: float = 0.0

    @property
    def round(self) -> int:
        """The round that was looked at last; -1 before the first."""
        return self._said_round

    def _lead(self, view: View, global_cid: str) -> Waiting | None:
        contract, plan, state = self._site.contract, self._plan, view.state
        clock = self._site.timing.clock
        if self._said_round != state.round:
            if self._said_round < 0:
                self._seen, self._arrivals, self._said_missing = {}, {}, set()
            self._said_round, self._round_start = state.round, clock.monotonic()
            emit(events.RoundStarted(round=state.round, cid=global_cid))
        parent = self._global(state.round, global_cid)
        taken = dict(parent.global_meta.taken or ())
        everything = publications(contract.log())
        new = [one for one in everything if one.number > taken.get(one.node_id, 0)]
        wanted, seen = plan.aggregation.buffer or 1, self._changes()
        good, refused, waits = self._choose(new, everything, state.round, wanted)
        late = bool(plan.round_timeout) and clock.monotonic() >= self._round_start + plan.round_timeout
        if len(good) < wanted and not (late and good):
            deadline = self._round_start + plan.round_timeout if plan.round_timeout else None
            files = f"{len(good)} of {wanted} updates are there" if wanted > 1 else "an update"
            missing = f"; the file of learner {', '.join(waits)} is to arrive" if waits else ""
            until = None if late else deadline
            detail = f"round {state.round}: {files}{missing}"
            return Waiting("updates", detail, round=state.round, until=until, watch=self._changes, seen=seen)
        for one in (*good, *refused):
            taken[one.node_id] = max(taken.get(one.node_id, 0), one.number)
        start = time.monotonic()
        file = asynchronous_file(
            self._site.folder / f"global-{state.round + 1}.safetensors",
            plan,
            self._plan_cid,
            parent=parent,
            updates=[self._update(one) for one in good],
            refused=[Refusal(one.node_id, one.cid, self._reason(one)) for one in refused],
            taken=list(taken.items()),
        )
        if file.cid != self._pending:
            emit(
                events.UpdatesAggregated(
                    round=state.round,
                    cid=file.cid,
                    learners=tuple(one.node_id for one in good),
                    seconds=time.monotonic() - start,
                )
            )
        self._site.store.add(file.path)
        return self._publish(file, view.nonce)

    def _choose(
        self, new: Sequence[Publication], everything: Sequence[Publication], newest: int, wanted: int
    ) -> tuple[list[Publication], list[Publication], list[str]]:
        """Return the next good updates, what is refused among what comes before them, and whose files are to arrive.

        What is missing holds up its own learner's later publications, and nobody else's.
        """
        good: list[Publication] = []
        refused: list[Publication] = []
        held: dict[int, str] = {}
        self._downloads.keep([(one.node_id, one.number) for one in new])
        for one in new:
            if len(good) == wanted:
                break
            if one.node_id in held:
                continue
            found = self._look_at(one, everything, newest)
            if found is None:
                download = self._downloads.get((one.node_id, one.number))
                held[one.node_id] = with_share(one.node_id, download.share if download else 0.0)
            elif isinstance(found, Refusal):
                refused.append(one)
            else:
                good.append(one)
        return good, refused, list(held.values())

    def _look_at(
        self, one: Publication, everything: Sequence[Publication], newest: int
    ) -> WeightsFile | Refusal | None:
        """Return a publication's file or why it is refused; None while it is missing."""
        key = (one.node_id, one.number)
        known = self._seen.get(key)
        # What was missing may come back while the round is open.
        if isinstance(known, Refusal) and known.reason != MISSING:
            return known
        if isinstance(known, WeightsFile) and known.path.exists():
            return known
        path = self._site.folder / "updates" / f"learner-{one.node_id}-{one.number}.safetensors"
        try:
            before = [other for other in everything if other.node_id == one.node_id and other.number < one.number]
            if too_often(one, everything):
                raise WeightsError(history.TOO_OFTEN, "too_many_publications")
            if one.cid in [other.cid for other in before]:
                raise WeightsError("was published before", "repeated")
            if one.node_id > self._plan.learners:
                raise WeightsError(f"the plan has shards for learners 1 to {self._plan.learners}", "shard")
            if not self._arrive(one, path, newest):
                missing = key in self._arrivals and self._arrivals[key].is_missing(self._plan.fetch_timeout)
                if known is None and missing and self._downloads.get(key) is None:
                    return self._refuse_update(one, newest, MISSING, MISSING)
                return known if isinstance(known, Refusal) else None
            file = model_file.read(path, self._shapes, one.cid)
            check_update(file, self._site.contract, self._plan, self._plan_cid, one.node_id, newest)
        except StoreUnreachable:
            raise
        except (TooLarge, WrongContent, WeightsError) as error:
            path.unlink(missing_ok=True)
            return self._refuse_update(one, newest, str(error), error.code)
        # Should these weights be out of reach, that is not the learner's fault.
        start = self._global(file.local_meta.round, file.local_meta.parent)
        try:
            check_bounds(file, start, self._plan)
        except WeightsError as error:
            path.unlink(missing_ok=True)
            return self._refuse_update(one, newest, str(error), error.code)
        self._seen[key] = file
        meta = file.local_meta
        emit(
            events.UpdateAccepted(
                round=newest,
                learner=one.node_id,
                cid=one.cid,
                accuracy=meta.accuracy,
                loss=meta.loss,
                base_round=meta.round,
            )
        )
        return file

    def _arrive(self, one: Publication, path: Path, newest: int) -> bool:
        """Fetch an update; return whether it is here, or else let it go on arriving in the background."""
        key = (one.node_id, one.number)
        arrival = self._arrivals.setdefault(key, Arrival(time.monotonic()))
        if self._downloads.get(key) is None and arrival.is_due():
            path.parent.mkdir(exist_ok=True)
            limit = model_file.size_of(self._shapes)
            self._downloads.start(key, one.cid, path, limit, self._plan.fetch_timeout)
        self._downloads.wait([key], FETCH_TRY)
        download = self._downloads.take(key)
        if download is None:
            running = self._downloads.get(key)
            if running is not None and not running.received and running.idle >= FETCH_TRY:
                self._say_update_missing(one, newest, "nothing of it has come yet")
            return False
        try:
            download.finish()
        except StoreUnreachable:
            arrival.failed(download, counts=False)
            raise
        except (TooLarge, WrongContent):
            raise
        except StoreError as error:
            arrival.failed(download)
            self._say_update_missing(one, newest, str(error))
            return False
        return True

    def _say_update_missing(self, one: Publication, newest: int, why: str) -> None:
        if (one.node_id, one.number) not in self._said_missing:
            self._said_missing.add((one.node_id, one.number))
            emit(events.UpdateMissing(round=newest, learner=one.node_id, cid=one.cid, detail=why))

    def _refuse_update(self, one: Publication, newest: int, reason: str, code: str) -> Refusal:
        refusal = Refusal(one.node_id, one.cid, model_file.as_reason(reason))
        self._seen[one.node_id, one.number] = refusal
        emit(events.UpdateRejected(round=newest, learner=one.node_id, cid=one.cid, reason=code, detail=reason))
        return refusal

    def _reason(self, one: Publication) -> str:
        known = self._seen[one.node_id, one.number]
        return known.reason if isinstance(known, Refusal) else ""

    def _update(self, one: Publication) -> Update:
        file = self._seen[one.node_id, one.number]
        if not isinstance(file, WeightsFile):
            raise WeightsError(f"learner {one.node_id}'s {one.cid} was refused")
        began = file.local_meta.round
        return Update(file, self._global(began, file.local_meta.parent))

    def _forget(self, current: WeightsFile) -> None:
        taken = dict(current.global_meta.taken or ())
        for (node_id, number), known in list(self._seen.items()):
            if number <= taken.get(node_id, 0):
                del self._seen[node_id, number]
                self._arrivals.pop((node_id, number), None)
                self._said_missing.discard((node_id, number))
                if isinstance(known, WeightsFile):
                    known.path.unlink(missing_ok=True)
        super()._forget(current)


class AsynchronousLearner(Learner):
    """A learner in an asynchronous run."""

    _last: int | None = None

    def _work(self, view: View, node_id: int, global_cid: str) -> Waiting | None:
        contract, state = self._site.contract, view.state
        if self._last is None:
            self._last = self._began_last(node_id)
        local = self._ready(node_id)
        if local is not None:
            # Whether a block took it is seen on chain, after a restart as well.
            if not self._is_published(node_id, local.cid):
                return self._publish(local, view.nonce)
            self._last = local.local_meta.round
            return None
        if state.round <= self._last:
            text = f"global weights newer than {state.round}"
            return Waiting("newer_weights", text, round=state.round, watch=contract.round, seen=state.round)
        return self._train(state.round, node_id, global_cid)

    def _is_published(self, node_id: int, name: str) -> bool:
        return any(one.node_id == node_id and one.cid == name for one in publications(self._site.contract.log()))

    def _began_last(self, node_id: int) -> int:
        """Return the round at which the last publication of this learner began, -1 if there is none."""
        mine = [one for one in publications(self._site.contract.log()) if one.node_id == node_id]
        if not mine:
            return -1
        path = self._site.folder / "published.safetensors"
        shapes = self._trainer.shapes()
        try:
            self._site.store.fetch(mine[-1].cid, path, model_file.size_of(shapes), self._plan.fetch_timeout)
            return model_file.read(path, shapes).local_meta.round
        except StoreUnreachable:
            raise
        except (StoreError, WeightsError):
            # Not this program's work, or lost with this host's store; what it publishes next is newer than that was.
            return mine[-1].entry.round or 0
        finally:
            path.unlink(missing_ok=True)

    def _ready(self, node_id: int) -> WeightsFile | None:
        """Return local weights that were trained and not published yet, perhaps by a process that was killed."""
        for path in sorted(self._site.folder.glob("local-*.safetensors")):
            number = path.stem.removeprefix("local-")
            if not number.isdigit() or int(number) <= (self._last if self._last is not None else -1):
                continue
            parent = self._site.contract.global_weight_at(int(number))
            if parent is not None and (file := self._finished(int(number), node_id, parent)) is not None:
                return file
        return None
