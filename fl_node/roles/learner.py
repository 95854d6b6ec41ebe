"""The learner: trains local weights from each round's global weights, on data that never leaves it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.download import logged
from fl_node.artifacts.model_file import WeightsFile
from fl_node.artifacts.store import Progress
from fl_node.chain.contract import View
from fl_node.errors import ConfigError, FileMissing, WeightsError
from fl_node.models.trainer import Trainer
from fl_node.plan.schema import Plan
from fl_node.protocol import budget
from fl_node.protocol.masked import check_keys
from fl_node.protocol.names import learners_label
from fl_node.protocol.patience import committee_timeout, header_timeout
from fl_node.protocol.reader import Reader
from fl_node.protocol.verification.synchronous import Closing
from fl_node.roles.attack import check_allowed
from fl_node.roles.budget_watch import BudgetWatch
from fl_node.roles.committee_duty import CommitteeDuty
from fl_node.roles.impasse import LOOK_AGAIN
from fl_node.roles.local_training import LocalTraining, Record, Untrainable
from fl_node.roles.loop import Done, Site, Waiting, patience_of
from fl_node.roles.masking import Masking
from fl_node.roles.pruner import Pruner
from fl_node.roles.succession import Succession
from fl_node.roles.verifier import Verifier
from fl_node.runtime.logs import emit
from fl_node.wording import counted

ASK_WHETHER_OPEN = 5.0
"""Seconds between checks whether a round is still open while its global weights are fetched."""
ASK_OTHERS = 1.0
"""Seconds between checks for whom a learner waits, times :func:`~fl_node.roles.loop.patience_of`."""
NAMED = 16
"""The most learners of whom a waiting learner says which must act. Of more it says how many, and reads what each has
published only if it needs the files: otherwise the requests would grow with the square of the learners."""


@dataclass(frozen=True)
class _Unfit:
    """Global weights that this learner can't use, and the reason; it does not try them again."""

    parent: str
    reason: str


class Learner:
    """A learner in a run; refuses a plan with attacks unless they are allowed."""

    def __init__(
        self,
        site: Site,
        plan: Plan,
        trainer: Trainer,
        record: Record = lambda *_: None,
        *,
        allow_attacks: bool = False,
        verify: bool = True,
    ) -> None:
        check_allowed(plan, allowed=allow_attacks)
        self._site = site
        self._plan = plan
        self._plan_cid = site.contract.plan()
        self._reader = Reader(site.store, site.folder, plan, trainer.shapes())
        self._stored = ""
        self._open: tuple[tuple[int, bool], float, Mapping[int, str]] = ((-1, False), 0.0, {})
        self._unfit: _Unfit | None = None
        self._verifier = Verifier(site, plan, self._plan_cid, trainer) if verify and plan.is_verified else None
        self._header_timeout = header_timeout(plan, trainer.shapes())
        self._succession = Succession(site, plan, self._header_timeout)
        self._duty = CommitteeDuty(site, plan, committee_timeout(plan, trainer.shapes()))
        self._budget = BudgetWatch(site.contract, plan, self._global_file)
        self._spent = False
        self._masking = Masking(site, plan, self._plan_cid, self._reader) if plan.is_masked else None
        self._training = LocalTraining(site, plan, self._plan_cid, trainer, self._reader, self._masking, record)
        self._openings: Mapping[int, str] = {}
        self._next_look = 0.0
        self._pruner = Pruner.of(site, plan)

    def close(self) -> None:
        """Stop background work."""
        if self._pruner is not None:
            self._pruner.close()
        if self._verifier is not None:
            self._verifier.close()

    def step(self) -> Waiting | None:
        """Read the contract and take the next step.

        Raises
        ------
        Done
            The run has ended.
        ConfigError
            Other accounts are registered for all learners, so this one has no part in the run.
        """
        contract, plan = self._site.contract, self._plan
        # Whether the committee has attested is read with everything else.
        view = contract.view(self._site.chain.address, self._duty.awaited)
        self._site.see(view, plan)
        state, node_id = view.state, view.node_id
        if state.round >= plan.rounds or self._budget.is_over(state):
            if node_id is not None and (waiting := self._attest(view, node_id)) is not None:
                return waiting
            if self._masking is not None:
                self._masking.finish(state.round + 2)  # also what was made for a round that does not come
            if self._pruner is not None:
                self._pruner.finish(node_id)
            emit(events.RunFinished(round=state.round))
            raise Done
        if node_id is None:
            if len(view.learners) >= plan.learners:
                raise ConfigError(
                    f"contract {contract.address}: all {plan.learners} learners are registered, "
                    f"and none of them with this account, {self._site.chain.address}"
                )
            return Waiting("registration", f"the header to register {self._site.chain.address}")
        if state.global_cid is None:
            if self._masking is not None and (waiting := self._masking.announce(view, node_id, 0)) is not None:
                return waiting
            return Waiting("initial_weights", "the header to publish the initial weights")
        return self._work(view, node_id, state.global_cid)

    def _work(self, view: View, node_id: int, global_cid: str) -> Waiting | None:
        """Train from these global weights and publish the result, unless this is done."""
        state = view.state
        self._succession.see(state, len(self._openings))
        if self._verifier is not None and self._duty.is_on(view, node_id, global_cid):
            self._verifier.start(state.round, global_cid, node_id)
            if waiting := self._reject(view, node_id, state.round, global_cid):
                return waiting
        if (
            self._masking is not None
            and (waiting := self._mask(self._masking, view, node_id, global_cid)) is not None
        ):
            return waiting
        local = self._training.finished(state.round, node_id, global_cid)
        # What was published stays: a second file would cost as much ε as a round, or have the same masks.
        stays = local is None or view.published == local.cid or self._is_private
        if state.closed or (view.published and stays):
            return self._wait_for_others(view, node_id)
        if not self._may_publish(state.round, node_id, local):
            return self._wait_for_others(view, node_id)
        if local is None:
            return self._train(state.round, node_id, global_cid)
        if not self._is_private:
            self._store(local)
        waiting = self._duty.wait(view) or self._unverified(state.round, global_cid)
        return waiting or self._publish(local, view.nonce)

    @property
    def _is_private(self) -> bool:
        """Whether nobody may see a file that does not count, such as one that was made from false global weights.

        Its masks may be for keys that the header knows, and its ε would not be counted. A file in the store is not
        secret: on IPFS a node tells others which files it has.
        """
        return self._masking is not None or self._plan.dp is not None

    def _may_publish(self, round_: int, node_id: int, local: WeightsFile | None) -> bool:
        """Return whether the privacy budget allows this learner to publish its local weights or new ones."""
        if self._spent:
            return False  # it never becomes less
        self._spent = not self._budget.may_publish(node_id, round_, local.cid if local is not None else None)
        return not self._spent

    def _mask(self, masking: Masking, view: View, node_id: int, global_cid: str) -> Waiting | None:
        """Do the additional steps of masks; None if this learner can continue as without masks."""
        contract, state = self._site.contract, view.state
        verdict = self._verifier.verdict(state.round, global_cid) if self._verifier is not None else None
        if self._verifier is None or (verdict is not None and verdict.is_right):
            masking.finish(state.round)
        try:
            parent = self._global_file(state.round, global_cid)
            model_file.check_global(parent, plan=self._plan_cid, round_=state.round)
        except WeightsError:
            return None  # dealt with where it would be trained from
        if not state.closed:
            if masking.takes_part(parent, node_id):
                return None
            return masking.announce(view, node_id, state.round + 1) or self._wait_for_others(view, node_id)
        members = contract.members(state.round, view.block)
        published = contract.local_weights(state.round, members, view.block)
        if node_id not in published or (waiting := self._unverified(state.round, global_cid)) is not None:
            return None if node_id not in published else waiting
        lend = self._verifier.lend_local if self._verifier is not None else lambda _name, _path: None
        return masking.open(view, node_id, parent, published, lend)

    def _unverified(self, round_: int, global_cid: str) -> Waiting | None:
        """Return the wait for the verification of these global weights; None if they are correct."""
        verifier = self._verifier
        if verifier is None or self._duty.is_relied_on:
            return None
        verdict = verifier.verdict(round_, global_cid)
        if verdict is not None and verdict.is_right:
            return None
        text = f"the verification of global weights {round_}"
        detail = f"{text}: {verdict.lacking}" if verdict is not None else text
        # It may have ended since it was asked for its verdict.
        seen = verdict is not None and verifier.is_done()
        if seen and verdict is not None and verdict.is_early:
            return Waiting("verification", detail, round=round_)  # for the next block
        return Waiting("verification", detail, round=round_, watch=verifier.is_done, seen=seen)

    def _reject(self, view: View, node_id: int, round_: int, global_cid: str) -> Waiting | None:
        """Reject wrong global weights and wait for others; None if nothing is known about them."""
        verdict = self._verifier.verdict(round_, global_cid) if self._verifier is not None else None
        if verdict is None or verdict.wrong is None:
            return None
        contract, wrong = self._site.contract, verdict.wrong
        if not contract.verdict_of(node_id).rejected:
            receipt = contract.reject(
                verdict.round, verdict.cid, view.nonce, code=wrong.field, evidence=verdict.evidence or None
            )
            if receipt is not None:
                emit(
                    events.GlobalWeightsRejected(
                        round=verdict.round,
                        cid=verdict.cid,
                        code=wrong.field,
                        detail=str(wrong),
                        block=receipt.block,
                        gas=receipt.gas,
                    )
                )
        text = f"valid global weights {verdict.round}; rejected: {wrong}"
        return Waiting(
            "valid_weights", text, round=view.state.round, watch=contract.state, seen=view.state, by_event=True
        )

    def _attest(self, view: View, node_id: int) -> Waiting | None:
        """Attest the last global weights; None if this is done."""
        contract, state, name = self._site.contract, view.state, str(view.state.global_cid)
        if self._verifier is None or contract.verdict_of(node_id).attested:
            return None
        self._duty.end()
        self._verifier.start(state.round, name, node_id)
        if waiting := self._reject(view, node_id, state.round, name) or self._unverified(state.round, name):
            return waiting
        receipt = contract.attest(state.round, name, view.nonce)
        if receipt is None:
            text = f"a block with the attestation of global weights {state.round}"
            return Waiting("block", text, round=state.round)
        emit(events.GlobalWeightsAttested(round=state.round, cid=name, block=receipt.block, gas=receipt.gas))
        return None

    def _wait_for_others(self, view: View, node_id: int) -> Waiting:
        """Wait for the end of the round; reads the missing learners less often than each block."""
        if self._pruner is not None:
            self._pruner.look(view.state.round, node_id)
        contract, state, round_ = self._site.contract, view.state, view.state.round
        published = self._published(view)
        if self._masking is not None and (stuck := self._stuck(self._masking, view, published)) is not None:
            return replace(stuck, watch=contract.state, seen=state)
        self._succession.push(view, node_id, published, len(self._openings), self._verifier)
        who: tuple[int, ...] | None = None
        if state.closed:
            opened = len(self._openings) >= self._plan.threshold
            who = () if opened else tuple(n for n in sorted(published) if n not in self._openings)
        elif self._is_read(view):
            who = tuple(node_id for node_id in view.learners if node_id not in published)
        missing = learners_label(who) if who else "the header"
        if who is None and (count := len(view.learners) - view.record.published):
            missing = f"{count} of {counted(len(view.learners), 'learner')}"
        return Waiting(
            "round_end",
            f"round {round_} to {'end' if state.closed else 'close'}; {missing} must act",
            round=round_,
            learners=who,
            watch=contract.state,
            seen=state,
            by_event=True,
            look_again_factor=patience_of(len(view.learners)),
        )

    def _is_read(self, view: View) -> bool:
        """Return whether this learner needs to know who has published what."""
        verifies = self._verifier is not None and self._plan.verifiers != "committee"
        late = view.state.closed and self._succession.is_late
        return len(view.learners) <= NAMED or verifies or self._masking is not None or late

    def _published(self, view: View) -> Mapping[int, str]:
        """Return the round's local weights as read a moment ago, and fetch what a verification will need.

        Nothing is read, and nothing returned, if this learner does not need to know.
        """
        if not self._is_read(view):
            return {}
        contract, state, round_ = self._site.contract, view.state, view.state.round
        asked_for, asked, published = self._open
        now = self._site.timing.clock.monotonic()
        if asked_for == (round_, state.closed) and now - asked <= ASK_OTHERS * patience_of(len(view.learners)):
            return published
        block = view.block if state.closed else None
        published = contract.local_weights(round_, view.learners, block)
        self._open = ((round_, state.closed), now, published)
        if self._plan.verifiers == "committee" or self._verifier is None:
            return published  # nobody knows yet who will need the files
        if not state.closed:
            self._verifier.fetch(published)
            return published
        members = frozenset(contract.members(round_, block))
        spent = {} if self._plan.dp is None else budget.publications(contract.log())
        keys: Mapping[int, str] = {}
        if self._masking is not None:
            self._openings, keys = contract.openings_and_next_keys(round_, sorted(members), block)
        self._verifier.expect(
            Closing(round_, str(state.global_cid), dict(published), members, spent, self._openings, keys)
        )
        return published

    def _stuck(self, masking: Masking, view: View, published: Mapping[int, str]) -> Waiting | None:
        """Return the wait of a round with masks that can never end; None if it can, as far as is known."""
        state, now = view.state, self._site.timing.clock.monotonic()
        if not state.closed:
            # Of false weights the keys are false too.
            if self._unverified(state.round, str(state.global_cid)) is not None:
                return None
            return masking.stuck_open(view, self._global_file(state.round, str(state.global_cid)), published)
        if not self._succession.is_late or now < self._next_look:
            return None
        parent = self._global_file(state.round, str(state.global_cid))
        waiting = masking.stuck_closed(view, parent, published, self._openings)
        if waiting is None:
            self._next_look = now + LOOK_AGAIN
        return waiting

    def _train(self, round_: int, node_id: int, parent: str) -> Waiting | None:
        """Train from global weights; return the wait for better weights if they are invalid or can't be used."""
        if self._unfit and self._unfit.parent == parent:
            return self._wait_for_better(round_, self._unfit)
        try:
            file = self._global_file(round_, parent)
            model_file.check_global(file, plan=self._plan_cid, round_=round_)
            check_keys(file)
        except WeightsError as error:
            if self._verifier is not None:
                self._duty.take_on()
                # The verification reads them too, and then they are rejected.
                return self._unverified(round_, parent)
            return self._cannot(round_, parent, f"global weights {round_} ({parent}) are invalid: {error}")
        try:
            self._training.train(round_, node_id, file)
        except Untrainable as error:
            return self._cannot(round_, parent, str(error))
        return None

    def _global_file(self, round_: int, name: str) -> WeightsFile:
        """Return global weights, fetched if they are not here."""
        path = self._site.folder / f"global-{round_}.safetensors"
        if self._verifier is not None:
            self._verifier.lend(name, path)
        return self._reader.read(name, path=path, progress=self._still_wanted(round_, name))

    def _still_wanted(self, round_: int, name: str) -> Progress:
        """Return a callback that logs the progress of global weights and cancels when their round closes."""
        meter = logged(name)
        asked = time.monotonic()

        def progress(received: int, length: int | None) -> None:
            nonlocal asked
            meter(received, length)
            if time.monotonic() - asked >= ASK_WHETHER_OPEN:
                asked = time.monotonic()
                if self._plan.mode != "async" and self._site.contract.round() != round_:
                    raise FileMissing(f"round {round_} closed before its global weights {name} arrived", received)

        return progress

    def _cannot(self, round_: int, parent: str, reason: str) -> Waiting:
        """Remember that this learner can't use these global weights, and wait for others."""
        self._unfit = _Unfit(parent, reason)
        emit(events.GlobalWeightsUnusable(round=round_, cid=parent, detail=reason))
        return self._wait_for_better(round_, self._unfit)

    def _wait_for_better(self, round_: int, unfit: _Unfit) -> Waiting:
        text = f"valid global weights; {unfit.reason}"
        watch = self._site.contract.round
        return Waiting("valid_weights", text, round=round_, watch=watch, seen=round_, by_event=True)

    def _store(self, local: WeightsFile) -> None:
        """Give the file to this host's own store, unless this has been done."""
        if self._stored != local.cid:
            self._site.store.add(local.path)
            emit(events.FileStored(round=local.published_meta.round, cid=local.cid))
            self._stored = local.cid

    def _publish(self, local: WeightsFile, nonce: int) -> Waiting | None:
        self._store(local)
        meta = local.published_meta
        receipt = self._site.contract.set_local_weight(
            meta.node_id,
            local.cid,
            nonce,
            trained_from=(meta.round, meta.parent),
            attests=self._verifier is not None and not self._duty.is_relied_on,
        )
        if receipt is None:
            text = f"a block with the local weights of round {meta.round}"
            return Waiting("block", text, round=meta.round)
        emit(events.LocalWeightsPublished(round=meta.round, cid=local.cid, block=receipt.block, gas=receipt.gas))
        return None
