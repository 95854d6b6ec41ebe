"""The synchronous strategy: a round waits for all learners, or until its time is up, and averages their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.download import with_share
from fl_node.artifacts.model_file import Rejection, WeightsFile
from fl_node.artifacts.store import TooLarge, WrongContent
from fl_node.chain.contract import View
from fl_node.data.partition import shard_size
from fl_node.errors import StoreUnreachable, WeightsError
from fl_node.models.evidence import evidence
from fl_node.protocol import history
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.global_files import follows_parent, global_file
from fl_node.protocol.publications import MISSING
from fl_node.roles.loop import Waiting
from fl_node.roles.strategy import Context
from fl_node.runtime.logs import emit

LOOKS = 3
"""How often in a round the average is made again because somebody published in the meantime."""


@dataclass
class _Round:
    """What the header has seen of the files of the current round; a new process sees it all again."""

    parent: str
    number: int
    start: float
    """On the role's clock, in seconds."""
    learners: list[int] = field(default_factory=list)
    published: Mapping[int, str] = field(default_factory=dict)
    """Each learner's last publication, by nodeId."""
    judged: dict[tuple[int, str], WeightsFile | Rejection] = field(default_factory=dict)
    """The files that are accepted or rejected."""
    newest: dict[int, str] = field(default_factory=dict)
    """What each learner published last, as far as it was seen."""
    changes: Counter[int] = field(default_factory=Counter)
    """How often each learner was seen to publish something else."""
    too_often: set[int] = field(default_factory=set)
    """Learners of whom nothing more is read in this round."""
    looks: int = 0

    def is_missing(self, key: tuple[int, str]) -> bool:
        """Return whether a file was rejected because nobody had it."""
        judged = self.judged.get(key)
        return isinstance(judged, Rejection) and judged.reason == MISSING

    def is_open(self, key: tuple[int, str]) -> bool:
        """Return whether a file is still waited for: it is not here, or was rejected because nobody had it."""
        return key not in self.judged or self.is_missing(key)


class Synchronous:
    """Closes a round when the file of every learner is judged, or after the plan's ``round_timeout``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._site = context.site
        self._plan = context.plan
        self._arrivals = context.arrivals
        self._evidence = evidence(context.plan, context.trainer)
        self._round = _Round("", -1, 0.0)

    @property
    def round(self) -> int:
        """The round whose files were looked at last; -1 before the first."""
        return self._round.number

    def wait_for(self, view: View, global_cid: str) -> Waiting | None:
        """Judge what was published, and return what the round still waits for; None if it can close."""
        state, learners, required = view.state, list(view.learners), self._plan.required_learners
        if len(learners) < required:
            return Waiting("registration", f"{required - len(learners)} more learners to register")
        if (self._round.number, self._round.parent) != (state.round, global_cid):
            self._round = _Round(global_cid, state.round, self._site.timing.clock.monotonic())
            self._arrivals.forget(self._arrivals.asked())
            emit(events.RoundStarted(round=state.round, cid=global_cid))
        current = self._round
        current.learners = learners
        current.published = self._site.contract.local_weights(current.number, learners)
        seen = self._context.changes()
        self._judge_all(current)
        if waiting := self._waiting(current):
            return replace(waiting, watch=self._context.changes, seen=seen)
        return None

    def aggregate(self) -> WeightsFile:
        """Write the global file that the plan's rule makes of the accepted files."""
        current, context, plan = self._round, self._context, self._plan
        # A published file that is still missing is rejected, whatever the cause.
        judged = [current.judged.get(key, Rejection(*key, MISSING)) for key in sorted(current.published.items())]
        accepted = [file for file in judged if isinstance(file, WeightsFile)]
        rejected = [rejection for rejection in judged if isinstance(rejection, Rejection)]
        spoken_for = {file.local_meta.node_id for file in accepted} | {r.node_id for r in rejected}
        parent = context.global_file(current.number, current.parent) if follows_parent(plan) else None
        return global_file(
            context.global_path(current.number + 1),
            plan,
            context.plan_cid,
            round_=current.number + 1,
            parent=current.parent,
            inputs=accepted,
            parent_file=parent,
            evidence=self._evidence,
            refused=rejected,
            absent=[node_id for node_id in current.learners if node_id not in spoken_for],
        )

    def is_outdated(self) -> bool:
        """Return whether somebody published in the meantime; but nobody keeps a round open by publishing again."""
        current = self._round
        if current.looks >= LOOKS:
            return False
        if self._site.contract.local_weights(current.number, current.learners) == current.published:
            return False
        current.looks += 1
        return True

    def forget(self, current: WeightsFile) -> None:  # noqa: ARG002
        """Forget the files of the round; if its block is replaced and it is open again, they are fetched again."""
        self._arrivals.keep(())
        self._arrivals.forget(self._arrivals.asked())
        self._round.judged.clear()

    def _judge_all(self, current: _Round) -> None:
        """Fetch and check what was published and is not here yet; what takes long arrives in the background."""
        start = self._context.global_file(current.number, current.parent)
        self._look_for_newer(current)
        wanted = [key for key in sorted(current.published.items()) if current.is_open(key)]
        self._arrivals.keep(wanted)
        for key in wanted:
            self._arrivals.fetch(key, key[1], self._path(*key))
        self._arrivals.wait(wanted)
        away: StoreUnreachable | None = None
        for key in wanted:
            try:
                self._judge(current, key, start)
            except StoreUnreachable as error:
                away = error
        if away is not None:
            raise away

    def _look_for_newer(self, current: _Round) -> None:
        """Forget what a learner has replaced, and read no more of one that publishes again and again."""
        for node_id, name in current.published.items():
            if current.newest.get(node_id) == name:
                continue
            current.newest[node_id] = name
            current.changes[node_id] += 1
            for key in [key for key in current.judged if key[0] == node_id and key[1] != name]:
                del current.judged[key]
                self._path(*key).unlink(missing_ok=True)
            self._arrivals.forget([key for key in self._arrivals.asked() if key[0] == node_id and key[1] != name])
            if (
                current.changes[node_id] > history.MOST_PUBLICATIONS
                and node_id not in current.too_often
                # The chain has the last word: what was seen may be gone with a block.
                and history.too_often(self._site.contract.log(), node_id, current.number)
            ):
                current.too_often.add(node_id)
            if node_id in current.too_often:
                self._reject(current, (node_id, name), history.TOO_OFTEN, "too_many_publications")

    def _judge(self, current: _Round, key: tuple[int, str], start: WeightsFile) -> None:
        """Accept or reject a file that has arrived or is missing."""
        node_id, name = key
        path = self._path(node_id, name)
        try:
            if not self._arrivals.is_here(key, name, current.number):
                if key not in current.judged and self._arrivals.is_missing(key):
                    self._reject(current, key, MISSING, MISSING)
                return
            file = self._context.reader.check(path, name, node_id)
            model_file.check_local(
                file,
                plan=self._context.plan_cid,
                node_id=node_id,
                round_=current.number,
                parent=current.parent,
                samples=shard_size(self._plan, node_id),
            )
            check_bounds(file, start, self._plan)
        except (TooLarge, WrongContent, WeightsError) as error:
            path.unlink(missing_ok=True)
            self._reject(current, key, str(error), error.code)
            return
        current.judged[key] = file
        meta = file.local_meta
        emit(
            events.UpdateAccepted(
                round=current.number, learner=node_id, cid=name, accuracy=meta.accuracy, loss=meta.loss
            )
        )

    def _path(self, node_id: int, name: str) -> Path:
        # By learner too: two may publish one hash, and only one of them rightly.
        return self._site.folder / f"learner-{node_id}-{name}.safetensors"

    def _reject(self, current: _Round, key: tuple[int, str], reason: str, code: str) -> None:
        node_id, name = key
        current.judged[key] = Rejection(node_id, name, model_file.as_reason(reason))
        emit(events.UpdateRejected(round=current.number, learner=node_id, cid=name, reason=code, detail=reason))

    def _waiting(self, current: _Round) -> Waiting | None:
        """Return what the round still waits for, or None if it can close now."""
        plan, published = self._plan, current.published
        good = [key[0] for key in published.items() if isinstance(current.judged.get(key), WeightsFile)]
        rejected = [key[0] for key in published.items() if isinstance(current.judged.get(key), Rejection)]
        coming = [key for key in published.items() if key not in current.judged]
        silent = [node_id for node_id in current.learners if node_id not in published]
        unregistered = plan.learners - len(current.learners)
        everyone = not silent and not coming and unregistered <= 0
        deadline = current.start + plan.round_timeout if plan.round_timeout else None
        late = deadline is not None and self._site.timing.clock.monotonic() >= deadline
        if (everyone or late) and len(good) >= plan.required_learners:
            return None
        shares = {key: self._arrivals.share(key) for key in coming}
        parts = []
        if silent:
            parts.append(f"learner {', '.join(map(str, silent))} to publish")
        if coming:
            files = ", ".join(with_share(key[0], shares[key]) for key in coming)
            parts.append(f"the file of learner {files}")
        if unregistered > 0:
            parts.append(f"{unregistered} more to register")
        if rejected and (everyone or late):
            parts.append(f"learner {', '.join(map(str, rejected))}, whose file was rejected, to publish again")
        if late:
            parts.append(f"at least {plan.required_learners} valid files ({len(good)} so far)")
        return Waiting(
            "updates",
            f"round {current.number}: {'; '.join(parts)}",
            round=current.number,
            learners=tuple(sorted({*silent, *(key[0] for key in coming), *(rejected if everyone or late else ())})),
            arriving={str(key[0]): share for key, share in shares.items() if share} or None,
            until=None if late else deadline,
        )
