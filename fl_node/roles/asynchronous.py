"""The asynchronous strategy, and its learner: each update counts when it arrives, without waiting for slow learners.

A learner starts from the newest global weights whenever it is ready, and publishes what it made of them whichever
round it is by then. The header takes what is published in the order of the chain. All it must know to go on stands in
the newest global file: how many of each learner's publications it has accepted or rejected before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.download import with_share
from fl_node.artifacts.model_file import Rejection, WeightsFile
from fl_node.artifacts.store import TooLarge, WrongContent
from fl_node.chain.contract import View
from fl_node.errors import StoreError, StoreUnreachable, WeightsError
from fl_node.protocol import history
from fl_node.protocol.asynchronous_files import Update, asynchronous_file
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.compressed import decoded
from fl_node.protocol.names import MISSING, learners_label
from fl_node.protocol.publications import (
    Publication,
    check_newer,
    check_share,
    check_update,
    is_done,
    publications,
)
from fl_node.roles.learner import Learner
from fl_node.roles.loop import Waiting
from fl_node.roles.strategy import Context
from fl_node.runtime.logs import emit

MAX_REJECTIONS = 1000
"""Maximum number of rejections in a global file, so that its header has room for them; the next one has the rest."""


@dataclass(frozen=True)
class _Next:
    """The inputs of the next global weights."""

    parent: WeightsFile
    updates: tuple[Update, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    accepted: tuple[tuple[int, int], ...] = ()
    """The number of each learner's publications that are accepted or rejected by then, by nodeId."""


class Asynchronous:
    """Closes a round when the plan's number of valid updates is available, from any learners."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._site = context.site
        self._plan = context.plan
        self._arrivals = context.arrivals
        self._round = -1
        self._round_start = 0.0
        self._judged: dict[tuple[int, int], WeightsFile | Rejection] = {}
        self._next: _Next | None = None
        self._current: str | None = None
        self._withdrawn: frozenset[str] = frozenset()
        self._started_at = ""  # the CID of the global weights that this is true at
        self._started: dict[int, int] = {}
        self._counted: list[int] = []
        self._began: dict[tuple[int, str], str | None] = {}
        """The CID of the global weights that new publications were trained from.

        None if a file is missing or invalid, empty while it is unknown.
        """
        self._over: dict[tuple[int, int], Rejection] = {}  # beyond their learners' share, as things are now
        self._said_over: set[tuple[int, int]] = set()

    @property
    def round(self) -> int:
        """The last round that was processed; -1 before the first."""
        return self._round

    def wait_for(self, view: View, global_cid: str) -> Waiting | None:
        """Judge the next publications, and return what the round still waits for; None if it can close."""
        plan, clock, number = self._plan, self._site.timing.clock, view.state.round
        if self._round != number:
            self._round, self._round_start = number, clock.monotonic()
            emit(events.RoundStarted(round=number, cid=global_cid))
        parent = self._context.global_file(number, global_cid)
        if self._current not in (global_cid, parent.global_meta.parent):
            # Weights were withdrawn, or this header has not led for a while: what was judged is judged again.
            self._judged.clear()
        self._current = global_cid
        accepted = dict(parent.global_meta.taken or ())
        past = history.read(self._site.contract)
        self._withdrawn, everything = past.withdrawn_cids(), publications(past.publications)
        new = [publication for publication in everything if publication.number > accepted.get(publication.node_id, 0)]
        self._began = {
            (publication.node_id, publication.cid): self._began.get((publication.node_id, publication.cid), "")
            for publication in new
        }
        wanted, seen = plan.asynchronous_rule.updates, self._context.changes()
        good, rejected, waits = self._choose(new, everything, wanted, self._last_started(parent, view.learners))
        before = dict(accepted)
        for publication in (*good, *rejected):
            accepted[publication.node_id] = max(accepted.get(publication.node_id, 0), publication.number)
        late = bool(plan.round_timeout) and clock.monotonic() >= self._round_start + plan.round_timeout
        if len(good) < wanted and not (late and good):
            awaited = self._awaited(
                global_cid, everything, before, accepted, [publication.node_id for publication in good]
            )
            if awaited:
                until = self._round_start + plan.round_timeout if plan.round_timeout and not late else None
                waiting = self._missing_updates(view, len(good), waits, awaited)
                return replace(waiting, until=until, watch=self._context.changes, seen=seen)
        self._next = _Next(
            parent,
            tuple(self._update(publication) for publication in good),
            tuple(
                Rejection(publication.node_id, publication.cid, self._reason(publication)) for publication in rejected
            ),
            tuple(accepted.items()),
        )
        return None

    def _awaited(
        self,
        parent: str,
        everything: Sequence[Publication],
        before: Mapping[int, int],
        after: Mapping[int, int],
        good: Sequence[int],
    ) -> list[int]:
        """Return the learners that can still add an update to those of this round, by nodeId.

        Parameters
        ----------
        parent
            The CID of the round's global weights.
        everything
            All publications of the run, in their order.
        before, after
            How many publications of each learner were accepted or rejected when the round started, and are now.
        good
            The learners whose updates count in it.
        """
        awaited = []
        for node_id in range(1, self._plan.learners + 1):
            first, last = before.get(node_id, 0), after.get(node_id, 0)
            taken = [publication for publication in everything if publication.node_id == node_id][:last]
            if not is_done(
                self._plan,
                node_id,
                parent,
                taken,
                new=last - first,
                counts=node_id in good,
                began=lambda publication: self._began[publication.node_id, publication.cid],
            ):
                awaited.append(node_id)
        return awaited

    def _missing_updates(self, view: View, good: int, arriving: Sequence[str], awaited: Sequence[int]) -> Waiting:
        """Return the wait for updates.

        Parameters
        ----------
        view
            What the contract says now.
        good
            The number of updates that count so far.
        arriving
            The learners whose files are arriving, with the received share of each.
        awaited
            All learners that can add an update, by nodeId.
        """
        wanted, number = self._plan.asynchronous_rule.updates, view.state.round
        files = f"{wanted} updates, {good} accepted" if wanted > 1 else "an update"
        silent = [node_id for node_id in awaited if node_id in view.learners]
        parts = [f"round {number}: {files}"]
        if silent:
            parts.append(f"{learners_label(silent)} can publish")
        if unregistered := len(awaited) - len(silent):
            parts.append(f"{unregistered} more to register")
        if arriving:
            parts.append(f"arriving: the file of {' and of '.join(f'learner {node_id}' for node_id in arriving)}")
        return Waiting("updates", "; ".join(parts), round=number, learners=tuple(silent))

    def aggregate(self) -> WeightsFile:
        """Write the global file that the plan's rule computes from the chosen updates.

        Raises
        ------
        ValueError
            No updates are chosen yet.
        """
        if self._next is None:
            raise ValueError("no updates to aggregate yet")
        return asynchronous_file(
            self._context.global_path(self._round + 1),
            self._plan,
            self._context.plan_cid,
            parent=self._next.parent,
            updates=self._next.updates,
            refused=self._next.rejected,
            taken=self._next.accepted,
        )

    def forget(self, current: WeightsFile) -> None:
        """Forget the publications that these global weights have accepted or rejected."""
        accepted = dict(current.global_meta.taken or ())
        self._next = None
        self._arrivals.keep(())
        self._arrivals.forget([key for key in self._arrivals.asked() if int(key[1]) <= accepted.get(key[0], 0)])
        for (node_id, number), known in list(self._judged.items()):
            if number <= accepted.get(node_id, 0):
                del self._judged[node_id, number]
                if isinstance(known, WeightsFile):
                    known.path.unlink(missing_ok=True)

    def _last_started(self, parent: WeightsFile, learners: Sequence[int]) -> dict[int, int]:
        """Return the round from which each learner's last accepted update was trained, by nodeId.

        Also note the learners of the last updates that counted. A header that was restarted reads both from the
        global files, back to where each learner counted last.
        """
        if self._started_at != parent.cid:
            before = self._plan.asynchronous_rule.counted_before
            known = self._started if self._started_at == parent.global_meta.parent else {}
            started, file = {input_.node_id: input_.started or 0 for input_ in parent.global_meta.inputs}, parent
            counted = [input_.node_id for input_ in parent.global_meta.inputs]
            while not known and file.global_meta.round:
                if set(learners) <= set(started) and len(counted) >= before:
                    break
                file = self._context.global_file(file.global_meta.round - 1, str(file.global_meta.parent))
                started = {input_.node_id: input_.started or 0 for input_ in file.global_meta.inputs} | started
                counted = [input_.node_id for input_ in file.global_meta.inputs] + counted
            self._started_at, self._started = parent.cid, known | started
            counted = (self._counted if known else []) + counted
            self._counted = counted[max(len(counted) - before, 0) :]
        return dict(self._started)

    def _choose(
        self, new: Sequence[Publication], everything: Sequence[Publication], wanted: int, started: dict[int, int]
    ) -> tuple[list[Publication], list[Publication], list[str]]:
        """Return the next valid updates, the rejections before them, and the learners whose files are missing.

        What is missing holds up its own learner's later publications, and nobody else's.
        """
        one_each = self._plan.asynchronous_rule.takes_one_of_each
        good: list[Publication] = []
        rejected: list[Publication] = []
        held: dict[int, str] = {}
        postponed: set[int] = set()
        self._over.clear()
        self._arrivals.keep([(publication.node_id, publication.number) for publication in new])
        for publication in new:
            if len(good) == wanted:
                break
            if publication.node_id in held or publication.node_id in postponed:
                continue
            if one_each and publication.node_id in {other.node_id for other in good}:
                continue
            judged = self._judge(publication, everything, started.get(publication.node_id))
            # What was accepted before another of its learner's counted must still be newer than that.
            if isinstance(judged, WeightsFile):
                judged = self._newer(publication, judged, started)
            if isinstance(judged, WeightsFile):
                judged = self._within_share(publication, judged, [*self._counted, *(other.node_id for other in good)])
            if judged is None:
                held[publication.node_id] = with_share(
                    publication.node_id, self._arrivals.share((publication.node_id, publication.number))
                )
            elif isinstance(judged, Rejection) and len(rejected) == MAX_REJECTIONS:
                postponed.add(publication.node_id)
            elif isinstance(judged, Rejection):
                rejected.append(publication)
            else:
                good.append(publication)
                started[publication.node_id] = judged.local_meta.round
        return good, rejected, list(held.values())

    def _newer(self, publication: Publication, file: WeightsFile, started: dict[int, int]) -> WeightsFile | Rejection:
        try:
            check_newer(file.local_meta.round, started.get(publication.node_id))
        except WeightsError as error:
            file.path.unlink(missing_ok=True)
            return self._reject(publication, str(error), error.code)
        return file

    def _within_share(
        self, publication: Publication, file: WeightsFile, counted: Sequence[int]
    ) -> WeightsFile | Rejection:
        """Return the file or its rejection; later it may be within its learner's share."""
        key = publication.node_id, publication.number
        try:
            check_share(publication.node_id, counted, self._plan.asynchronous_rule)
        except WeightsError as error:
            self._over[key] = Rejection(publication.node_id, publication.cid, model_file.as_reason(str(error)))
            if key not in self._said_over:
                self._said_over.add(key)
                self._tell(publication, str(error), error.code)
            return self._over[key]
        return file

    def _judge(
        self, publication: Publication, everything: Sequence[Publication], last: int | None
    ) -> WeightsFile | Rejection | None:
        """Return a publication's file or its rejection; None while it is missing."""  # noqa: DOC501 - caught here
        key = (publication.node_id, publication.number)
        known = self._judged.get(key)
        # What was missing may come back while the round is open.
        if isinstance(known, Rejection) and known.reason != MISSING:
            return known
        if isinstance(known, WeightsFile) and known.path.exists():
            return known
        path = self._site.folder / "updates" / f"learner-{publication.node_id}-{publication.number}.safetensors"
        try:
            before = [
                other
                for other in everything
                if other.node_id == publication.node_id and other.number < publication.number
            ]
            if publication.cid in [other.cid for other in before]:
                raise WeightsError("was published before", "repeated")
            if publication.node_id > self._plan.learners:
                raise WeightsError(f"the plan has shards for learners 1 to {self._plan.learners}", "shard")
            self._arrivals.fetch(key, publication.cid, path)
            self._arrivals.wait([key])
            if not self._arrivals.is_here(key, publication.cid, self._round):
                if known is None and self._arrivals.is_missing(key):
                    self._began[publication.node_id, publication.cid] = None
                    return self._reject(publication, MISSING, MISSING)
                return known if isinstance(known, Rejection) else None
            self._began[publication.node_id, publication.cid] = None
            file = self._context.reader.check(path, publication.cid, publication.node_id)
            self._began[publication.node_id, publication.cid] = file.local_meta.parent
            check_update(
                file,
                self._site.contract,
                self._plan,
                self._context.plan_cid,
                publication.node_id,
                self._round,
                self._withdrawn,
            )
            check_newer(file.local_meta.round, last)
        except (TooLarge, WrongContent, WeightsError) as error:
            path.unlink(missing_ok=True)
            return self._reject(publication, str(error), error.code)
        # Should these weights be out of reach, that is not the learner's fault.
        start = self._start(file)
        try:
            file = decoded(file, start, self._plan)
            check_bounds(file, start, self._plan)
        except WeightsError as error:
            path.unlink(missing_ok=True)
            return self._reject(publication, str(error), error.code)
        self._judged[key] = file
        meta = file.local_meta
        emit(
            events.UpdateAccepted(
                round=self._round,
                learner=publication.node_id,
                cid=publication.cid,
                accuracy=meta.accuracy,
                loss=meta.loss,
                base_round=meta.round,
            )
        )
        return file

    def _reject(self, publication: Publication, reason: str, code: str) -> Rejection:
        rejection = Rejection(publication.node_id, publication.cid, model_file.as_reason(reason))
        self._judged[publication.node_id, publication.number] = rejection
        self._tell(publication, reason, code)
        return rejection

    def _tell(self, publication: Publication, reason: str, code: str) -> None:
        emit(
            events.UpdateRejected(
                round=self._round, learner=publication.node_id, cid=publication.cid, reason=code, detail=reason
            )
        )

    def _reason(self, publication: Publication) -> str:
        key = publication.node_id, publication.number
        known = self._over.get(key, self._judged[key])
        return known.reason if isinstance(known, Rejection) else ""

    def _update(self, publication: Publication) -> Update:
        file = self._judged[publication.node_id, publication.number]
        if not isinstance(file, WeightsFile):
            raise WeightsError(f"learner {publication.node_id}'s {publication.cid} was rejected")
        return Update(file, self._start(file))

    def _start(self, file: WeightsFile) -> WeightsFile:
        """Return the global weights from which local weights were trained."""
        return self._context.global_file(file.local_meta.round, file.local_meta.parent)


class AsynchronousLearner(Learner):
    """A learner in an asynchronous run."""

    _last: int | None = None
    _ballot = -1
    _idle: tuple[str, float] | None = None

    def _work(self, view: View, node_id: int, global_cid: str) -> Waiting | None:
        contract, state = self._site.contract, view.state
        if self._last is None or self._ballot != state.ballot:
            # Global weights may have been withdrawn.
            self._last, self._ballot = self._began_last(node_id), state.ballot
        local = self._ready(node_id)
        start = (local.local_meta.round, local.local_meta.parent) if local is not None else (state.round, global_cid)
        if self._verifier is not None:
            self._verifier.start(*start, node_id)
            if waiting := self._reject(view, node_id, *start):
                return waiting
        if local is not None:
            # Whether a block took it is seen on chain, after a restart as well.
            if not self._is_published(node_id, local.cid):
                if not self._may_publish(state.round, node_id, local):
                    return self._wait_for_end(view, node_id, global_cid)
                return self._unverified(*start) or self._publish(local, view.nonce)
            self._last = local.local_meta.round
            return None
        if state.round <= self._last:
            self._push_on(view, node_id, global_cid)
            text = f"global weights newer than {state.round}"
            return Waiting("newer_weights", text, round=state.round, watch=contract.state, seen=state)
        if not self._may_publish(state.round, node_id, None):
            return self._wait_for_end(view, node_id, global_cid)
        return self._train(state.round, node_id, global_cid)

    def _push_on(self, view: View, node_id: int, global_cid: str) -> None:
        """Vote for another header if enough valid updates are available and this header does nothing."""
        verifier, plan, state = self._verifier, self._plan, view.state
        if verifier is None:
            return
        now = self._site.timing.clock.monotonic()
        self._succession.see(state)
        verifier.fetch(
            {publication.node_id: publication.cid for publication in publications(self._site.contract.log())}
        )
        verdict = verifier.verdict(state.round, global_cid)
        late = bool(plan.round_timeout) and self._succession.seconds > plan.round_timeout
        if verdict is None or not verdict.is_right or not verifier.can_close(state.round, global_cid, late=late):
            return
        if self._idle is None or self._idle[0] != global_cid + str(state.header):
            self._idle = global_cid + str(state.header), now
        if now - self._idle[1] > self._header_timeout:
            self._succession.vote(view, node_id)

    def _wait_for_end(self, view: View, node_id: int, global_cid: str) -> Waiting:
        """Wait for others, whose publications may still count; this learner's privacy budget is spent."""
        self._push_on(view, node_id, global_cid)
        contract, round_ = self._site.contract, view.state.round
        spent = self._budget.spent_learners()
        able = [other for other in range(1, self._plan.learners + 1) if other not in spent]
        who = f"; {learners_label(able)} can publish" if able else ""
        text = f"the end of the run; the privacy budget of {learners_label(spent)} is spent{who}"
        # The run ends with a publication or with global weights.
        return Waiting(
            "round_end",
            text,
            round=round_,
            learners=tuple(able),
            watch=lambda: (contract.state(), len(contract.log())),
            seen=(view.state, len(contract.log())),
        )

    def _is_published(self, node_id: int, name: str) -> bool:
        return any(
            publication.node_id == node_id and publication.cid == name
            for publication in publications(self._site.contract.log())
        )

    def _began_last(self, node_id: int) -> int:
        """Return the round from which this learner's last published weights were trained; -1 if it published none.

        Those that were trained from withdrawn global weights don't count.

        Raises
        ------
        StoreUnreachable
            The store does not answer.
        """
        mine = [
            publication for publication in publications(self._site.contract.log()) if publication.node_id == node_id
        ]
        path = self._site.folder / "published.safetensors"
        for publication in reversed(mine):
            try:
                meta = self._reader.read(publication.cid, node_id, path).local_meta
                if self._site.contract.global_weight_at(meta.round) == meta.parent:
                    return meta.round
            except StoreUnreachable:
                raise
            except (StoreError, WeightsError):
                # Not this program's work, or lost with this host's store; what it publishes next is newer than that.
                return min(publication.entry.round or 0, self._site.contract.round())
            finally:
                path.unlink(missing_ok=True)
        return -1

    def _ready(self, node_id: int) -> WeightsFile | None:
        """Return trained but unpublished local weights, perhaps of an earlier process that was killed."""
        for path in sorted(self._site.folder.glob("local-*.safetensors")):
            number = path.stem.removeprefix("local-")
            if not number.isdigit() or int(number) <= (self._last if self._last is not None else -1):
                continue
            parent = self._site.contract.global_weight_at(int(number))
            if parent is not None and (file := self._training.finished(int(number), node_id, parent)) is not None:
                return file
        return None
