"""A chain that is split, and a sealer that dates its blocks wrongly: what a majority and own clocks are good for."""

from __future__ import annotations

import time
from collections.abc import Callable

from fl_node import events
from fl_node.audit.journals import CLOSED_EARLY
from fl_node.errors import ChainError, ProcessError
from fl_node.lab import lies
from fl_node.lab.fault_model import ROUND, Check, Controls, Outcome, Scenario, Trace, first_message
from fl_node.lab.header_faults import LIAR, VICTIM
from fl_node.protocol.names import HEADER, standby_name
from fl_node.runtime.waiting import wait_until

STANDS_STILL = 50.0
"""Seconds for which nothing is sealed, so that the next blocks are dated back by as much."""


def _split(lab: Controls, trace: Trace) -> None:
    """Cut the first candidate off when the header is gone, until the second one has published.

    Raises
    ------
    ProcessError
        What should happen meanwhile does not.
    """
    lab.hold(HEADER)
    contract, _ = lab.as_node(LIAR)
    if not wait_until(lambda: _answer(lambda: contract.state().closed), lies.PATIENCE):
        raise ProcessError(f"round {ROUND} did not close")
    lab.split(VICTIM)
    trace.notes.append(f"the header is gone, and {VICTIM}'s Geth is cut off")
    if not wait_until(lambda: _answer(lambda: contract.state().round > ROUND), 2 * lies.PATIENCE):
        raise ProcessError("nobody took the header's place")
    lab.split(None)


def _answer(ask: Callable[[], object]) -> bool:
    """Return what a chain answers; False while it can't be reached."""
    try:
        return bool(ask())
    except ChainError:
        return False


def _stand_still(lab: Controls, _trace: Trace) -> None:
    lab.date_back(3600.0)
    time.sleep(STANDS_STILL)


def _close_early(lab: Controls, trace: Trace) -> None:
    """Let a learner close the round without another as soon as the chain's clock has jumped to the present.

    Raises
    ------
    ProcessError
        What should happen meanwhile does not.
    """
    lab.hold(LIAR)
    lab.date_back(0.0)
    contract, _ = lab.as_node(LIAR)

    def closes() -> bool:
        return len(contract.local_weights(ROUND, contract.learners())) > 1 and (
            contract.close_round(contract.chain.nonce()) is not None or contract.state().closed
        )

    if not wait_until(lambda: _answer(closes), lies.PATIENCE, 0.1):
        raise ProcessError(f"round {ROUND} did not close")
    trace.notes.append(f"learner 2 is away, and round {ROUND} is closed")
    lab.release(LIAR)


def _passed_over(trace: Trace, outcome: Outcome) -> Check:
    named = [change.node for change in outcome.result.header_changes]
    takeovers = [e for _, e in trace.matching(standby_name(2), events.HeaderTakenOver.name)]
    passed = named[:2] == ["learner 1", "learner 2"] and bool(takeovers)
    return Check(
        "learner 1 is passed over, and learner 2's standby becomes the header", passed, ", then ".join(named)
    )


def _noticed(trace: Trace, _outcome: Outcome) -> Check:
    kinds = (events.BlockDatedBack.name, events.RoundClosedEarly.name)
    reports = [[e for _, e in trace.matching(VICTIM, kind)] for kind in kinds]
    return Check("learner 1 notices it by its own clock", all(reports), "; ".join(map(first_message, reports)))


def _noted(_trace: Trace, outcome: Outcome) -> Check:
    notes = [note for note in outcome.audit.notes if (note.code, note.round) == (CLOSED_EARLY, ROUND)]
    return Check("the audit says so, from the journals", bool(notes), "; ".join(notes))


def _without_learner_2(_trace: Trace, outcome: Outcome) -> Check:
    missing = [each.round for each in outcome.result.rounds if 2 in each.missing_learners]
    return Check("learner 2 is missing in that round", ROUND in missing, f"rounds {missing}")


CHAIN_SCENARIOS = (
    Scenario(
        "header-split",
        "The header is gone, and the first candidate's Geth is cut off from the other sealers. The learners vote for "
        "it, pass it over, and the second candidate publishes. After the split all nodes have the same history.",
        (HEADER, events.RoundStarted.name),
        _split,
        (_passed_over,),
        same_bits=True,
        settings={"header_timeout": 10.0},
        backends=("processes",),
        standby=True,
    ),
    Scenario(
        "sealer-dates-back",
        "The chain's clock stands still and then jumps to the present, so that a round can be closed long before its "
        "timeout while a learner is away. Every learner that has published is in the round all the same, and "
        "learners that watched the round report it by their own clocks.",
        (LIAR, events.TrainingStarted.name),
        _close_early,
        (_noticed, _noted, _without_learner_2),
        same_bits=False,
        settings={"min_learners": 2, "round_timeout": 60.0, "fetch_timeout": 3.0},
        backends=("embedded",),
        begin=_stand_still,
    ),
)
"""What sealers and the network between them can do."""
