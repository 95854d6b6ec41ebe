"""Rounds with masks in which a learner is lost or lies: what is opened of its secrets, and what never is."""

from __future__ import annotations

import shutil
import signal

from fl_node import events
from fl_node.lab import wrong_shares
from fl_node.lab.fault_model import ROUND, Check, Controls, Expectation, Outcome, Scenario, Trace, first_message
from fl_node.lab.header_faults import LIAR, LIAR_LABEL, VICTIM, succeeded, telling, withdrawn
from fl_node.lab.run_folder import WORK
from fl_node.protocol.names import HEADER, learner_name, learners_label
from fl_node.protocol.verification.masked import LEARNER_LOST, NOT_OPENED, WRONG_OPENING

LEARNERS = 4
"""One of four may be lost: three open a round."""
PATIENT = 3600.0
"""Seconds for the header while it is suspended, so that nobody replaces it."""


def _lose(lab: Controls, trace: Trace) -> None:
    """End a learner for good, and delete what its host has of the run."""
    lab.hold(LIAR)
    folder = lab.folder / "nodes" / LIAR
    shutil.rmtree(folder / WORK)
    (folder / "host.secret").unlink()
    trace.notes.append("learner 2's process and folder are gone for good")


def _lose_for_a_round(lab: Controls, trace: Trace) -> None:
    lab.hold(LIAR)

    def come_back() -> None:
        trace.notes.append(f"learner 2 is back in round {ROUND + 1}")
        lab.release(LIAR)

    lab.when(
        HEADER, events.RoundStarted, come_back, f"round {ROUND} did not close without learner 2", round=ROUND + 1
    )


def _keep_open(lab: Controls, _trace: Trace) -> None:
    """Suspend a learner before the round starts: without its file the round stays open, so nobody can open it."""
    lab.when(
        VICTIM,
        events.MasksOpened,
        lambda: _signal(lab, VICTIM, signal.SIGSTOP),
        f"learner 1 did not open round {ROUND - 1}",
        round=ROUND - 1,
    )


def _lose_when_published(lab: Controls, trace: Trace) -> None:
    lab.hold(LIAR)
    _signal(lab, VICTIM, signal.SIGCONT)

    def come_back() -> None:
        trace.notes.append("learner 2 was lost after it had published, and is back in the next round")
        lab.release(LIAR)

    what = f"round {ROUND} did not end without learner 2's shares"
    lab.when(HEADER, events.RoundStarted, come_back, what, round=ROUND + 1)


def _open_wrong_shares(lab: Controls, trace: Trace) -> None:
    """Put random bytes in place of the shares that a learner is about to publish."""
    contract, _ = lab.as_node(LIAR)
    wrong_shares.write(contract, lab.folder / "nodes" / LIAR / WORK)
    # The header ends the round as soon as three others have opened it.
    _signal(lab, HEADER, signal.SIGSTOP)

    def go_on() -> None:
        _signal(lab, HEADER, signal.SIGCONT)
        name = contract.opening_at(ROUND, 2)
        trace.notes.append(f"learner 2 published {name}, random bytes in place of its shares")

    lab.when(LIAR, events.MasksOpened, go_on, f"learner 2 did not open round {ROUND}", round=ROUND)


def _signal(lab: Controls, node: str, number: signal.Signals) -> None:
    lab.roles[node].process.send_signal(number)


def _absent(*rounds: int) -> Expectation:
    def expectation(_trace: Trace, outcome: Outcome) -> Check:
        missing = [each.round for each in outcome.result.rounds if 2 in each.missing_learners]
        wanted = list(rounds) or list(range(ROUND, outcome.result.plan.rounds))
        return Check(
            "the rounds without learner 2's file have the sum of the others",
            missing == wanted,
            f"rounds {', '.join(map(str, missing)) or 'none'}",
        )

    return expectation


def _noted(what: str, code: str) -> Expectation:
    def expectation(_trace: Trace, outcome: Outcome) -> Check:
        notes = [
            note for note in outcome.audit.notes if (note.code, note.round, note.about) == (code, ROUND, LIAR_LABEL)
        ]
        return Check(f"the audit names learner 2, {what}", bool(notes), "; ".join(notes))

    return expectation


def _sat_out(trace: Trace, _outcome: Outcome) -> Check:
    sat_out = [e for _, e in trace.matching(LIAR, events.RoundSatOut.name, round=ROUND + 1)]
    return Check("learner 2 sits out the round for which it has no key", bool(sat_out), first_message(sat_out))


def _opened_by_others(trace: Trace, _outcome: Outcome) -> Check:
    opened = events.MasksOpened.name
    who = [n for n in range(1, LEARNERS + 1) if any(trace.matching(learner_name(n), opened, round=ROUND))]
    seen = f"opened by {learners_label(who) if who else 'nobody'}"
    return Check("the other three open the round", who == [1, 3, 4], seen)


def _liar_named(trace: Trace, _outcome: Outcome) -> Check:
    rejected = [e for _, e in trace.matching(HEADER, events.OpeningRejected.name, round=ROUND, learner=2)]
    return Check("the header names learner 2, whose shares are wrong", bool(rejected), first_message(rejected))


def _nobody_answers(trace: Trace, outcome: Outcome) -> Check:
    """Check that each learner opened the round for its true members alone."""
    everyone = tuple(range(1, outcome.result.plan.learners + 1))
    opened = {
        n: [tuple(e["members"]) for _, e in trace.matching(learner_name(n), events.MasksOpened.name, round=ROUND)]
        for n in everyone
    }
    seen = "; ".join(f"learner {n} opened for {', '.join(map(str, sets)) or 'nobody'}" for n, sets in opened.items())
    return Check(
        "nobody opens the round again: own seeds of its members, and no seed of a pair",
        all(set(sets) <= {everyone} for sets in opened.values()) and any(opened.values()),
        seen,
    )


_MASKED = {"aggregation": {"rule": "fedavg", "arithmetic": "fixed"}}
_ONE_MAY_BE_LOST = {
    **_MASKED,
    "privacy": {"secure_aggregation": True, "threshold": LEARNERS - 1},
    "learners": LEARNERS,
    "min_learners": LEARNERS - 1,
    "round_timeout": 30.0,
    "header_timeout": PATIENT,
}
_NO_TIMEOUT = {**_ONE_MAY_BE_LOST, "round_timeout": PATIENT}
"""Where a learner comes back in time, however slow the machine is."""
_STARTS = (HEADER, events.RoundStarted.name)
_TRAINS = (LIAR, events.TrainingStarted.name)

MASK_SCENARIOS = (
    Scenario(
        "masks-lost-before",
        "With masks: a learner is lost before it publishes. The others open the seeds that they have in common with "
        "it, so the round ends with the sum of their updates. When the learner returns, it announces a key, sits out "
        "a round and takes part in the next.",
        _TRAINS,
        _lose_for_a_round,
        (_absent(ROUND, ROUND + 1), _noted("which is lost", LEARNER_LOST), _sat_out),
        same_bits=False,
        settings={**_ONE_MAY_BE_LOST, "rounds": ROUND + 3, "round_timeout": 60.0},
    ),
    Scenario(
        "masks-lost-after",
        "With masks: a learner is lost after it has published and before it opens the round. The other three are "
        "enough, and the sum has the lost learner's update. When it returns, it takes part in the next round.",
        (LIAR, events.LocalWeightsPublished.name),
        _lose_when_published,
        (_opened_by_others, _noted("which did not open the round", NOT_OPENED)),
        same_bits=True,
        settings=_NO_TIMEOUT,
        begin=_keep_open,
    ),
    Scenario(
        "masks-lost-for-good",
        "With masks: a learner's process and its folder are lost for good. Each later round closes without it.",
        _TRAINS,
        _lose,
        (_absent(), _noted("which is lost", LEARNER_LOST)),
        same_bits=False,
        settings=_ONE_MAY_BE_LOST,
    ),
    Scenario(
        "masks-wrong-shares",
        "With masks: a learner publishes random bytes in place of its shares. Everybody sees by their hashes that "
        "they are wrong and who published them; the shares of the other three are enough.",
        _TRAINS,
        _open_wrong_shares,
        (_liar_named, _noted("whose shares are wrong", WRONG_OPENING)),
        same_bits=True,
        settings=_NO_TIMEOUT,
    ),
    Scenario(
        "header-asks-both",
        "With masks: all learners have opened a round, and then the header lists one of them as lost, so that the "
        "others would also open the seeds that they have in common with it. Nobody answers: the chain says who is in "
        "the round. The learners reject the header's weights, and the first learner's standby publishes the right "
        "ones.",
        _STARTS,
        telling("asks-both"),
        (_nobody_answers, withdrawn, succeeded),
        same_bits=True,
        settings={
            **_MASKED,
            "privacy": {"secure_aggregation": True, "threshold": 3},
            "header_timeout": 10.0,
        },
        standby=True,
    ),
)
"""What may happen to the masks of a round."""
