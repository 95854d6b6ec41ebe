"""Events of header and learners: each has a name, fields, a level, and a sentence for people.

Programs match names and fields, never the sentence, nor the field ``detail``, which is part of it.
:func:`fl_node.runtime.logs.emit` logs an event.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fl_node.wording import counted

EVENTS: dict[str, type[Event]] = {}
"""Every kind of event, by its name."""

RESERVED = ("time", "level", "node", "event", "message")
"""Keys that every logged event has beside its own fields."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    name: ClassVar[str]
    """The class's name in snake case, such as ``round_started``."""
    level: ClassVar[int] = logging.INFO

    def severity(self) -> int:
        """Return the level that this very event is logged with."""
        return self.level

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        EVENTS[cls.name] = cls

    def text(self) -> str:
        """Return the sentence that a person reads."""
        raise NotImplementedError

    def fields(self) -> dict[str, Any]:
        """Return the event's fields by name, without those that are not set."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def matches(event: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether a logged event has all wanted values, such as ``{"event": "round_started", "round": 1}``."""
    return all(event.get(key) == value for key, value in wanted.items())


def is_wanted(event: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether a logged event is what a scenario's data name: ``event``, and ``where``, values of its fields.

    A playbook may give a number as text, so values are compared as texts.
    """
    where = wanted.get("where", {})
    return event.get("event") == wanted["event"] and all(str(event.get(key)) == str(where[key]) for key in where)


# A role begins and ends.


@dataclass(frozen=True, kw_only=True)
class RoleStarted(Event):
    """A role has found its contract."""

    role: str
    contract: str
    account: str

    def text(self) -> str:
        return f"started as {self.role} of contract {self.contract}, account {self.account}"


@dataclass(frozen=True, kw_only=True)
class RoleStopped(Event):
    """A signal has stopped the role."""

    def text(self) -> str:
        return "stopped by a signal; restart it to continue"


@dataclass(frozen=True, kw_only=True)
class RoleFailed(Event):
    """The role ends with an error."""

    level = logging.ERROR
    error: str
    """The error's class, such as ``PlanError``."""
    exit_code: int
    detail: str

    def text(self) -> str:
        return self.detail


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The contract has the last round's global weights."""

    round: int

    def text(self) -> str:
        return f"the run ended after {counted(self.round, 'round')}"


@dataclass(frozen=True, kw_only=True)
class RunNotFinalized(Event):
    """The run ends although at most half of the learners attested its last global weights."""

    level = logging.WARNING
    round: int
    attestations: int

    def text(self) -> str:
        few = counted(self.attestations, "learner")
        return f"global weights {self.round} are not finalized: only {few} attested them"


@dataclass(frozen=True, kw_only=True)
class BudgetSpent(Event):
    """The run ends before its last round: too few learners may publish within the plan's limit of ε."""

    round: int
    epsilon: float
    limit: float

    def text(self) -> str:
        return f"the privacy budget is spent: ε is {self.epsilon:g} of at most {self.limit:g}; the run ends"


@dataclass(frozen=True, kw_only=True)
class LearnerBudgetSpent(Event):
    """The learner publishes nothing more, because that would exceed the plan's limit of ε."""

    level = logging.WARNING
    round: int
    epsilon: float
    limit: float

    def text(self) -> str:
        return (
            f"this learner's privacy budget is spent: ε is {self.epsilon:g} of at most {self.limit:g}; it publishes "
            "nothing more"
        )


Wait = Literal[
    "block",
    "chain_error",
    "chain_unreachable",
    "disk",
    "file_missing",
    "file_rejected",
    "initial_weights",
    "keys",
    "openings",
    "attestation",
    "newer_weights",
    "registration",
    "round_end",
    "store_error",
    "standby",
    "store_unreachable",
    "trainer",
    "updates",
    "valid_weights",
    "verification",
]
"""What a role waits for.

``updates`` are learners' files; at ``round_end`` a learner has done its part. In a run with masks ``keys`` are
announced before its first round, and ``openings`` published after each. A header waits for ``attestation`` at the end
of a run, and as a ``standby`` while another account is the header; ``verification`` is of global weights. The
``trainer`` is the process that trains for several learners of a host.
"""
PROBLEMS: tuple[Wait, ...] = (
    "chain_error",
    "chain_unreachable",
    "disk",
    "file_missing",
    "file_rejected",
    "store_error",
    "store_unreachable",
    "trainer",
    "valid_weights",
)
"""What is waited for because something is wrong, rather than not done yet."""


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """The role can do nothing until something changes; logged once until it waits for something else."""

    reason: Wait
    detail: str
    """What it waits for, for people."""
    round: int | None = None
    learners: tuple[int, ...] | None = None
    """The learners whose work is missing."""
    arriving: dict[str, float] | None = None
    """Of those learners whose file is arriving, the share that is here, 0 to 1."""

    def severity(self) -> int:
        return logging.WARNING if self.reason in PROBLEMS else logging.INFO

    def text(self) -> str:
        return f"waiting: {self.detail}"


# Deployment


@dataclass(frozen=True, kw_only=True)
class PlanStored(Event):
    """The plan is in the store."""

    plan: str
    cid: str

    def text(self) -> str:
        return f"stored plan {self.plan} as {self.cid}"


@dataclass(frozen=True, kw_only=True)
class ContractDeployed(Event):
    """A block has the run's contract."""

    contract: str
    block: int
    gas: int

    def text(self) -> str:
        return f"deployed contract {self.contract}{_sealed(self.block, self.gas)}"


@dataclass(frozen=True, kw_only=True)
class LearnerRegistered(Event):
    """The contract knows a learner's account."""

    learner: int
    account: str

    def text(self) -> str:
        return f"registered {self.account} as learner {self.learner}"


# The header


@dataclass(frozen=True, kw_only=True)
class RoundsPruned(Event):
    """The role no longer keeps its files of old rounds, as the plan's ``retention`` says."""

    first: int
    last: int
    files: int
    seconds: float

    def text(self) -> str:
        rounds = f"round {self.first}" if self.first == self.last else f"rounds {self.first} to {self.last}"
        noun = "file" if self.files == 1 else "files"
        return f"deleted {self.files} local {noun} of {rounds} ({self.seconds:.1f} s)"


@dataclass(frozen=True, kw_only=True)
class PruningFailed(Event):
    """Files of old rounds could not be deleted; the role tries again after the next round."""

    level = logging.WARNING
    detail: str

    def text(self) -> str:
        return f"files of old rounds are not deleted yet: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class RoundStarted(Event):
    """The header has begun to look at a round's updates."""

    round: int
    cid: str
    """Of the global weights that the round starts from."""

    def text(self) -> str:
        return f"round {self.round}: started with global weights {self.cid}"


@dataclass(frozen=True, kw_only=True)
class RoundClosed(Event):
    """A block has this role's request to close a round whose time is up."""

    round: int
    block: int
    gas: int

    def text(self) -> str:
        return f"round {self.round}: closed after its timeout{_sealed(self.block, self.gas)}"


@dataclass(frozen=True, kw_only=True)
class UpdateAccepted(Event):
    """A learner's file has passed all checks."""

    round: int
    learner: int
    cid: str
    accuracy: float | None = None
    """What the learner measured; of masked weights nobody knows it."""
    loss: float | None = None
    base_round: int | None = None
    """In asynchronous runs, the round whose global weights the learner trained."""

    def text(self) -> str:
        base = "" if self.base_round is None else f", trained from round {self.base_round}"
        reached = "masked" if self.accuracy is None else f"{self.accuracy:.2%}"
        return f"round {self.round}: accepted learner {self.learner}'s {self.cid}{base} ({reached})"


@dataclass(frozen=True, kw_only=True)
class KeyAnnounced(Event):
    """A block has the public key of this learner's masks in a round."""

    round: int
    block: int
    gas: int

    def text(self) -> str:
        return f"round {self.round}: announced the key of its masks{_sealed(self.block, self.gas)}"


@dataclass(frozen=True, kw_only=True)
class WrongKey(Event):
    """A learner announced a key for its masks that is unusable, or that another learner announced too."""

    level = logging.WARNING
    round: int
    learner: int
    detail: str

    def text(self) -> str:
        return f"round {self.round}: learner {self.learner} {self.detail}"


@dataclass(frozen=True, kw_only=True)
class RoundSatOut(Event):
    """The learner has no key in a round with masks, so it can't take part; it announces one for the next round."""

    level = logging.WARNING
    round: int

    def text(self) -> str:
        return f"round {self.round}: sits out, without a key for its masks; takes part in the next round again"


@dataclass(frozen=True, kw_only=True)
class MasksOpened(Event):
    """A block has the hash of what this learner opens to remove masks."""

    round: int
    cid: str
    members: tuple[int, ...]
    block: int
    gas: int

    def text(self) -> str:
        members = ", ".join(map(str, self.members))
        sealed = _sealed(self.block, self.gas)
        return f"round {self.round}: opened {self.cid}, which helps to read the sum of learners {members}{sealed}"


@dataclass(frozen=True, kw_only=True)
class OpeningRefused(Event):
    """The learner can't or must not open a round."""

    level = logging.WARNING
    round: int
    detail: str

    def text(self) -> str:
        return f"round {self.round}: opens nothing: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class OpeningRejected(Event):
    """Something that a learner published for the removal of masks is wrong."""

    level = logging.WARNING
    round: int
    learner: int
    detail: str

    def text(self) -> str:
        return f"round {self.round}: learner {self.learner} {self.detail}"


@dataclass(frozen=True, kw_only=True)
class SecretReplaced(Event):
    """The host's secret is gone although this run has used it; the learner creates another."""

    level = logging.WARNING
    file: str

    def text(self) -> str:
        return (
            f"the host secret {self.file} is missing although this run has used it; created another. The keys of "
            "rounds are still here, so the learner continues"
        )


@dataclass(frozen=True, kw_only=True)
class SecretsErased(Event):
    """The secrets of all rounds before one are erased on this host."""

    round: int

    def text(self) -> str:
        return f"erased the secrets of the rounds before {self.round}"


@dataclass(frozen=True, kw_only=True)
class UpdateRejected(Event):
    """A learner's file has failed a check."""

    round: int
    learner: int
    cid: str
    reason: str
    """Which check: the code of a :class:`fl_node.errors.WeightsError`, or ``missing``."""
    detail: str

    def text(self) -> str:
        return f"round {self.round}: rejected learner {self.learner}'s {self.cid}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class UpdateMissing(Event):
    """A learner's file can't be fetched yet; the header tries again."""

    round: int
    learner: int
    cid: str
    detail: str

    def text(self) -> str:
        return f"round {self.round}: learner {self.learner}'s file is missing, retrying: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class UpdatesAggregated(Event):
    """The header has made new global weights."""

    round: int
    cid: str
    learners: tuple[int, ...]
    seconds: float

    def text(self) -> str:
        names = ", ".join(map(str, self.learners))
        return f"round {self.round}: aggregated the updates of learners {names} in {self.seconds:.2f} s"


@dataclass(frozen=True, kw_only=True)
class GlobalWeightsPublished(Event):
    """A block has the hash of the global weights that a round starts from."""

    round: int
    cid: str
    block: int
    gas: int

    def text(self) -> str:
        which = f"global weights {self.round}" if self.round else "the initial weights"
        return f"published {which}, {self.cid}{_sealed(self.block, self.gas)}"


@dataclass(frozen=True, kw_only=True)
class GlobalWeightsEvaluated(Event):
    """The header has measured global weights on the test set."""

    round: int
    cid: str
    accuracy: float
    loss: float
    count: int
    """Test samples."""
    noun: str
    """What a sample is, such as ``images``."""
    calibration_error: float | None = None

    def text(self) -> str:
        return f"global weights {self.round}: {self.accuracy:.2%} of {self.count} test {self.noun} correct"


@dataclass(frozen=True, kw_only=True)
class EvaluationFailed(Event):
    """Global weights could not be measured; the run goes on."""

    level = logging.WARNING
    round: int
    detail: str

    def text(self) -> str:
        return f"global weights {self.round}: evaluation failed: {self.detail}"


# Learners


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event):
    """A learner trains a round's global weights."""

    round: int
    epochs: int
    samples: int
    noun: str
    distilled: int | None = None
    """Samples of the public set that it also learns from, with distillation."""

    def text(self) -> str:
        also = f" and {self.distilled} public {self.noun}" if self.distilled else ""
        return f"round {self.round}: training {counted(self.epochs, 'epoch')} on {self.samples} {self.noun}{also}"


@dataclass(frozen=True, kw_only=True)
class EpochEnded(Event):
    """One epoch of training is done."""

    round: int
    epoch: int
    epochs: int
    accuracy: float

    def text(self) -> str:
        return f"round {self.round}: epoch {self.epoch} of {self.epochs}, training accuracy {self.accuracy:.2%}"


@dataclass(frozen=True, kw_only=True)
class TrainingEnded(Event):
    """All epochs of a round are done."""

    round: int
    seconds: float

    def text(self) -> str:
        return f"round {self.round}: trained in {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class LocalWeightsEvaluated(Event):
    """A learner has measured its own weights on the test set."""

    round: int
    accuracy: float
    loss: float
    count: int
    noun: str
    seconds: float

    def text(self) -> str:
        return (
            f"round {self.round}: {self.accuracy:.2%} of {self.count} test {self.noun} correct ({self.seconds:.1f} s)"
        )


@dataclass(frozen=True, kw_only=True)
class LocalWeightsWritten(Event):
    """A learner's weights are on its disk."""

    round: int
    cid: str
    file: str

    def text(self) -> str:
        return f"round {self.round}: wrote {self.file}"


@dataclass(frozen=True, kw_only=True)
class FileStored(Event):
    """The store has a model file."""

    round: int
    cid: str

    def text(self) -> str:
        return f"round {self.round}: stored {self.cid}"


@dataclass(frozen=True, kw_only=True)
class LocalWeightsPublished(Event):
    """A block has the hash of a learner's weights."""

    round: int
    cid: str
    block: int
    gas: int

    def text(self) -> str:
        return f"round {self.round}: published {self.cid}{_sealed(self.block, self.gas)}"


@dataclass(frozen=True, kw_only=True)
class LocalWeightsDiscarded(Event):
    """Weights that an earlier process left are not valid for this round; the learner trains again."""

    round: int
    file: str
    detail: str

    def text(self) -> str:
        return f"round {self.round}: discarded {self.file}, retraining: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class ResidualDiscarded(Event):
    """What earlier compressed updates left out can't be read; the learner continues without it."""

    level: ClassVar[int] = logging.WARNING

    round: int
    file: str
    detail: str

    def text(self) -> str:
        return f"round {self.round}: discarded {self.file}, continuing without it: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class GlobalWeightsUnusable(Event):
    """A learner can't train these global weights; it waits for others."""

    level = logging.WARNING
    round: int
    cid: str
    detail: str

    def text(self) -> str:
        return f"round {self.round}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class GlobalWeightsVerified(Event):
    """A learner has recomputed a round's global weights: they are right."""

    round: int
    cid: str
    seconds: float

    def text(self) -> str:
        return f"global weights {self.round}: verified in {self.seconds:.2f} s"


@dataclass(frozen=True, kw_only=True)
class VerificationWaiting(Event):
    """A learner can't verify global weights yet, since it can't get a file; it tries again."""

    level = logging.WARNING
    round: int
    cid: str
    detail: str

    def text(self) -> str:
        return f"global weights {self.round}: not verified yet, retrying: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class GlobalWeightsAttested(Event):
    """A block has a learner's attestation of global weights."""

    round: int
    cid: str
    block: int
    gas: int

    def text(self) -> str:
        return f"global weights {self.round}: attested{_sealed(self.block, self.gas)}"


@dataclass(frozen=True, kw_only=True)
class GlobalWeightsRejected(Event):
    """A block has a learner's rejection of global weights that are not what they should be."""

    level = logging.WARNING
    round: int
    cid: str
    code: str
    """Which field or check failed."""
    detail: str
    block: int
    gas: int

    def text(self) -> str:
        return f"global weights {self.round}: rejected ({self.detail}){_sealed(self.block, self.gas)}"


@dataclass(frozen=True, kw_only=True)
class HeaderVoted(Event):
    """A block has a learner's vote for another header, since the present one does nothing."""

    level = logging.WARNING
    round: int
    header: str
    """The account of the header that does nothing."""
    block: int
    gas: int

    def text(self) -> str:
        return (
            f"round {self.round}: voted for another header; {self.header} does nothing{_sealed(self.block, self.gas)}"
        )


@dataclass(frozen=True, kw_only=True)
class HeaderReplaced(Event):
    """The contract names another header than this account, which is a standby now."""

    round: int
    header: str

    def text(self) -> str:
        return f"standby: the header is {self.header}"


@dataclass(frozen=True, kw_only=True)
class HeaderTakenOver(Event):
    """The contract names this account as the header, which was a standby."""

    round: int

    def text(self) -> str:
        return f"round {self.round}: became the header"


# The role's journal, and the chain's time


@dataclass(frozen=True, kw_only=True)
class JournalDamaged(Event):
    """The role's journal was changed by somebody else; the role keeps it and starts a new one."""

    level = logging.WARNING
    file: str
    """What the damaged journal is called now."""
    detail: str

    def text(self) -> str:
        return f"the journal is damaged: {self.detail}; it is kept as {self.file}, and a new one is started"


@dataclass(frozen=True, kw_only=True)
class JournalNotShared(Event):
    """The role's journal could not be copied into IPFS; the next entry tries again."""

    level = logging.WARNING
    detail: str

    def text(self) -> str:
        return f"the journal is not in IPFS yet: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class BlockDatedBack(Event):
    """A block is older by its own time than by this host's clock: its sealer dated it back, or it came late."""

    level = logging.WARNING
    block: int
    seconds: float

    def text(self) -> str:
        return (
            f"block {self.block} is dated {self.seconds:.0f} s before it appeared here: "
            "its sealer dated it back, or this host got it late"
        )


@dataclass(frozen=True, kw_only=True)
class RoundClosedEarly(Event):
    """A round was closed by block time before its timeout was over by this host's clock."""

    level = logging.WARNING
    round: int
    seconds: float
    """For how long it was open at most, by this host's clock."""
    timeout: float

    def text(self) -> str:
        return (
            f"round {self.round}: closed after at most {self.seconds:.0f} s by this host's clock; its timeout is "
            f"{self.timeout:g} s, so a sealer dated blocks wrongly, or this host got them late"
        )


@dataclass(frozen=True, kw_only=True)
class AttackStarted(Event):
    """A learner attacks the run, as the plan of a laboratory says."""

    round: int
    kinds: tuple[str, ...]

    def text(self) -> str:
        return f"round {self.round}: attack with {' and '.join(self.kinds)}, as the plan specifies"


@dataclass(frozen=True, kw_only=True)
class EventFilesStopped(Event):
    """No more event files for TensorBoard can be written; training goes on."""

    level = logging.WARNING
    detail: str

    def text(self) -> str:
        return f"stopped writing TensorBoard event files: {self.detail}"


# Both


@dataclass(frozen=True, kw_only=True)
class FileFetching(Event):
    """A file that takes long to arrive."""

    cid: str
    received: int
    """Bytes."""
    length: int | None
    rate: int
    """Bytes a second."""

    def text(self) -> str:
        return f"fetching {self.cid}: {size(self.received, self.length, self.rate)}"


def size(received: int, length: int | None, rate: float) -> str:
    """Return the progress of a download as text, such as ``12.0 of 930.1 MB, 3.4 MB/s``.

    Parameters
    ----------
    received
        The bytes that have arrived.
    length
        The file's size in bytes, if known.
    rate
        Bytes per second.
    """
    whole = f" of {length / 1e6:.1f}" if length else ""
    return f"{received / 1e6:.1f}{whole} MB, {rate / 1e6:.1f} MB/s"


def _sealed(block: int, gas: int) -> str:
    return f" in block {block} ({gas} gas)"
