"""Whether each round of a synchronous run ends with what its local files give, and passes over nobody.

The global file of a round names every learner once: its local file as an input, its rejected file, or the learner
itself as missing. Inputs must be the learners' last publications, rejections must be deserved, and the plan's rule
must give the same global file again, bit for bit.
"""

from __future__ import annotations

from fl_node.aggregation import ensemble
from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import GlobalMeta, Input, Rejection, WeightsFile
from fl_node.audit.case import LATE, Case
from fl_node.audit.evidence import check_evidence
from fl_node.audit.global_files import again, closing_file, report_difference
from fl_node.chain.contract import LogEntry
from fl_node.errors import WeightsError
from fl_node.protocol import history
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.global_files import follows_parent, global_file
from fl_node.protocol.history import Round
from fl_node.protocol.names import HEADER, learner_label
from fl_node.protocol.publications import MISSING


class SynchronousChecker:
    """Checks the rounds of a synchronous run."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._result = case.result

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
        number, file = closed.number + 1, closing_file(case, closed, entry)
        if file is None:
            return
        meta = file.global_meta
        if len(meta.inputs) < plan.required_learners:
            text = f"{len(meta.inputs)} local files, the plan requires {plan.required_learners}"
            self._result.find(number, HEADER, "inputs", text)
        self._check_members(closed, entry, meta)
        parent = case.parent(closed)
        inputs = [self._check_input(closed, entry, one, parent) for one in meta.inputs]
        for rejection in meta.refused:
            self._check_rejection(closed, entry, rejection, parent)
        enough = len(inputs) >= plan.aggregation.least()
        if enough and None not in inputs and not (parent is None and follows_parent(plan)):
            expected = global_file(
                again(case),
                plan,
                case.past.plan_cid,
                round_=number,
                parent=str(closed.started.cid),
                inputs=[one for one in inputs if one is not None],
                parent_file=parent,
                # What the members said is taken from the file here, and measured below.
                evidence=lambda member, _weights: file.tensor(ensemble.evidence_name(member)),
                refused=meta.refused,
                absent=meta.absent,
            )
            report_difference(case, number, file, expected, "its local files give")
        check_evidence(case, number, file)

    def finish(self) -> None:
        """Say nothing more: each round was judged when it was checked."""

    def _check_members(self, closed: Round, entry: LogEntry, meta: GlobalMeta) -> None:
        """Check that a global file speaks of every learner once, and of nobody else."""
        case, result, number = self._case, self._result, closed.number + 1
        named = [*(i.node_id for i in meta.inputs), *(r.node_id for r in meta.refused), *meta.absent]
        registered = {node_id for node_id, one in case.past.learners.items() if one < entry}
        for node_id in sorted(set(named)):
            if named.count(node_id) > 1:
                result.find(number, learner_label(node_id), "inputs", "is listed more than once")
            if node_id not in registered:
                result.find(number, learner_label(node_id), "inputs", "takes part without registration")
        # The header can't have missed a registration: both are transactions of its account, which are numbered.
        for node_id in sorted(registered):
            published = [p for p in closed.published if p.node_id == node_id and p < entry]
            if node_id not in named:
                what = "published local weights" if published else "is registered"
                result.find(number, learner_label(node_id), "inputs", f"{what}, but is left out")
            elif node_id in meta.absent and published:
                if case.is_before(published[0], entry):
                    result.find(number, learner_label(node_id), "absent", "is listed as missing, but had published")
                else:
                    result.note(f"round {closed.number}: learner {node_id} published while it closed")
        if meta.absent or len(registered) < case.plan.learners:
            self._check_timeout(closed, entry)

    def _check_timeout(self, closed: Round, entry: LogEntry) -> None:
        """Check that a round that left learners out was open for long enough."""
        case, timeout = self._case, self._case.plan.round_timeout
        if not timeout:
            text = "learners are left out, but the plan has no round_timeout"
        elif not case.is_late(closed, entry):
            seconds = case.seconds(closed.started, entry)
            text = f"learners are left out {seconds} s after the round started; the plan waits {timeout:g} s"
        else:
            return
        self._result.find(closed.number + 1, HEADER, "absent", text)

    def _published(self, closed: Round, closing: LogEntry, one: Input | Rejection, field: str) -> LogEntry | None:
        """Check that a hash is a learner's last in a round, as far as the header could know; return its event."""
        case, node = self._case, learner_label(one.node_id)
        mine = [p for p in closed.published if p.node_id == one.node_id and p < closing]
        found = [p for p in mine if p.cid == one.cid]
        if not found:
            after = case.past.rounds[closed.number + 1].published
            same = [p for p in after if (p.node_id, p.cid) == (one.node_id, one.cid)]
            crossed = [p for p in same if case.is_crossed(closing, p)]
            if crossed:
                case.note_crossed(closed.number, node)
                return crossed[0]
            self._result.find(closed.number, node, field, f"did not publish {one.cid} in this round")
            return None
        later = [p for p in mine if p > found[-1]]
        if later and case.is_before(later[0], closing):
            self._result.find(closed.number, node, field, f"had replaced {one.cid} by {later[-1].cid}")
        elif later:
            self._result.note(f"round {closed.number}: {node} published again while it closed")
        return found[0]

    def _check_input(
        self, closed: Round, entry: LogEntry, one: Input, parent: WeightsFile | None
    ) -> WeightsFile | None:
        """Check one input of a global file, and return it if it can be read."""
        case, result, node, number = self._case, self._result, learner_label(one.node_id), closed.number
        if self._published(closed, entry, one, "cid") is None:
            return None
        try:
            file = case.file(one.cid, one.node_id)
            meta = file.local_meta
        except WeightsError as error:
            result.find(number, node, "file", f"{one.cid}: {error}")
            return None
        result.compare(number, node, "plan", meta.plan, case.past.plan_cid)
        result.compare(number, node, "node_id", meta.node_id, one.node_id)
        result.compare(number, node, "round", meta.round, number)
        result.compare(number, node, "parent", meta.parent, closed.started.cid)
        if (samples := case.samples(one.node_id)) is not None:
            result.compare(number, node, "samples", meta.samples, samples)
        if parent is not None:
            case.check_bounds(number, node, file, parent)
        # In an ensemble its architecture goes by the node that it says; of another's nothing can be made.
        return file if case.plan.mode != "ensemble" or meta.node_id == one.node_id else None

    def _check_rejection(self, closed: Round, entry: LogEntry, one: Rejection, parent: WeightsFile | None) -> None:
        """Check that a file that the header rejected deserved it."""
        case, result, node, plan = self._case, self._result, learner_label(one.node_id), self._case.plan
        published = self._published(closed, entry, one, "refused")
        if published is None:
            return
        often = history.too_often(closed.published, one.node_id, closed.number)
        if one.reason == history.TOO_OFTEN and often:
            result.note(f"round {closed.number}: {node} was rejected for {one.reason}")
            return
        try:
            file = case.file(one.cid, one.node_id)
            model_file.check_local(
                file,
                plan=case.past.plan_cid,
                node_id=one.node_id,
                round_=closed.number,
                parent=str(closed.started.cid),
                samples=case.samples(one.node_id),
            )
            if parent is not None:
                check_bounds(file, parent, plan)
        except WeightsError as error:
            case.note_rejection(closed, one, f"({one.reason}); this audit: {error}")
            return
        waited = case.seconds(published, entry)
        if one.reason != MISSING:
            result.find(closed.number, node, "refused", f"{one.cid} is valid, but was rejected: {one.reason}")
        elif waited + LATE < plan.fetch_timeout and not case.is_late(closed, entry):
            text = (
                f"{one.cid} is available, but was rejected as missing {waited} s after publication; "
                f"the plan allows {plan.fetch_timeout:g} s"
            )
            result.find(closed.number, node, "refused", text)
        else:
            # It may have been away then; nobody can tell afterwards.
            case.note_rejection(closed, one, "as missing, but is available now")
