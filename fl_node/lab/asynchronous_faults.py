"""A learner that floods an asynchronous run, in which updates count in the order of their publication."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fl_node import events
from fl_node.artifacts import model_file
from fl_node.artifacts.model_file import WeightsFile
from fl_node.chain.contract import Contract
from fl_node.errors import ProcessError
from fl_node.lab import lies
from fl_node.lab.fault_model import Check, Controls, Outcome, Scenario, Trace
from fl_node.lab.hand import Hand
from fl_node.lab.header_faults import LIAR
from fl_node.protocol.names import HEADER
from fl_node.protocol.reader import Reader
from fl_node.runtime import scratch
from fl_node.runtime.waiting import wait_until
from fl_node.wording import counted

WINDOW, MOST = 4, 2
"""Of so many successive updates so many may be one learner's."""
AT_ONCE = 3
"""Publications that the flood makes from the same global weights."""


def _flood(lab: Controls, trace: Trace) -> None:
    """Publish global weights as local ones, faster than anybody trains, until the run ends.

    Raises
    ------
    ProcessError
        The run does not go on.
    """
    lab.hold(LIAR)
    with scratch.folder() as here:
        contract, store = lab.as_node(LIAR)
        hand, count = Hand(contract, store, here, lab.plan, lab.shapes, ""), 0
        while (state := contract.state()).round < lab.plan.rounds:
            for file in _copies(hand, str(state.global_cid)):
                count += contract.set_local_weight(2, store.add(file.path), contract.chain.nonce()) is not None
            if not wait_until(partial(_has_ended, contract, state.round), lies.PATIENCE, lies.SOON):
                raise ProcessError(f"round {state.round} did not end in {lies.PATIENCE:g} s")
    trace.notes.append(f"learner 2 published {counted(count, 'file')} without training")
    lab.release(LIAR)


def _has_ended(contract: Contract, round_: int) -> bool:
    return contract.round() > round_


def _copies(hand: Hand, global_cid: str) -> list[WeightsFile]:
    """Return local files with these global weights, each with another loss, so that their CIDs differ."""
    parent = Reader(hand.store, hand.folder, hand.plan, hand.shapes).read(global_cid)
    file = hand.local(2, parent.tensor)
    return [
        model_file.write(
            hand.folder / f"copy-{number}.safetensors", replace(file.local_meta, loss=float(number)), file.tensors()
        )
        for number in range(AT_ONCE)
    ]


def _capped(_trace: Trace, outcome: Outcome) -> Check:
    counted = [one.node_id for each in outcome.result.rounds for one in each.members if one.reason is None]
    windows = [counted[first : first + WINDOW] for first in range(max(len(counted) - WINDOW + 1, 1))]
    most = max(window.count(2) for window in windows)
    seen = f"at most {most} of {WINDOW}; {counted.count(2)} of {len(counted)} in all"
    return Check(f"at most {MOST} of {WINDOW} successive updates are learner 2's", most <= MOST, seen)


def _refused(_trace: Trace, outcome: Outcome) -> Check:
    reasons = [
        one.reason for each in outcome.result.rounds for one in each.members if one.node_id == 2 and one.reason
    ]
    return Check(
        "the others are rejected, and the global files have the reason", bool(reasons), (reasons or ["none"])[0]
    )


ASYNCHRONOUS_SCENARIOS = (
    Scenario(
        "flood-async",
        "A learner of an asynchronous run does not train. It publishes the newest global weights as its own, several "
        "times and before anybody else is done. Only updates from newer weights count, and max_share leaves the "
        "other learners their part.",
        # Only of this event every asynchronous run has one in each round.
        (HEADER, events.GlobalWeightsPublished.name),
        _flood,
        (_capped, _refused),
        same_bits=False,
        settings={
            "mode": "async",
            "rounds": 24,
            "aggregation": {"rule": "fedasync", "max_share": MOST / WINDOW, "share_window": WINDOW},
        },
    ),
)
"""What one learner can do to a run that waits for nobody."""
