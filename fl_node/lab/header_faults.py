"""Headers that lie or are gone, and learners that reject what is right: whom nobody has to trust, and why."""

from __future__ import annotations

from fl_node import events
from fl_node.audit.verdicts import WITHDRAWN, WRONG_REJECTION
from fl_node.errors import ProcessError
from fl_node.lab import lies
from fl_node.lab.fault_model import ROUND, Check, Controls, Fault, Outcome, Scenario, Trace, first_message
from fl_node.lab.hand import LIAR_ID, Hand
from fl_node.protocol.names import HEADER, learner_label, learner_name, standby_name
from fl_node.runtime import scratch
from fl_node.runtime.waiting import wait_until

VICTIM, LIAR = learner_name(1), learner_name(LIAR_ID)
LIAR_LABEL = learner_label(LIAR_ID)
SLANDERERS: tuple[str, ...] = (LIAR,)
"""Who rejects correct weights: a minority."""
AWAY = 6.0
"""Seconds that something is away before it comes back."""


# A header that lies: its process is stopped, and somebody publishes in its place, with its account.


def telling(lie: str) -> Fault:
    """Return the fault that a header publishes certain false weights."""

    def fault(lab: Controls, trace: Trace) -> None:
        lab.hold(HEADER)
        contract, store = lab.as_node(HEADER)
        with scratch.folder() as here:
            hand = Hand(contract, store, here, lab.plan, lab.shapes, trace.prepared)
            trace.prepared = lies.publish(hand, lie)
        trace.notes.append(f"the header published {trace.prepared}")

    return fault


def _ends_early(lab: Controls, trace: Trace) -> None:
    """Try to end a round while a learner is away, and go on as if nothing had happened."""
    lab.hold(LIAR)
    contract, _ = lab.as_node(HEADER)
    trace.got += lies.end_early(contract)
    trace.notes.append(f"setGlobalWeight and closeRound in an open round: accepted {', '.join(trace.got) or 'none'}")
    lab.release(LIAR)


def _gone(lab: Controls, trace: Trace) -> None:
    lab.hold(HEADER)
    trace.notes.append("the header is gone for good")


def _gone_and_back(lab: Controls, trace: Trace) -> None:
    lab.hold(HEADER)
    contract, _ = lab.as_node(HEADER)
    account = contract.chain.address
    if not wait_until(lambda: contract.header() != account, lies.PATIENCE):
        raise ProcessError("the header was not replaced")
    trace.notes.append(f"the header came back after {contract.header()} had taken over")
    lab.release(HEADER)


def _wrongly_reject(lab: Controls, trace: Trace) -> None:
    """Reject correct weights as :data:`SLANDERERS`, whose processes rest so that they do not attest them first."""
    for node in SLANDERERS:
        lab.hold(node)
    name = str(lab.as_node(HEADER)[0].state().global_cid)
    for node in SLANDERERS:
        contract, _ = lab.as_node(node)
        contract.reject(ROUND, name, contract.chain.nonce(), code="slander")
        trace.notes.append(f"{node} rejected {name}")
    for node in SLANDERERS:
        lab.release(node)


def withdrawn(trace: Trace, outcome: Outcome) -> Check:
    """Check that false weights were withdrawn."""
    notes = [note for note in outcome.audit.notes if (note.code, note.about) == (WITHDRAWN, trace.prepared)]
    return Check("the learners withdraw the false weights, and the audit says so", bool(notes), "; ".join(notes))


def succeeded(trace: Trace, _outcome: Outcome) -> Check:
    """Check that the first candidate became the header."""
    takeovers = [e for _, e in trace.matching(standby_name(1), events.HeaderTakenOver.name)]
    return Check("learner 1's standby becomes the header", bool(takeovers), first_message(takeovers))


def _told(trace: Trace, _outcome: Outcome) -> Check:
    replacements = [e for _, e in trace.matching(HEADER, events.HeaderReplaced.name)]
    return Check(
        "the header that returns is told that it was replaced", bool(replacements), first_message(replacements)
    )


def _named(_trace: Trace, outcome: Outcome) -> Check:
    notes = [note for note in outcome.audit.notes if (note.code, note.about) == (WRONG_REJECTION, LIAR_LABEL)]
    return Check("nothing is withdrawn, and the audit names who rejected", bool(notes), "; ".join(notes))


def _too_early(trace: Trace, _outcome: Outcome) -> Check:
    return Check("the contract refuses to end a round early", not trace.got, "; ".join(trace.notes))


_SOON = {"header_timeout": 10.0}
_TRAINS = (LIAR, events.TrainingStarted.name)
_COLLECTS = (HEADER, events.RoundStarted.name)


def _false(name: str, text: str, lie: str) -> Scenario:
    return Scenario(
        name,
        text,
        _COLLECTS,
        telling(lie),
        (withdrawn, succeeded),
        same_bits=True,
        settings=_SOON,
        standby=True,
    )


HEADER_SCENARIOS = (
    _false(
        "header-lies",
        "The header publishes weights that are not the sum of the local weights. Every learner recomputes them, "
        "the learners reject them by majority, and the first learner's standby publishes the right ones.",
        "sum",
    ),
    _false(
        "header-omits",
        "The header leaves a learner out that has published, and lists it as missing.",
        "omits",
    ),
    _false(
        "header-calls-missing",
        "The header rejects a file as missing that all others have.",
        "calls-missing",
    ),
    _false("header-wrong-parent", "The header names other weights as the parent of its own.", "parent"),
    _false("header-other-plan", "The header publishes weights of another plan.", "plan"),
    Scenario(
        "header-early",
        "The header tries to end a round before all learners have published. The contract refuses.",
        _TRAINS,
        _ends_early,
        (_too_early,),
        same_bits=True,
    ),
    Scenario(
        "header-gone",
        "The header is gone for good at the start of a round. After header_timeout the learners vote, and the "
        "first learner's standby finishes the run.",
        _COLLECTS,
        _gone,
        (succeeded,),
        same_bits=True,
        settings=_SOON,
        standby=True,
    ),
    Scenario(
        "header-gone-aggregating",
        "The header is gone for good while it aggregates.",
        (HEADER, events.UpdatesAggregated.name),
        _gone,
        (succeeded,),
        same_bits=True,
        settings=_SOON,
        standby=True,
    ),
    Scenario(
        "header-returns",
        "The header is away until it is replaced. When it returns, it is told so and stands by.",
        _COLLECTS,
        _gone_and_back,
        (succeeded, _told),
        same_bits=True,
        settings=_SOON,
        standby=True,
    ),
    Scenario(
        "learner-rejects",
        "A learner rejects correct global weights. One of three changes nothing.",
        (HEADER, events.GlobalWeightsPublished.name),
        _wrongly_reject,
        (_named,),
        same_bits=True,
        standby=True,
    ),
)
"""What one can't trust a header with, and what one can't trust a learner with."""
