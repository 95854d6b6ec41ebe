"""The learner: trains local weights from each round's global weights, on data that never leaves it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.download import logged
from fl_node.artifacts.model_file import LocalMeta, Tensors, WeightsFile
from fl_node.artifacts.store import Progress
from fl_node.chain.contract import State, View
from fl_node.data import partition
from fl_node.errors import ConfigError, FileMissing, WeightsError
from fl_node.models.trainer import OnEpoch, Trainer
from fl_node.plan.schema import Plan
from fl_node.privacy.secret import load_or_create
from fl_node.protocol import budget
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.committee import committee_of
from fl_node.protocol.compressed import compress, decoded
from fl_node.protocol.global_files import local_shapes
from fl_node.protocol.names import learners_label
from fl_node.protocol.patience import committee_timeout, header_timeout
from fl_node.protocol.reader import Reader
from fl_node.protocol.verification.synchronous import Closing
from fl_node.roles.attack import check_allowed, poison, tamper
from fl_node.roles.budget_watch import BudgetWatch
from fl_node.roles.impasse import LOOK_AGAIN
from fl_node.roles.loop import Done, Site, Waiting
from fl_node.roles.masking import Masking
from fl_node.roles.pruner import Pruner
from fl_node.roles.residuals import Residuals
from fl_node.roles.verifier import Verifier
from fl_node.runtime.logs import emit
from fl_node.runtime.tensors import blocks_of, flat, shape_of
from fl_node.seeds import derive

Record = Callable[[int, str, float, int], None]
"""Records a value of a learning curve: the learner's nodeId, the curve's name, the value, and its step."""

ASK_WHETHER_OPEN = 5.0
"""Seconds between checks whether a round is still open while its global weights are fetched."""
ASK_OTHERS = 1.0
"""Seconds between checks for whom a learner waits."""
CLOSE_AFTER_HEADER = 5.0
"""Seconds that the header has to close a round after its timeout, before a learner closes it."""


@dataclass(frozen=True)
class _Unfit:
    """Global weights that this learner can't use, and the reason; it does not try them again."""

    parent: str
    reason: str


@dataclass
class _Duty:
    """Whether this learner verifies certain global weights, in a run with committees."""

    weights: str
    committee: frozenset[int]
    is_on: bool
    drawn: float
    """Time of the last draw of the committee, on the role's clock."""
    since: float | None = None
    """Start of the wait for the committee, on the role's clock."""


class _Watch:
    """Time without progress by the header: since the round started or closed, or the header changed."""

    def __init__(self) -> None:
        self._seen: tuple[State, int] | None = None
        self._since = 0.0

    def see(self, state: State, now: float, openings: int = 0) -> None:
        """Take the contract's current state into account.

        Parameters
        ----------
        state
            What it says.
        now
            The time on the role's clock, in seconds.
        openings
            How many members of a round with masks have opened it.
        """
        if (state, openings) != self._seen:
            self._seen, self._since = (state, openings), now

    def seconds(self, now: float) -> float:
        """Return how long the contract's state has not changed, in seconds."""
        return now - self._since


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
        self._record = record
        self._plan = plan
        self._plan_cid = site.contract.plan()
        self._trainer = trainer
        self._reader = Reader(site.store, site.folder, plan, trainer.shapes())
        self._local: WeightsFile | None = None
        self._stored = ""
        self._open: tuple[tuple[int, bool], float, Mapping[int, str]] = ((-1, False), 0.0, {})
        self._unfit: _Unfit | None = None
        self._verifier = Verifier(site, plan, self._plan_cid, trainer) if verify and plan.is_verified else None
        self._watch = _Watch()
        self._header_timeout = header_timeout(plan, trainer.shapes())
        self._committee_timeout = committee_timeout(plan, trainer.shapes())
        self._budget = BudgetWatch(site.contract, plan, self._global_file)
        self._spent = False
        self._duty: _Duty | None = None
        self._masking = Masking(site, plan, self._plan_cid, self._reader) if plan.is_masked else None
        self._openings: Mapping[int, str] = {}
        self._next_look = 0.0
        self._residuals = Residuals(site.folder)
        self._pruner = Pruner.of(site, plan)
        self._shard = functools.cache(lambda node_id: partition.shard(plan, node_id, trainer.labels))

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
        committee = sorted(self._duty.committee) if self._duty is not None and not self._duty.is_on else ()
        view = contract.view(self._site.chain.address, committee)
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
        self._watch.see(state, self._site.timing.clock.monotonic(), len(self._openings))
        if self._verifier is not None and self._is_on_duty(view, node_id, global_cid):
            self._verifier.start(state.round, global_cid, node_id)
            if waiting := self._reject(view, node_id, state.round, global_cid):
                return waiting
        if (
            self._masking is not None
            and (waiting := self._mask(self._masking, view, node_id, global_cid)) is not None
        ):
            return waiting
        local = self._finished(state.round, node_id, global_cid)
        # With differential privacy what was published stays: a second one would cost as much as a round.
        stays = local is None or view.published == local.cid or self._plan.dp is not None
        if state.closed or (view.published and stays):
            return self._wait_for_others(view, node_id)
        if not self._may_publish(state.round, node_id, local):
            return self._wait_for_others(view, node_id)
        if local is None:
            return self._train(state.round, node_id, global_cid)
        self._store(local)
        waiting = self._wait_for_committee(view) or self._unverified(state.round, global_cid)
        return waiting or self._publish(local, view.nonce)

    def _is_on_duty(self, view: View, node_id: int, global_cid: str) -> bool:
        """Return whether this learner verifies these global weights.

        Of a committee's run: if it is a member, if somebody rejected them, or if the committee does not speak.
        """
        if self._plan.verifiers != "committee":
            return True
        contract, round_, now = self._site.contract, view.state.round, self._site.timing.clock.monotonic()
        duty = self._duty if self._duty is not None and self._duty.weights == global_cid else None
        # Sealers may replace the block that it was drawn by, and then another committee is to verify.
        if duty is None or (not duty.is_on and now - duty.drawn > ASK_OTHERS):
            committee = committee_of(contract, round_, global_cid, view.learners, self._plan.committee)
            since = None if duty is None else duty.since
            duty = self._duty = _Duty(global_cid, committee, node_id in committee, now, since)
        if not duty.is_on:
            waited = 0.0 if duty.since is None else now - duty.since
            duty.is_on = waited > self._committee_timeout or view.record.rejections > 0
        return duty.is_on

    def _wait_for_committee(self, view: View) -> Waiting | None:
        """Return the wait of a learner that does not verify; None if the committee has attested."""
        duty, now = self._duty, self._site.timing.clock.monotonic()
        if duty is None or duty.is_on:
            return None
        contract, members = self._site.contract, sorted(duty.committee)
        if view.attested.keys() >= duty.committee:
            silent = [node_id for node_id in members if not view.attested[node_id]]
        else:  # it was drawn after the state was read
            silent = sorted(duty.committee - contract.attested_by(members, view.block))
        if not silent and members:
            return None
        if duty.since is None:
            duty.since = now
        return Waiting(
            "attestation",
            f"the committee to attest the global weights; no attestation by {learners_label(silent)} yet",
            learners=tuple(silent),
            until=duty.since + self._committee_timeout,
            # One attestation of several is no reason to read everything again.
            watch=lambda: bool(members) and len(contract.attested_by(members)) == len(members),
            seen=False,
        )

    def _relies_on_committee(self) -> bool:
        return self._duty is not None and not self._duty.is_on

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
        if verifier is None or self._relies_on_committee():
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
        self._duty = None  # the last weights are verified by all
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
        asked_for, asked, published = self._open
        now = self._site.timing.clock.monotonic()
        if asked_for != (round_, state.closed) or now - asked > ASK_OTHERS:
            block = view.block if state.closed else None
            published = contract.local_weights(round_, view.learners, block)
            self._open = ((round_, state.closed), now, published)
            if self._plan.verifiers == "committee":
                pass  # nobody knows yet who will need the files
            elif self._verifier is not None and state.closed:
                members = frozenset(contract.members(round_, block))
                spent = {} if self._plan.dp is None else budget.publications(contract.log())
                keys: Mapping[int, str] = {}
                if self._masking is not None:
                    self._openings, keys = contract.openings_and_next_keys(round_, sorted(members), block)
                self._verifier.expect(
                    Closing(round_, str(state.global_cid), dict(published), members, spent, self._openings, keys)
                )
            elif self._verifier is not None:
                self._verifier.fetch(published)
        if self._masking is not None and (stuck := self._stuck(self._masking, view, published)) is not None:
            return replace(stuck, watch=contract.state, seen=state)
        self._push(view, node_id, published)
        who = () if state.closed else tuple(node_id for node_id in view.learners if node_id not in published)
        if state.closed and len(self._openings) < self._plan.threshold:
            who = tuple(n for n in sorted(published) if n not in self._openings)
        missing = learners_label(who) if who else "the header"
        return Waiting(
            "round_end",
            f"round {round_} to {'end' if state.closed else 'close'}; {missing} must act",
            round=round_,
            learners=who,
            watch=contract.state,
            seen=state,
            by_event=True,
        )

    def _stuck(self, masking: Masking, view: View, published: Mapping[int, str]) -> Waiting | None:
        """Return the wait of a round with masks that can never end; None if it can, as far as is known."""
        state, now = view.state, self._site.timing.clock.monotonic()
        if not state.closed:
            # Of false weights the keys are false too.
            if self._unverified(state.round, str(state.global_cid)) is not None:
                return None
            return masking.stuck_open(view, self._global_file(state.round, str(state.global_cid)), published)
        if self._watch.seconds(now) <= self._header_timeout or now < self._next_look:
            return None
        parent = self._global_file(state.round, str(state.global_cid))
        waiting = masking.stuck_closed(view, parent, published, self._openings)
        if waiting is None:
            self._next_look = now + LOOK_AGAIN
        return waiting

    def _push(self, view: View, node_id: int, published: Mapping[int, str]) -> None:
        """Close a round after its timeout, or vote for another header, if the header does not act."""
        contract, plan, state = self._site.contract, self._plan, view.state
        seconds = self._watch.seconds(self._site.timing.clock.monotonic())
        if not state.closed:
            # The header asks first.
            late = plan.round_timeout and seconds > math.ceil(plan.round_timeout) + CLOSE_AFTER_HEADER
            if late and len(published) >= plan.required_learners:
                receipt = contract.close_round(view.nonce)
                if receipt is not None:
                    emit(events.RoundClosed(round=state.round, block=receipt.block, gas=receipt.gas))
            return
        if len(self._openings) < plan.threshold:
            return  # the header can do nothing before learners have removed the masks
        if seconds > self._header_timeout and self._verifier is not None:
            self._verifier.fetch(published)
        # As long as a file arrives here, it may arrive at the header too.
        if seconds > self._header_timeout and (self._verifier is None or self._verifier.has_tried(published)):
            self._vote(view, node_id)

    def _vote(self, view: View, node_id: int) -> None:
        contract, state = self._site.contract, view.state
        if contract.verdict_of(node_id).voted:
            return
        receipt = contract.vote(state.ballot, view.nonce)
        if receipt is not None:
            header = str(state.header)
            emit(events.HeaderVoted(round=state.round, header=header, block=receipt.block, gas=receipt.gas))

    def _path(self, kind: str, round_: int) -> Path:
        return self._site.folder / f"{kind}-{round_}.safetensors"

    def _finished(self, round_: int, node_id: int, parent: str) -> WeightsFile | None:
        """Return this round's local weights if they exist, perhaps from an earlier process that was killed."""
        path = self._path("local", round_)
        if not path.exists():
            return None
        if self._local is not None:
            known = self._local.published_meta
            if (known.round, known.parent) == (round_, parent):
                return self._local  # this very process has just written it
        try:
            file = self._reader.check(path, node_id=node_id)
            model_file.check_local(file, plan=self._plan_cid, node_id=node_id, round_=round_, parent=parent)
        except WeightsError as error:
            emit(events.LocalWeightsDiscarded(round=round_, file=path.name, detail=str(error)))
            path.unlink()
            return None
        self._local = file
        return file

    def _train(self, round_: int, node_id: int, parent: str) -> Waiting | None:
        if self._unfit and self._unfit.parent == parent:
            return self._wait_for_better(round_, self._unfit)
        plan, trainer = self._plan, self._trainer
        try:
            file = self._global_file(round_, parent)
            model_file.check_global(file, plan=self._plan_cid, round_=round_)
        except WeightsError as error:
            if self._verifier is not None:
                if self._duty is not None:
                    self._duty.is_on = True
                # The verification reads them too, and then they are rejected.
                return self._unverified(round_, parent)
            return self._cannot(round_, parent, f"global weights {round_} ({parent}) are invalid: {error}")
        samples = self._shard(node_id)
        # Nothing can be learned from models that know nothing yet.
        teacher = file.on_demand() if plan.distillation is not None and round_ > 0 else None
        emit(
            events.TrainingStarted(
                round=round_,
                epochs=plan.training.epochs,
                samples=len(samples),
                noun=plan.data.noun,
                distilled=plan.data.public_set if teacher is not None else None,
            )
        )
        start = time.monotonic()

        def on_epoch(epoch: int, accuracy: float, loss: float) -> None:
            step = round_ * plan.training.epochs + epoch
            self._record(node_id, "training/accuracy", accuracy, step)
            self._record(node_id, "training/loss", loss, step)
            emit(events.EpochEnded(round=round_, epoch=epoch, epochs=plan.training.epochs, accuracy=accuracy))

        # Of a global file the weights of this learner's model alone, not what else is in it.
        weights_ = file.on_demand(local_shapes(plan, trainer.shapes(), node_id))
        trained = self._trained(weights_, node_id, round_, on_epoch, teacher, self._secret(round_, parent))
        if plan.stragglers is not None and node_id in plan.stragglers.learners:
            time.sleep((plan.stragglers.factor - 1) * (time.monotonic() - start))
        emit(events.TrainingEnded(round=round_, seconds=time.monotonic() - start))
        start = time.monotonic()
        compressed = None
        if plan.compression is not None and _are_finite(trained):
            residual = self._residuals.load(round_, {name: tensor.shape for name, tensor in trained.items()})
            compressed = compress(plan.compression, trained, weights_, residual)
            trained = compressed.weights  # what others decode
        score = trainer.evaluate(trained)
        if not math.isfinite(score.loss) or not _are_finite(trained):
            # Trained again it would come out the same, and nobody would take it.
            diverged = f"training from global weights {round_} ({parent}) diverged to values that are not finite"
            return self._cannot(round_, parent, f"{diverged}; in round 0, lower the learning rate")
        emit(
            events.LocalWeightsEvaluated(
                round=round_,
                accuracy=score.accuracy,
                loss=score.loss,
                count=score.count,
                noun=plan.data.noun,
                seconds=time.monotonic() - start,
            )
        )
        self._record(node_id, "test/accuracy", score.accuracy, round_)
        self._record(node_id, "test/loss", score.loss, round_)
        if self._masking is not None:
            written = self._masking.write(self._path("trained", round_), file, node_id, trained, score)
        else:
            meta = LocalMeta(
                plan=self._plan_cid,
                node_id=node_id,
                round=round_,
                parent=parent,
                samples=len(samples),
                accuracy=score.accuracy,
                loss=score.loss,
                compression=None if plan.compression is None else plan.compression.kind,
            )
            tensors = trained if compressed is None else compressed.tensors
            written = model_file.write(self._path("trained", round_), meta, tensors)
        if not self._attacks(node_id):
            try:
                # As the header will.
                checked = self._reader.check(written.path, written.cid, node_id)
                if not plan.is_masked:
                    check_bounds(decoded(checked, file, plan), file, plan)
            except WeightsError as error:
                written.path.unlink()
                return self._cannot(
                    round_,
                    parent,
                    f"the weights trained from global weights {round_} ({parent}) are invalid: {error}",
                )
        if compressed is not None:
            self._residuals.save(round_, compressed.residual)
        self._local = local = replace(written, path=written.path.replace(self._path("local", round_)))
        emit(events.LocalWeightsWritten(round=round_, cid=local.cid, file=local.path.name))
        self._forget(round_)
        return None

    def _secret(self, round_: int, parent: str) -> bytes | None:
        """Return the source of sampling and noise of DP-SGD; None without it.

        It goes by the global weights too: of a withdrawn round others come, and with the same noise the difference
        of what is trained from the two would show the gradients.

        Raises
        ------
        ConfigError
            The host has no secret, or the file is not its own alone.
        """
        if self._plan.dp_sgd is None:
            return None
        if self._site.secret is None:
            raise ConfigError("differential privacy needs the secret of a host")
        host = load_or_create(self._site.secret)
        return host.derive(self._site.contract.address, round_, "dp-sgd", parent)

    def _global_file(self, round_: int, name: str) -> WeightsFile:
        """Return global weights, fetched if they are not here."""
        path = self._path("global", round_)
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

    def _attacks(self, node_id: int) -> bool:
        return self._plan.attack is not None and node_id in self._plan.attack.learners

    def _trained(
        self,
        parent: Tensors,
        node_id: int,
        round_: int,
        on_epoch: OnEpoch,
        teacher: Tensors | None,
        secret: bytes | None,
    ) -> Tensors:
        """Train, and apply the attack that the plan gives this learner."""
        attack, seed = self._plan.attack, derive(self._plan.seed, node_id, round_)
        shard, train = self._shard(node_id), functools.partial(self._trainer.train, secret=secret)
        if attack is None or not self._attacks(node_id):
            return train(parent, shard, seed, on_epoch, teacher=teacher)
        emit(events.AttackStarted(round=round_, kinds=attack.kinds))
        dirty = poison(attack, seed, self._plan.data.class_count)
        trained = train(parent, shard, seed, on_epoch, poison=dirty, teacher=teacher)
        return tamper(attack, parent, trained, seed)

    def _store(self, local: WeightsFile) -> None:
        """Give the file to this host's own store, while its global weights are verified.

        Nobody asks for it before its CID is on the chain.
        """
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
            attests=self._verifier is not None and not self._relies_on_committee(),
        )
        if receipt is None:
            text = f"a block with the local weights of round {meta.round}"
            return Waiting("block", text, round=meta.round)
        emit(events.LocalWeightsPublished(round=meta.round, cid=local.cid, block=receipt.block, gas=receipt.gas))
        return None

    def _forget(self, round_: int) -> None:
        for path in self._site.folder.glob("*-*.safetensors"):
            number = path.stem.rpartition("-")[2]
            if number.isdigit() and int(number) < round_:
                path.unlink(missing_ok=True)


def _are_finite(tensors: Tensors) -> bool:
    return all(
        np.isfinite(flat(tensors, name, *block)).all()
        for name in tensors
        for block in blocks_of(shape_of(tensors, name))
    )
