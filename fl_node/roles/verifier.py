"""Verification during a run: a learner recomputes global weights before it publishes what it trained from them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fl_node import events
from fl_node.artifacts.model_file import Tensors, WeightsFile
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.errors import FLNodeError, StoreError, WeightsError
from fl_node.models.trainer import Trainer
from fl_node.plan.schema import Plan
from fl_node.protocol import budget, history
from fl_node.protocol.bounds import check_bounds
from fl_node.protocol.compressed import decoded
from fl_node.protocol.global_files import global_file
from fl_node.protocol.masked import check_masked, needed_members, reveal, unmasked_file
from fl_node.protocol.names import HEADER
from fl_node.protocol.opened import read_openings
from fl_node.protocol.publications import check_origin, publications
from fl_node.protocol.reader import Reader
from fl_node.protocol.retention import first_kept
from fl_node.protocol.verification.asynchronous import BY_PUBLICATIONS, AsynchronousCase, AsynchronousChecker
from fl_node.protocol.verification.case import Case
from fl_node.protocol.verification.findings import Finding, Findings
from fl_node.protocol.verification.global_files import check_initial
from fl_node.protocol.verification.synchronous import Closing, check_closing
from fl_node.roles.loop import Site
from fl_node.runtime.logs import emit

SETTLE = 5.0
"""Seconds for which a finding about publications of an asynchronous run must persist."""
TRY_AGAIN = 2.0
"""Seconds between attempts of a verification that lacks a file."""


@dataclass(frozen=True)
class Verdict:
    """The result of a learner's verification of global weights.

    ``wrong`` is the first proven finding, and ``round`` and ``cid`` are of the weights it is about, which may be
    earlier ones than those that were to be verified; ``lacking`` says what could not be read, so that nothing is
    known.
    """

    round: int
    cid: str
    wrong: Finding | None = None
    lacking: str = ""
    evidence: str = ""
    """The CID of the file that should have been published, if known."""
    of_round: int = -1
    """The round whose weights were verified."""
    of_cid: str = ""
    """Their CID."""
    seconds: float = 0.0
    """Duration in seconds."""
    is_early: bool = False
    """Whether no block shows these weights yet, so that the next block may change that."""

    @property
    def is_right(self) -> bool:
        """Whether these weights and all earlier ones are correct."""
        return self.wrong is None and not self.lacking


class Verifier:
    """Recomputes global weights in the background, with its own copies of the files.

    It begins after the weights that this learner attested last, so that an attestation speaks of all earlier ones.

    Parameters
    ----------
    site
        The learner's node.
    plan, plan_cid
        The run's plan and its CID.
    trainer
        The plan's model. An ensemble's members are measured with it, which the training must not disturb; their
        plans are verified in the foreground.
    """

    def __init__(self, site: Site, plan: Plan, plan_cid: str, trainer: Trainer) -> None:
        self._site = site
        self._plan = plan
        self._plan_cid = plan_cid
        self._trainer = trainer
        self._folder = site.folder / "verification"
        self._reader = self._new_reader()
        # The chain and its connection are this thread's own.
        self._contract = Contract(Chain(site.chain.rpc), site.contract.address)
        self._worker = ThreadPoolExecutor(1, "verification")
        self._running: tuple[tuple[int, str], Future[Verdict]] | None = None
        self._last: Verdict | None = None
        self._next_try = 0.0
        self._height = 0
        """The newest block when the last verification was started."""
        self._right: dict[int, str] | None = None
        """The newest global weights known to be correct: their round and CID; None before the first check."""
        self._fetches: dict[str, Future[None]] = {}
        self._seen: set[str] = set()
        self._initial: Tensors | None = None
        self._checker: AsynchronousChecker | None = None
        """Of an asynchronous run: has checked all global weights up to those that are known to be right."""
        self._suspected: dict[str, float] = {}
        """Time at which global weights first listed publications that do not exist, by their CID."""
        self._closable: Future[bool] | None = None
        self._expecting: Closing | None = None
        self._expected = ""
        """The CID of the global weights that must end the last closed round, if known."""

    def close(self) -> None:
        """Stop background work."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def start(self, round_: int, name: str, node_id: int) -> None:
        """Start to verify the global weights of a round, unless this has started.

        Parameters
        ----------
        round_
            The round that starts from them.
        name
            Their CID.
        node_id
            This learner's nodeId.
        """
        if self._right is None:
            self._right = self._attested(node_id)
            if not self._right:
                self._initial = self._trainer.initial()
        now, last = self._site.timing.clock.monotonic(), self._last
        if self._running is not None and self._running[0] == (round_, name):
            return
        if last is not None and (last.of_round, last.of_cid) == (round_, name):
            # A file may come at any time, a block is seen.
            is_new = last.is_early and self._site.chain.block_number() != self._height
            if not last.lacking or (now < self._next_try and not is_new):
                return
            self._reader = self._new_reader()  # what was missing may be there now
        self._next_try, self._height = now + TRY_AGAIN, self._site.chain.block_number()
        for fetch in self._fetches.values():
            fetch.cancel()
        self._fetches.clear()
        if self._plan.measures_members:
            future: Future[Verdict] = Future()
            future.set_result(self._verify(round_, name))
        else:
            future = self._worker.submit(self._verify, round_, name)
        future.add_done_callback(lambda _: self._site.ring())
        self._running = (round_, name), future

    def verdict(self, round_: int, name: str) -> Verdict | None:
        """Return the result for the global weights of a round; None while it is unknown."""
        if self._running is not None and self._running[1].done():
            verdict, before = self._running[1].result(), self._last
            self._running, self._last = None, verdict
            if verdict.is_right:
                emit(events.GlobalWeightsVerified(round=verdict.round, cid=verdict.cid, seconds=verdict.seconds))
            elif verdict.lacking and (before is None or before.lacking != verdict.lacking):
                emit(events.VerificationWaiting(round=verdict.round, cid=verdict.cid, detail=verdict.lacking))
        last = self._last
        return last if last is not None and (last.of_round, last.of_cid) == (round_, name) else None

    def is_done(self) -> bool:
        """Return whether the last verification has ended."""
        return self._running is None or self._running[1].done()

    def fetch(self, published: Mapping[int, str]) -> None:
        """Fetch the local files of the current round in advance.

        Parameters
        ----------
        published
            Their CIDs by nodeId.
        """
        for node_id, name in published.items():
            if name not in self._fetches:
                self._fetches[name] = self._worker.submit(self._fetch, node_id, name)

    def expect(self, closing: Closing) -> None:
        """Compute the global weights that must end a closed round, while the header does.

        If the header publishes the same, nothing is left to be verified.

        Parameters
        ----------
        closing
            The round.
        """
        self.fetch(closing.published)
        if not self._plan.measures_members and self._expecting != closing:
            self._expecting, self._expected = closing, ""
            self._worker.submit(self._expect, closing)

    def can_close(self, round_: int, name: str, *, late: bool) -> bool:
        """Return whether the header can publish the next global weights, as far as known.

        Parameters
        ----------
        round_
            The round that is going on, in an asynchronous run; its global weights are known to be right.
        name
            Their CID.
        late
            Whether the round has been open for the plan's ``round_timeout``.
        """
        if self._closable is None:
            self._closable = self._worker.submit(self._can_close, round_, name, late)
        if not self._closable.done():
            return False
        can, self._closable = self._closable.result(), None
        return can

    def _can_close(self, round_: int, name: str, late: bool) -> bool:
        with suppress(FLNodeError, OSError):
            if self._checker is not None and self._right == {round_: name}:
                return self._checker.again(self._asynchronous_case(Findings())).can_close(round_, late=late)
        return False

    def lend(self, name: str, path: Path) -> None:
        """Copy a global file that was computed here to a path, so that it need not be fetched.

        Parameters
        ----------
        name
            Its CID.
        path
            Where it is needed.
        """
        if self._expected == name:
            self.lend_local(name, path)

    def lend_local(self, name: str, path: Path) -> None:
        """Copy a file that was fetched here to a path; its reader compares it with its CID.

        Parameters
        ----------
        name
            Its CID.
        path
            Where it is needed.
        """
        source = self._reader.path(name)
        if source.exists():
            with suppress(OSError):  # then it is fetched
                copy = path.with_suffix(".lent")
                copy.unlink(missing_ok=True)
                os.link(source, copy)
                copy.replace(path)

    def has_tried(self, published: Mapping[int, str]) -> bool:
        """Return whether each of these files has arrived, or was missing for the plan's ``fetch_timeout``."""
        return all(name in self._fetches and self._fetches[name].done() for name in published.values())

    def _fetch(self, node_id: int, name: str) -> None:
        with suppress(StoreError, WeightsError, OSError):
            self._reader.read(name, node_id)
            self._seen.add(name)

    def _expect(self, closing: Closing) -> None:
        plan, reader = self._plan, self._reader
        # Where a file is missing or is rejected, only the header's file tells for what reason.
        with suppress(FLNodeError, OSError):
            parent = reader.read(closing.parent)
            if plan.is_masked:
                self._expect_masked(closing, parent)
                return
            files = []
            for node_id, name in sorted(closing.published.items()):
                file = reader.read(name, node_id)
                check_origin(file, plan, self._plan_cid, node_id, round_=closing.number, parent=closing.parent)
                file = decoded(file, parent, plan)
                check_bounds(file, parent, plan)
                files.append(file)
            recomputed = global_file(
                self._folder / "expected.safetensors",
                plan,
                self._plan_cid,
                round_=closing.number + 1,
                parent=closing.parent,
                inputs=files,
                parent_file=parent,
                absent=sorted(closing.members - set(closing.published)),
                spent=budget.spent(plan, closing.spent),
            )
            self._remember_expected(recomputed)

    def _expect_masked(self, closing: Closing, parent: WeightsFile) -> None:
        """Compute the global weights that must end a round with masks, as soon as enough shares are opened.

        Raises
        ------
        FLNodeError
            A file is missing, or is rejected.
        """
        plan, reader, files = self._plan, self._reader, dict[int, WeightsFile]()
        for node_id, name in sorted(closing.published.items()):
            files[node_id] = reader.read(name, node_id)
            check_masked(files[node_id], plan, self._plan_cid, node_id, parent)
        openings, _ = read_openings(reader, self._plan_cid, closing.openings)
        revealed = reveal(plan, parent, files, openings)
        if revealed.lacking or len(files) < needed_members(plan):
            return
        recomputed = unmasked_file(
            self._folder / "expected.safetensors",
            plan,
            self._plan_cid,
            parent=parent,
            files=files,
            seeds=revealed.seeds,
            announced=closing.keys,
            absent=sorted(closing.members - set(closing.published)),
            spent=budget.spent(plan, closing.spent),
        )
        self._remember_expected(recomputed)

    def _remember_expected(self, recomputed: WeightsFile) -> None:
        self._reader.remember(replace(recomputed, path=recomputed.path.replace(self._reader.path(recomputed.cid))))
        self._expected = recomputed.cid

    def _new_reader(self) -> Reader:
        self._folder.mkdir(parents=True, exist_ok=True)
        return Reader(self._site.store, self._folder, self._plan, self._trainer.shapes(), once=True)

    def _attested(self, node_id: int) -> dict[int, str]:
        """Return the newest global weights that this learner attested, perhaps before it was killed."""
        rounds = history.arrange("", "", self._site.contract.log()).rounds
        mine = [round_ for round_ in rounds if any(entry.node_id == node_id for entry in round_.attestations)]
        return {round_.number: str(round_.started.cid) for round_ in mine[-1:]}

    def _verify(self, round_: int, name: str) -> Verdict:
        began = time.monotonic()
        try:
            verdict = self._verify_all(round_, name)
        except (FLNodeError, OSError) as error:
            # Of the node, the store or the disk; of the weights nothing is known.
            verdict = Verdict(round_, name, lacking=" ".join(str(error).split()))
        if verdict.is_right:
            self._right, self._initial = {round_: name}, None
        return replace(verdict, of_round=round_, of_cid=name, seconds=time.monotonic() - began)

    def _verify_all(self, round_: int, name: str) -> Verdict:
        """Verify all global weights after the last ones known to be correct."""
        known = {n: cid for n, cid in (self._right or {}).items() if self._contract.global_weight_at(n) == cid}
        if self._plan.mode == "async" and (self._checker is None or not known):
            self._checker = AsynchronousChecker(self._asynchronous_case(Findings()))
            for number in known:
                self._checker.resume(number)
        # Committees have verified what this learner has not.
        first = round_ if self._plan.verifiers == "committee" else max(known, default=-1) + 1
        first = self._first_verifiable(first, round_)
        for number in range(first, round_ + 1):
            current = name if number == round_ else str(self._contract.global_weight_at(number))
            verdict = self._verify_one(number, current)
            if not verdict.is_right:
                return verdict
        return Verdict(round_, name)

    def _first_verifiable(self, first: int, round_: int) -> int:
        """Return the first global weights that can be recomputed; files of older rounds may have been deleted.

        A learner that was away for long relies on the learners that finalized what came before.
        """
        retention = self._plan.retention
        if retention is None or first > round_ - retention.rounds:
            return first
        kept = first_kept(self._plan, history.read(self._contract))
        return max(first, kept + 1) if kept else first

    def _asynchronous_case(self, result: Findings) -> AsynchronousCase:
        past = history.read(self._contract)
        everything = tuple(publications(past.publications))
        return AsynchronousCase(
            self._plan,
            self._plan_cid,
            self._reader,
            self._trainer,
            result,
            self._contract,
            past,
            everything,
            self._seen,
        )

    def _verify_next(self, checker: AsynchronousChecker, number: int, name: str) -> Verdict:
        """Verify global weights of an asynchronous run; its checker has processed all earlier ones."""
        result = Findings()
        case = self._asynchronous_case(result)
        rounds = case.past.rounds
        if number >= len(rounds) or rounds[number].started.cid != name:
            return _early(number, name)
        now = checker.again(case)
        now.check(rounds[number - 1], rounds[number].started)
        if result.passed:
            self._checker, self._right = now, {number: name}
            self._keep(name)
            return Verdict(number, name)
        proven = [finding for finding in result.findings if finding.proven]
        if not proven:
            return Verdict(number, name, lacking=str(result.findings[0]))
        if all(finding.field in BY_PUBLICATIONS for finding in proven):
            # A block that was replaced may hide a publication for a moment.
            since = self._suspected.setdefault(name, time.monotonic())
            if time.monotonic() - since < SETTLE:
                return Verdict(number, name, lacking=f"whether it stays so: {proven[0]}")
        return Verdict(number, name, wrong=proven[0])

    def _keep(self, name: str) -> None:
        """Add correct global weights to this host's store, and delete the files that only they needed.

        A learner that computes them itself never fetches them, so without this they are lost with the header's host.
        """
        self._site.store.add(self._reader.read(name).path)
        self._reader.forget(self._reader.path(name))

    def _verify_one(self, number: int, name: str) -> Verdict:
        if self._checker is not None and number > 0:
            return self._verify_next(self._checker, number, name)
        result, closing = Findings(), None
        case = Case(self._plan, self._plan_cid, self._reader, self._trainer, result)
        if number == 0:
            keys = self._contract.keys(0, self._contract.learners()) if self._plan.is_masked else {}
            initial = self._trainer.initial() if self._initial is None else self._initial
            check_initial(case, name, initial, keys)
        else:
            closed = self._contract.closed_round(number - 1, name, masked=self._plan.is_masked)
            if closed is None:
                return Verdict(
                    number, name, lacking=f"the newest block shows no global weights {name}", is_early=True
                )
            spent = {} if self._plan.dp is None else budget.publications_at(self._contract.log(), number, name)
            closing = Closing(
                number - 1,
                closed.parent,
                closed.published,
                frozenset(closed.members),
                spent,
                closed.openings,
                closed.keys,
            )
            if name != self._expected or closing != self._expecting:
                check_closing(case, closing, name, self._seen)
        proven = [finding for finding in result.findings if finding.proven]
        if proven:
            return Verdict(number, name, wrong=proven[0], evidence=self._expected)
        if result.findings and closing is not None and (self._expecting != closing or not self._expected):
            # A local file that was missing may be here now.
            self._expecting, self._expected = closing, ""
            self._expect(closing)
        if result.findings and closing is not None and self._expected not in ("", name):
            # The file is missing, but its hash is not that of the only right one.
            text = f"is {name}, its local files give {self._expected}"
            return Verdict(number, name, wrong=Finding(number, HEADER, "file", text), evidence=self._expected)
        if result.findings and (closing is None or self._expected != name):
            return Verdict(number, name, lacking=str(result.findings[0]))
        self._keep(name)
        self._seen.clear()
        return Verdict(number, name)


def _early(number: int, name: str) -> Verdict:
    return Verdict(number, name, lacking=f"the newest block shows no global weights {name}", is_early=True)
