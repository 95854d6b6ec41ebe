"""Checks that the global files of an asynchronous run count each update once and in order, and omit none.

A global file says how many publications of each learner it and all before it have dealt with. So each file must name
exactly the next publications of each learner: good ones as updates, the others as rejected. The plan's rule must give
the same global file again, bit for bit, and no learner may wait much longer than a file may take to arrive.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from fl_node.artifacts import cid
from fl_node.artifacts.model_file import GlobalMeta, Input, Rejection
from fl_node.chain.contract import Contract, LogEntry
from fl_node.errors import DataError, WeightsError
from fl_node.protocol.asynchronous_files import Update, asynchronous_file
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.compressed import decoded
from fl_node.protocol.history import History, Round
from fl_node.protocol.names import HEADER, MISSING, learner_label
from fl_node.protocol.publications import Publication, check_newer, check_share, check_update, is_done
from fl_node.protocol.verification.case import Case
from fl_node.protocol.verification.global_files import again, closing_file, report_difference
from fl_node.wording import counted

LATE = 30
"""Seconds, by the chain's clock, within which a publication and the closing of a round may have coincided.

The header need not have seen what stands before its closing. And it may have seen what stands after it: sealers
replace a block by another now and then, and what was in the one is sealed again, perhaps behind what came of it.
"""
CLOCKS = 2.0
"""Seconds by which a timeout may differ by the clocks of the header and of the chain, without a note."""
SHORTEST = 10.0
"""Timeouts up to this many seconds can't be checked by the times of blocks, which may be replaced."""


def tolerance(timeout: float) -> float:
    """Return by how many seconds a timeout may have been shorter by the chain's clock than by the header's.

    Parameters
    ----------
    timeout
        The timeout in seconds.
    """
    return min(LATE, max(SHORTEST, timeout / 2))


BY_PUBLICATIONS = frozenset({"cid", "inputs", "refused", "taken"})
"""Fields of findings that depend on earlier publications; the replacement of a block can briefly hide these."""
MOST_COUNTED = 1000
"""Number of accepted updates whose learners are remembered: the longest window of a plan."""
PATIENCE = 3
"""Multiple of ``fetch_timeout`` for which an update may be passed over; a restarted header waits again."""


@dataclass(frozen=True)
class AsynchronousCase(Case):
    """An asynchronous run under verification, with its history and the times between its events.

    ``publications`` are those of local weights in all rounds, in the order of the chain.
    """

    contract: Contract
    past: History
    publications: tuple[Publication, ...]
    seen: Collection[str] = ()
    """Local files that this verifier had before the global weights were published, so they were available."""

    def seconds(self, first: LogEntry, second: LogEntry) -> int:
        """Return the time between two events, by the chain's clock."""
        chain = self.contract.chain
        return chain.timestamp(second.block) - chain.timestamp(first.block)

    def is_before(self, entry: LogEntry, closing: LogEntry) -> bool:
        """Return whether an event came so long before the closing of a round that the header must have known it."""
        return self.seconds(entry, closing) > LATE

    def is_crossed(self, closing: LogEntry, entry: LogEntry) -> bool:
        """Return whether an event came so soon after the closing of a round that the header may have known it."""
        return 0 <= self.seconds(closing, entry) <= LATE

    def note_crossed(self, round_: int, node: str) -> None:
        """Note that an event comes after its consequence in the log."""
        self.result.note(
            f"round {round_}: {node}'s weights were sealed again after their round, because a block was replaced"
        )

    def is_late(self, closed: Round, closing: LogEntry) -> bool:
        """Return whether a round was open for so long that it need not wait for all learners."""
        timeout = self.plan.round_timeout
        return bool(timeout) and self.seconds(closed.started, closing) + tolerance(timeout) >= timeout


@dataclass(frozen=True)
class _Waiting:
    """A learner's next publication, with the seconds for which it was passed over until the last closing."""

    publication: Publication
    closing: LogEntry
    seconds: float = 0.0
    wrongly: bool | None = None
    """Whether it should have been counted; None before it is judged."""


class AsynchronousChecker:
    """Checks the rounds of an asynchronous run, in order."""

    def __init__(self, case: AsynchronousCase) -> None:
        self._use(case)
        self._accepted: dict[int, int] | None = {}
        """The number of each learner's publications that the last global file covers; None if it can't be read."""
        self._waiting: dict[int, _Waiting] = {}
        self._started: dict[int, int] = {}
        """The round from which each learner's last accepted update was trained, by nodeId."""
        self._counted: list[int] = []
        """The learners of the accepted updates, in order; after a restart only of the last ones."""

    def _use(self, case: AsynchronousCase) -> None:
        self._case = case
        self._result = case.result

    def again(self, case: AsynchronousCase) -> AsynchronousChecker:
        """Return a checker that continues from the state of this one, with a newer case."""
        other = copy.copy(self)
        other._use(case)
        other._accepted = None if self._accepted is None else dict(self._accepted)
        other._waiting, other._started = dict(self._waiting), dict(self._started)
        other._counted = list(self._counted)
        return other

    def resume(self, number: int) -> None:
        """Continue after global weights that were checked before, from their files and those of earlier rounds.

        Parameters
        ----------
        number
            The round that starts from them.

        Raises
        ------
        WeightsError
            A file is missing.
        """
        rounds, learners = self._case.past.rounds, self._case.past.learners
        window = self._case.plan.asynchronous_rule.counted_before
        for round_ in reversed(rounds[: number + 1]):
            meta = self._case.file(str(round_.started.cid)).global_meta
            if round_.number == number:
                self._accepted = dict(meta.taken or ())
            self._started = {i.node_id: i.started or 0 for i in meta.inputs} | self._started
            self._counted = [i.node_id for i in meta.inputs] + self._counted
            if learners.keys() <= self._started.keys() and len(self._counted) >= window:
                break

    def can_close(self, newest: int, *, late: bool) -> bool:
        """Return whether the header can publish the next global weights.

        Parameters
        ----------
        newest
            The newest round, which was checked.
        late
            Whether the round has been open for the plan's ``round_timeout``.
        """
        case, rule = self._case, self._case.plan.asynchronous_rule
        accepted, started, good = self._accepted or {}, dict(self._started), list[int]()
        counted, taken = list(self._counted), dict(accepted)
        for publication in case.publications:
            if publication.number <= accepted.get(publication.node_id, 0) or (
                rule.takes_one_of_each and publication.node_id in good
            ):
                continue
            taken[publication.node_id] = publication.number
            with suppress(WeightsError, DataError):
                self._check_good(publication, newest, started.get(publication.node_id), [*counted, *good])
                good.append(publication.node_id)
                started[publication.node_id] = case.file(publication.cid, publication.node_id).local_meta.round
        if len(good) >= rule.updates or (late and good):
            return True
        return self._are_all_done(str(case.past.rounds[newest].started.cid), accepted, taken, good)

    def _are_all_done(
        self,
        parent: str,
        before: Mapping[int, int],
        after: Mapping[int, int],
        good: Collection[int],
        missing: Collection[tuple[int, str]] = (),
    ) -> bool:
        """Return whether no learner can add an update to those of a round.

        Parameters
        ----------
        parent
            The CID of the global weights that the round started from.
        before, after
            How many publications of each learner were accepted or rejected when it started, and when it ended.
        good
            The learners whose updates count in it.
        missing
            What the header rejected as missing, by nodeId and CID; it may be available now.
        """
        case = self._case

        def began(publication: Publication) -> str | None:
            if (publication.node_id, publication.cid) in missing:
                return None
            try:
                return case.file(publication.cid, publication.node_id).local_meta.parent
            except WeightsError:
                return None

        for node_id in range(1, case.plan.learners + 1):
            first, last = before.get(node_id, 0), after.get(node_id, 0)
            taken = [publication for publication in case.publications if publication.node_id == node_id][:last]
            counts = node_id in good
            if not is_done(case.plan, node_id, parent, taken, new=last - first, counts=counts, began=began):
                return False
        return True

    def check(self, closed: Round, entry: LogEntry) -> None:
        """Check the global weights that closed a round.

        Parameters
        ----------
        closed
            The round.
        entry
            The event that closed it.
        """
        case, plan = self._case, self._case.plan
        number = closed.number + 1
        file = closing_file(case, number, str(closed.started.cid), str(entry.cid))
        if file is None:
            self._accepted = None
            return
        meta = file.global_meta
        self._check_enough(closed, entry, meta)
        first = self._check_sequence(number, meta, entry)
        updates = [self._check_update(number, input_) for input_ in meta.inputs]
        for input_ in meta.inputs:
            first[input_.node_id, input_.cid] -= 1
            if first[input_.node_id, input_.cid] < 0:
                self._result.find(
                    closed.number, learner_label(input_.node_id), "cid", f"{input_.cid} was published before"
                )
        lasts = self._lasts(meta)
        for rejection in meta.refused:
            first[rejection.node_id, rejection.cid] -= 1
            # What was published again deserves its rejection.
            repeated = first[rejection.node_id, rejection.cid] < 0
            before = lasts.get((rejection.node_id, rejection.cid), (None, []))
            self._check_rejection(closed, entry, rejection, repeated=repeated, before=before)
        self._check_newer(number, meta)
        parent = case.parent(closed.number, str(closed.started.cid))
        if parent is not None and parent.global_meta.round != closed.number:
            return  # found where these global weights were checked; how old an update is goes by it
        good = [update for update in updates if update is not None]
        is_computable = len(updates) <= plan.asynchronous_rule.updates  # more are found already
        if parent is not None and len(good) == len(updates) and is_computable:
            expected = asynchronous_file(
                again(case),
                plan,
                case.plan_cid,
                parent=parent,
                updates=good,
                refused=meta.refused,
                taken=meta.taken or (),
                stated=meta.epsilon,
            )
            report_difference(case, number, file, expected, "its updates give")

    def _check_enough(self, closed: Round, entry: LogEntry, meta: GlobalMeta) -> None:
        """Check that a round waited for all updates that the plan requires, unless there could be no more."""
        case, wanted, count = self._case, self._case.plan.asynchronous_rule.updates, len(meta.inputs)
        if count == wanted:
            return
        if 0 < count < wanted and case.is_late(closed, entry):
            if (seconds := case.seconds(closed.started, entry)) < case.plan.round_timeout - CLOCKS:
                ended = f"round {closed.number}: ended with {counted(count, 'update')} of {wanted} after {seconds} s"
                self._result.note(f"{ended} by the chain's clock; round_timeout is {case.plan.round_timeout:g} s")
            return
        missing = {(rejection.node_id, rejection.cid) for rejection in meta.refused if rejection.reason == MISSING}
        good = {input_.node_id for input_ in meta.inputs}
        parent, before, after = str(closed.started.cid), self._accepted or {}, dict(meta.taken or ())
        if count > wanted or not self._are_all_done(parent, before, after, good, missing):
            self._result.find(
                closed.number + 1, HEADER, "inputs", f"{counted(count, 'update')}, the plan requires {wanted}"
            )

    def _lasts(self, meta: GlobalMeta) -> dict[tuple[int, str], tuple[int | None, list[int]]]:
        """Return, for what a global file names, what counted before it.

        That is where its learner's last update started that counted, and the learners of all updates that counted.
        """
        inputs = {(input_.node_id, input_.cid): input_.started or 0 for input_ in meta.inputs}
        named = {*inputs, *((rejection.node_id, rejection.cid) for rejection in meta.refused)}
        last, lasts = dict(self._started), dict[tuple[int, str], tuple[int | None, list[int]]]()
        counted = list(self._counted)
        for publication in self._case.publications:
            key = publication.node_id, publication.cid
            if key in named and key not in lasts:
                lasts[key] = last.get(publication.node_id), list(counted)
                if key in inputs:
                    counted.append(publication.node_id)
                    last[publication.node_id] = inputs[key]
        return lasts

    def _check_newer(self, number: int, meta: GlobalMeta) -> None:
        """Check that each update is newer than its learner's last, in its share, and the only one if it must be."""
        one_each, here = self._case.plan.asynchronous_rule.takes_one_of_each, Counter[int]()
        for input_ in meta.inputs:
            here[input_.node_id] += 1
            if one_each and here[input_.node_id] > 1:
                text = "more than one update of it counts; the plan takes one of each learner"
                self._result.find(number, learner_label(input_.node_id), "inputs", text)
            try:
                check_newer(input_.started or 0, self._started.get(input_.node_id))
            except WeightsError as error:
                self._result.find(number, learner_label(input_.node_id), "inputs", f"{input_.cid} {error}")
            self._started[input_.node_id] = input_.started or 0
            try:
                check_share(input_.node_id, self._counted, self._case.plan.asynchronous_rule)
            except WeightsError as error:
                self._result.find(number, learner_label(input_.node_id), "inputs", f"{input_.cid} {error}")
            self._counted = [*self._counted, input_.node_id][-MOST_COUNTED:]

    def finish(self) -> None:
        """Note the publications that were passed over."""
        for waiting in self._waiting.values():
            if not waiting.wrongly:
                what = f"{learner_label(waiting.publication.node_id)}'s {waiting.publication.cid}"
                self._result.note(f"{what} was neither counted nor rejected, although later ones were")

    def _check_sequence(self, number: int, meta: GlobalMeta, closing: LogEntry) -> Counter[tuple[int, str]]:
        """Check that no publication is counted twice or omitted: each learner's next publications count in order.

        Returns by nodeId and hash how many of these publications are the first of their hash, which may be counted;
        what its learner published again is to be rejected.
        """
        case, everything = self._case, self._case.publications
        before, after = self._accepted or {}, dict(meta.taken or ())
        was_read, self._accepted = self._accepted is not None, after
        all_named = [(i.node_id, i.cid) for i in meta.inputs] + [(r.node_id, r.cid) for r in meta.refused]
        if not was_read:
            return Counter(all_named)  # the last global file could not be read, which is found already
        place = {(publication.node_id, publication.cid): publication.entry for publication in reversed(everything)}
        order = [place[input_.node_id, input_.cid] for input_ in meta.inputs if (input_.node_id, input_.cid) in place]
        firsts: Counter[tuple[int, str]] = Counter()
        nodes = (
            {*before, *after}
            | {node_id for node_id, _ in all_named}
            | {publication.node_id for publication in everything}
        )
        for node_id in sorted(nodes):
            mine = [publication for publication in everything if publication.node_id == node_id]
            named = [name for other, name in all_named if other == node_id]
            first, last = before.get(node_id, 0), after.get(node_id, 0)
            if not self._check_next(number, node_id, mine, named, (first, last), closing):
                firsts.update((node_id, name) for name in named)
                continue
            earlier = {publication.cid for publication in mine[:first]}
            firsts.update((node_id, name) for name in {publication.cid for publication in mine[first:last]} - earlier)
            if last < len(mine) and not (
                case.plan.asynchronous_rule.takes_one_of_each
                and node_id in {input_.node_id for input_ in meta.inputs}
            ):
                self._pass_over(number, mine[last], order, closing)
            else:
                self._waiting.pop(node_id, None)
        swapped = [(first, second) for first, second in pairwise(order) if second < first]
        if any(case.is_before(second, first) for first, second in swapped):
            self._result.find(number, HEADER, "inputs", "should be in the order of publication")
        elif swapped:
            self._result.note(f"round {number - 1}: some updates changed their order when a block was replaced")
        return firsts

    def _check_next(
        self,
        number: int,
        node_id: int,
        mine: Sequence[Publication],
        named: Sequence[str],
        span: tuple[int, int],
        closing: LogEntry,
    ) -> bool:
        """Return whether a global file lists exactly a learner's publications since the last global file."""
        case, node, (first, last) = self._case, learner_label(node_id), span
        known = sum(publication.entry < closing for publication in mine)
        crossed = known < last <= len(mine) and case.is_crossed(closing, mine[last - 1].entry)
        if last < first or (last > known and not crossed):
            self._result.find(number, node, "taken", f"is {last}, should be {first} to {known}")
            return False
        if crossed and last > first:
            case.note_crossed(number - 1, node)
        next_ = [publication.cid for publication in mine[first:last]]
        if sorted(next_) != sorted(named):
            text = (
                f"its publications {first + 1} to {last} are {', '.join(next_) or 'none'}, "
                f"the file names {', '.join(named) or 'none'}"
            )
            self._result.find(number, node, "taken", text)
            return False
        return True

    def _pass_over(
        self, number: int, publication: Publication, counted: Sequence[LogEntry], closing: LogEntry
    ) -> None:
        """Check that a learner's next publication is not passed over while later ones of others are counted.

        The header may wait for a file that is missing, and longer if it was killed in the meantime. For one that
        arrives slowly it waits as long as each block comes within ``fetch_timeout``.
        """
        case, timeout = self._case, self._case.plan.fetch_timeout
        if not any(case.is_before(publication.entry, other) for other in counted):
            self._waiting.pop(publication.node_id, None)
            return
        known = self._waiting.get(publication.node_id)
        if known is None or known.publication != publication:
            known = _Waiting(publication, closing)
        seconds = known.seconds + min(case.seconds(known.closing, closing), timeout + LATE)
        wrongly = known.wrongly
        more_blocks = case.reader.max_bytes(publication.node_id) // cid.CHUNK_BYTES - 1
        if wrongly is None and seconds > (PATIENCE + more_blocks) * timeout + LATE:
            try:
                self._check_good(publication, number - 1, self._started.get(publication.node_id), self._counted)
            except (WeightsError, DataError):
                wrongly = False
            else:
                wrongly = True
                what = "was neither counted nor rejected, although later ones were"
                self._result.find(
                    publication.entry.round, learner_label(publication.node_id), "inputs", f"{publication.cid} {what}"
                )
        self._waiting[publication.node_id] = _Waiting(publication, closing, seconds, wrongly)

    def _check_good(self, publication: Publication, newest: int, last: int | None, counted: Sequence[int]) -> None:
        """Check an update as the header does.

        Parameters
        ----------
        publication
            Its publication.
        newest
            The newest round whose global weights it may have started from.
        last
            The round from which its learner's last counted update was trained, if one was counted.
        counted
            The learners of the updates that counted before, in their order.

        Raises
        ------
        WeightsError
            The header must reject the update.
        """
        case = self._case
        file = case.file(publication.cid, publication.node_id)
        check_newer(file.local_meta.round, last)
        check_share(publication.node_id, counted, case.plan.asynchronous_rule)
        gone = case.past.withdrawn_cids()
        check_update(file, case.contract, case.plan, case.plan_cid, publication.node_id, newest, gone)
        start = case.file(file.local_meta.parent)
        check_bounds(decoded(file, start, case.plan), start, case.plan)

    def _check_update(self, number: int, input_: Input) -> Update | None:
        """Check an input of an asynchronous global file, and return it with the weights that it started from."""
        case, result, node = self._case, self._result, learner_label(input_.node_id)
        if (input_.node_id, input_.cid) not in {(other.node_id, other.cid) for other in case.publications}:
            result.find(number - 1, node, "cid", f"did not publish {input_.cid}")
            return None
        try:
            file = case.file(input_.cid, input_.node_id)
            meta = file.local_meta
        except WeightsError as error:
            case.unreadable(number - 1, node, input_.cid, error)
            return None
        began = case.past.rounds[meta.round] if meta.round < number else None
        if began is None:
            result.find(number - 1, node, "round", f"is {meta.round}, should be before {number}")
            return None
        result.compare(number - 1, node, "plan", meta.plan, case.plan_cid)
        result.compare(number - 1, node, "node_id", meta.node_id, input_.node_id)
        result.compare(number - 1, node, "parent", meta.parent, began.started.cid)
        case.check_samples(number - 1, input_.node_id, meta.samples)
        if (start := case.parent(began.number, str(began.started.cid))) is None:
            return None
        try:
            file = decoded(file, start, case.plan)
        except WeightsError as error:
            case.unreadable(number - 1, node, input_.cid, error)
            return None
        case.check_bounds(number - 1, node, file, start)
        return Update(file, start)

    def _check_rejection(
        self,
        closed: Round,
        entry: LogEntry,
        rejection: Rejection,
        *,
        repeated: bool,
        before: tuple[int | None, Sequence[int]],
    ) -> None:
        """Check that the header rejected an update rightly; an update that was published again may be rejected."""
        case, node = self._case, learner_label(rejection.node_id)
        mine = [
            other for other in case.publications if (other.node_id, other.cid) == (rejection.node_id, rejection.cid)
        ]
        if not mine:
            self._result.find(closed.number, node, "refused", f"did not publish {rejection.cid}")
            return
        if repeated:
            return
        try:
            self._check_good(mine[0], closed.number, *before)
        except (WeightsError, DataError) as error:
            case.note_rejection(closed.number, rejection, f"({rejection.reason}); this audit: {error}")
            return
        if (
            rejection.reason != MISSING
            or rejection.cid in case.seen
            or case.seconds(mine[0].entry, entry) + tolerance(case.plan.fetch_timeout) < case.plan.fetch_timeout
        ):
            self._result.find(
                closed.number, node, "refused", f"{rejection.cid} is valid, but was rejected: {rejection.reason}"
            )
        else:
            case.note_rejection(closed.number, rejection, "as missing, but is available now")
