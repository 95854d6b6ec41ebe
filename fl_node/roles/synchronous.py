"""The synchronous strategy: when the contract has closed a round, its local weights are aggregated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.download import with_share
from fl_node.artifacts.model_file import LocalMeta, Rejection, WeightsFile
from fl_node.artifacts.store import TooLarge, WrongContent
from fl_node.chain.contract import View
from fl_node.errors import StoreUnreachable, WeightsError
from fl_node.models.evidence import evidence
from fl_node.protocol import budget, impasse
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.compressed import decoded
from fl_node.protocol.global_files import global_file, is_enough, needs_parent
from fl_node.protocol.masked import Fault, Seeds, check_masked, reveal, unmasked_file
from fl_node.protocol.names import MISSING, learners_label
from fl_node.protocol.opened import read_openings
from fl_node.protocol.publications import check_origin
from fl_node.roles.arrivals import FETCH_TRY
from fl_node.roles.impasse import SETTLE, End, find_open, name_wrong_keys
from fl_node.roles.loop import Waiting
from fl_node.roles.strategy import Context
from fl_node.runtime.logs import emit
from fl_node.wording import counted

ASK_TO_CLOSE = 1.0
"""Seconds between attempts to close a round after its timeout."""


@dataclass
class _Round:
    """The state of the files in the current round; a new process rebuilds it."""

    parent: str
    number: int
    start: float
    """On the role's clock, in seconds."""
    members: list[int] = field(default_factory=list)
    """The registered learners, or those registered when the round closed."""
    published: Mapping[int, str] = field(default_factory=dict)
    """Each learner's last publication, by nodeId; fixed when the round closes."""
    judged: dict[tuple[int, str], WeightsFile | Rejection] = field(default_factory=dict)
    """The accepted and rejected files."""
    keys: Mapping[int, str] = field(default_factory=dict)
    """The keys that learners announced in separate transactions for the next round with masks."""
    seeds: Seeds = field(default_factory=dict)
    """The opened seeds, which remove the masks of all accepted files."""
    faults: set[Fault] = field(default_factory=set)
    """The faults of openings that are already logged."""

    def is_missing(self, key: tuple[int, str]) -> bool:
        """Return whether a file was rejected as missing."""
        judged = self.judged.get(key)
        return isinstance(judged, Rejection) and judged.reason == MISSING

    def is_wanted(self, key: tuple[int, str]) -> bool:
        """Return whether a file is still needed: it has not arrived, or was rejected as missing."""
        return key not in self.judged or self.is_missing(key)

    def good(self) -> list[int]:
        """Return the learners with an accepted file."""
        return [key[0] for key in self.published.items() if isinstance(self.judged.get(key), WeightsFile)]


class Synchronous:
    """Fetches local weights while a round is open, and aggregates them when the contract has closed it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._site = context.site
        self._plan = context.plan
        self._arrivals = context.arrivals
        self._evidence = evidence(context.plan, context.trainer)
        self._round = _Round("", -1, 0.0)
        self._end = End(context.site)
        self._named: tuple[int, str] | None = None  # the last round whose next keys were looked at

    @property
    def round(self) -> int:
        """The last round whose files were processed; -1 before the first."""
        return self._round.number

    def wait_for(self, view: View, global_cid: str) -> Waiting | None:
        """Judge publications, and return the wait of the round; None if it can be aggregated.

        Raises
        ------
        RunStuck
            The round has masks and can never end.
        """
        state, clock = view.state, self._site.timing.clock
        if (self._round.number, self._round.parent) != (state.round, global_cid):
            self._round = _Round(global_cid, state.round, clock.monotonic())
            self._arrivals.forget(self._arrivals.asked())
            emit(events.RoundStarted(round=state.round, cid=global_cid))
        current = self._round
        # Of a closed round all is read in the block that shows it closed: another may have taken its place by now.
        block = view.block if state.closed else None
        current.members = self._site.contract.members(state.round, block) if state.closed else list(view.learners)
        current.published = self._site.contract.local_weights(current.number, current.members, block)
        seen = self._context.changes()
        self._judge_all(current)
        waiting = self._stuck(current, view) if self._plan.is_masked else None
        if waiting is None:
            waiting = self._missing_files(current) if state.closed else self._missing_learners(current, view)
        if waiting is None and self._plan.is_masked:
            waiting = self._missing_openings(current, view)
        return replace(waiting, watch=self._context.changes, seen=seen) if waiting else None

    def aggregate(self) -> WeightsFile:
        """Write the global file that the plan's rule computes from the accepted files."""
        current, context, plan = self._round, self._context, self._plan
        judged = [current.judged[key] for key in sorted(current.published.items())]
        accepted = [file for file in judged if isinstance(file, WeightsFile)]
        rejected = [rejection for rejection in judged if isinstance(rejection, Rejection)]
        absent = [node_id for node_id in current.members if node_id not in current.published]
        spent = None if plan.dp is None else budget.spent(plan, budget.publications(self._site.contract.log()))
        if plan.is_masked:
            if self._named != (current.number, current.parent):
                self._named = current.number, current.parent
                next_keys = {file.masked_meta.node_id: file.masked_meta.next_key for file in accepted}
                name_wrong_keys(current.number + 1, {**current.keys, **next_keys})
            return unmasked_file(
                context.global_path(current.number + 1),
                plan,
                context.plan_cid,
                parent=context.global_file(current.number, current.parent),
                files={file.masked_meta.node_id: file for file in accepted},
                seeds=current.seeds,
                announced=current.keys,
                refused=rejected,
                absent=absent,
                spent=spent,
            )
        parent = None
        if needs_parent(plan, len(accepted)):
            parent = context.global_file(current.number, current.parent)
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
            absent=absent,
            spent=spent,
        )

    def forget(self, current: WeightsFile) -> None:  # noqa: ARG002
        """Forget the files of the round; if its block is replaced and it is open again, they are fetched again."""
        self._arrivals.keep(())
        self._arrivals.forget(self._arrivals.asked())
        self._round.judged.clear()

    def _judge_all(self, current: _Round) -> None:
        """Fetch and check new publications; slow files arrive in the background."""
        start = self._context.global_file(current.number, current.parent)
        self._forget_replaced(current)
        wanted = [key for key in sorted(current.published.items()) if current.is_wanted(key)]
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

    def _forget_replaced(self, current: _Round) -> None:
        """Forget the files that their learners have replaced."""
        for key in [key for key in current.judged if current.published.get(key[0]) != key[1]]:
            del current.judged[key]
            self._path(*key).unlink(missing_ok=True)
        replaced = [key for key in self._arrivals.asked() if current.published.get(key[0]) != key[1]]
        self._arrivals.forget(replaced)

    def _judge(self, current: _Round, key: tuple[int, str], start: WeightsFile) -> None:
        """Accept or reject a file that has arrived or is missing."""
        node_id, name = key
        path = self._path(node_id, name)
        try:
            if not self._arrivals.is_here(key, name, current.number):
                # With masks all must agree on whose values are summed, so a missing file is waited for.
                gives_up = self._arrivals.is_missing(key) and not self._plan.is_masked
                if key not in current.judged and gives_up:
                    self._reject(current, key, MISSING, MISSING)
                return
            file = self._context.reader.check(path, name, node_id)
            plan, plan_cid = self._plan, self._context.plan_cid
            if plan.is_masked:
                check_masked(file, plan, plan_cid, node_id, start)
            else:
                check_origin(file, plan, plan_cid, node_id, round_=current.number, parent=current.parent)
                file = decoded(file, start, self._plan)
                check_bounds(file, start, self._plan)
        except (TooLarge, WrongContent, WeightsError) as error:
            path.unlink(missing_ok=True)
            self._reject(current, key, str(error), error.code)
            return
        current.judged[key] = file
        meta = file.meta
        accuracy, loss = (meta.accuracy, meta.loss) if isinstance(meta, LocalMeta) else (None, None)
        emit(events.UpdateAccepted(round=current.number, learner=node_id, cid=name, accuracy=accuracy, loss=loss))

    def _path(self, node_id: int, name: str) -> Path:
        # By learner too: two may publish one hash, and only one of them rightly.
        return self._site.folder / f"learner-{node_id}-{name}.safetensors"

    def _reject(self, current: _Round, key: tuple[int, str], reason: str, code: str) -> None:
        node_id, name = key
        current.judged[key] = Rejection(node_id, name, model_file.as_reason(reason))
        emit(events.UpdateRejected(round=current.number, learner=node_id, cid=name, reason=code, detail=reason))

    def _missing_openings(self, current: _Round, view: View) -> Waiting | None:
        """Return the wait for openings; None if all masks can be removed.

        Raises
        ------
        RunStuck
            Whatever learners open from now on, they can't be removed.
        """
        plan, number = self._plan, current.number
        judged = [current.judged[key] for key in sorted(current.published.items())]
        files = {file.masked_meta.node_id: file for file in judged if isinstance(file, WeightsFile)}
        names, current.keys = self._site.contract.openings_and_next_keys(number, current.members, view.block)
        openings, faults = read_openings(self._context.reader, self._context.plan_cid, names, FETCH_TRY)
        start = self._context.global_file(number, current.parent)
        silent = impasse.silent(files, names, openings, faults)
        revealed = reveal(plan, start, files, openings, silent)
        for fault in dict.fromkeys((*faults, *revealed.faults)):
            if fault not in current.faults:
                current.faults.add(fault)
                emit(events.OpeningRejected(round=number, learner=fault.node_id, detail=fault.text))
        current.seeds = revealed.seeds
        if not revealed.lacking and len(names) >= plan.threshold:
            return None
        if stuck := impasse.of_openings(number, revealed.lost, current.faults):
            return self._end.wait(view.state, stuck)
        wrong = sorted({fault.node_id for fault in current.faults})
        who = f"{learners_label(silent)} to open" if silent else "openings that remove all masks"
        named = f"; what {learners_label(wrong)} published is wrong" if wrong else ""
        text = f"round {number}: {who}, of {plan.threshold} that are needed{named}"
        return Waiting("openings", text, round=number, learners=silent)

    def _stuck(self, current: _Round, view: View) -> Waiting | None:
        """Return the wait of a round with masks that can never end; None if it can, as far as is known.

        Raises
        ------
        RunStuck
            It can't, and stays so.
        """
        plan, number = self._plan, current.number
        if view.state.closed:
            judged = {key[0]: current.judged.get(key) for key in current.published.items()}
            bad = {
                node_id: judgement.reason for node_id, judgement in judged.items() if isinstance(judgement, Rejection)
            }
            coming = [node_id for node_id, judgement in judged.items() if judgement is None]
            stuck = impasse.of_files(plan, number, current.good(), bad, coming)
            return None if stuck is None else self._end.wait(view.state, stuck)
        parent = self._context.global_file(number, current.parent)
        silent = [node_id for node_id in current.members if node_id not in current.published]
        stuck = find_open(self._site.contract, plan, number, parent, silent, view.block)
        # The learners withdraw false weights, whose keys are false too; meanwhile they don't end.
        if stuck is None or self._site.contract.round_at(number).rejections:
            return None
        return self._end.wait(view.state, stuck, max(SETTLE, plan.header_timeout))

    def _missing_learners(self, current: _Round, view: View) -> Waiting:
        """Return the wait of an open round; close it after its timeout."""
        plan, number, required = self._plan, current.number, self._plan.required_learners
        if len(view.learners) < required:
            return Waiting("registration", f"{counted(required - len(view.learners), 'more learner')} to register")
        now, deadline = self._site.timing.clock.monotonic(), self._deadline(current)
        late, enough = deadline is not None and now >= deadline, len(current.published) >= required
        if late and enough:
            receipt = self._site.contract.close_round(view.nonce)
            if receipt is not None:
                emit(events.RoundClosed(round=number, block=receipt.block, gas=receipt.gas))
            # A sealer's clock may be behind; then it is tried again.
            return Waiting("block", f"round {number} to close", round=number, until=now + ASK_TO_CLOSE)
        silent = [node_id for node_id in current.members if node_id not in current.published]
        unregistered = plan.learners - len(view.learners)
        parts = [f"{learners_label(silent)} to publish"] if silent else []
        if unregistered > 0:
            parts.append(f"{unregistered} more to register")
        if late:
            parts.append(f"at least {counted(required, 'publication')} ({len(current.published)} so far)")
        return Waiting(
            "updates",
            f"round {number}: {'; '.join(parts) or 'its closing'}",
            round=number,
            learners=tuple(silent),
            until=None if late else deadline,
        )

    def _deadline(self, current: _Round) -> float | None:
        # Blocks count whole seconds, so by theirs the round may be a second younger.
        timeout = self._plan.round_timeout
        return current.start + math.ceil(timeout) + 1 if timeout else None

    def _missing_files(self, current: _Round) -> Waiting | None:
        """Return the wait for missing files of a closed round; None if it can be aggregated."""
        coming = [key for key in current.published.items() if key not in current.judged]
        missing = [key for key in current.published.items() if current.is_missing(key)]
        # What nobody has may come back, and without it these weights would stay as they are.
        if not is_enough(self._plan, len(current.good())):
            coming += missing
        if not coming:
            return None
        shares = {key: self._arrivals.share(key) for key in coming}
        files = ", ".join(with_share(key[0], shares[key]) for key in coming)
        return Waiting(
            "updates",
            f"round {current.number}: the file of learner {files}",
            round=current.number,
            learners=tuple(sorted(key[0] for key in coming)),
            arriving={str(key[0]): share for key, share in shares.items() if share} or None,
        )
