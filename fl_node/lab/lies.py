"""False global weights, each wrong in one way, and what else a header or learner can try that is dishonest.

As a program it does so with the account of a host in a lab, whose role's environment it needs::

    python -P -m fl_node.lab.lies sum
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_node.aggregation.rule import shares
from fl_node.artifacts import cid, model_file
from fl_node.artifacts.address import connect
from fl_node.artifacts.model_file import Rejection, WeightsFile
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.keys import load_key
from fl_node.errors import ProcessError
from fl_node.lab.hand import Hand
from fl_node.models.ensemble import trainer_for
from fl_node.protocol.masked import count_of
from fl_node.protocol.names import MISSING
from fl_node.protocol.reader import Reader
from fl_node.runtime import scratch
from fl_node.runtime.waiting import wait_until

PATIENCE = 120.0
"""Seconds in which the round must close."""
SOON = 0.1
"""Seconds between two looks of who must be first."""

Lie = Callable[[Hand, list[WeightsFile], WeightsFile], WeightsFile]
"""Makes a false global file from the local files of a round and the true global file."""


def _rewritten(hand: Hand, file: WeightsFile, **changes: Any) -> WeightsFile:
    return model_file.write(hand.folder / "lie.safetensors", replace(file.global_meta, **changes), file.tensors())


def _sum(hand: Hand, _files: list[WeightsFile], true: WeightsFile) -> WeightsFile:
    tensors = {name: tensor * np.float32(1.001) for name, tensor in true.tensors().items()}
    return model_file.write(hand.folder / "lie.safetensors", true.global_meta, tensors)


def _omits(hand: Hand, files: list[WeightsFile], true: WeightsFile) -> WeightsFile:
    return hand.global_of(files[1:], true, absent=(files[0].local_meta.node_id,))


def _calls_missing(hand: Hand, files: list[WeightsFile], true: WeightsFile) -> WeightsFile:
    left_out = Rejection(files[0].local_meta.node_id, files[0].cid, MISSING)
    return hand.global_of(files[1:], true, refused=(left_out,))


def _parent(hand: Hand, _files: list[WeightsFile], true: WeightsFile) -> WeightsFile:
    return _rewritten(hand, true, parent=str(hand.contract.global_weight_at(0)))


def _plan(hand: Hand, _files: list[WeightsFile], true: WeightsFile) -> WeightsFile:
    return _rewritten(hand, true, plan=cid.of_bytes(b"the plan of another run"))


def _asks_both(hand: Hand, files: list[WeightsFile], true: WeightsFile) -> WeightsFile:
    """List a learner as lost that is in a masked sum, as if others were to open what they have in common with it."""
    kept = true.global_meta.inputs[1:]
    parts = shares([count_of(hand.plan, one.node_id) for one in kept])
    inputs = tuple(replace(one, share=part) for one, part in zip(kept, parts, strict=True))
    return _rewritten(hand, true, inputs=inputs, absent=(files[0].masked_meta.node_id,))


LIES: dict[str, Lie] = {
    "sum": _sum,
    "omits": _omits,
    "calls-missing": _calls_missing,
    "parent": _parent,
    "plan": _plan,
    "asks-both": _asks_both,
}


def publish(hand: Hand, lie: str) -> str:
    """Wait until the current round is closed, publish false global weights, and return their CID.

    Parameters
    ----------
    hand
        What the header has at hand.
    lie
        The name of a lie in :data:`LIES`.

    Raises
    ------
    ProcessError
        The round did not close.
    """
    contract = hand.contract
    if not wait_until(lambda: contract.state().closed, PATIENCE):
        raise ProcessError(f"round {contract.round()} did not close in {PATIENCE:g} s")
    file_cid = hand.store.add(LIES[lie](hand, *hand.aggregated()).path)
    contract.set_global_weight(file_cid, contract.chain.nonce())
    return file_cid


def end_early(contract: Contract) -> list[str]:
    """Try to end the current round as its header, while learners have not published; return what was accepted.

    Parameters
    ----------
    contract
        The run's contract, with the header's account.

    Raises
    ------
    ProcessError
        Nobody published, so that there was nothing to end.
    """
    round_ = contract.round()
    if not wait_until(lambda: bool(contract.local_weights(round_, contract.learners())), PATIENCE):
        raise ProcessError(f"nobody published in round {round_} in {PATIENCE:g} s")
    lie = cid.of_bytes(b"weights that came too early")
    accepted = ["setGlobalWeight"] if contract.set_global_weight(lie, contract.chain.nonce()) else []
    return accepted + (["closeRound"] if contract.close_round(contract.chain.nonce()) else [])


def slander(contract: Contract) -> str:
    """Reject the next global weights as a learner, although they are right, and return their CID.

    Parameters
    ----------
    contract
        The run's contract, with a learner's account.

    Raises
    ------
    ProcessError
        No new weights were published.
    """
    last = contract.round()
    # At once, since a learner attests the weights when it publishes what it trained from them.
    if not wait_until(lambda: contract.round() > last, PATIENCE, SOON):
        raise ProcessError(f"round {last} did not end in {PATIENCE:g} s")
    state = contract.state()
    contract.reject(state.round, str(state.global_cid), contract.chain.nonce(), code="slander")
    return str(state.global_cid)


def main() -> None:
    """Tell a lie with the account, the nodes and the contract that the environment names."""
    parser = argparse.ArgumentParser(prog="python -P -m fl_node.lab.lies", description=__doc__)
    parser.add_argument("lie", choices=[*LIES, "early", "slander"])
    lie = parser.parse_args().lie
    chain = Chain(os.environ["FL_NODE_RPC"], load_key(Path(os.environ["FL_NODE_KEY"])))
    contract, store = chain.contract(os.environ["FL_NODE_CONTRACT"]), connect(os.environ["FL_NODE_STORE"])
    if lie == "slander":
        print(slander(contract))
        return
    if lie == "early":
        if accepted := end_early(contract):
            sys.exit(f"the contract accepted {' and '.join(accepted)} in an open round")
        return
    with scratch.folder() as here:
        plan = Reader(store, here).read_plan(contract.plan())
        print(publish(Hand(contract, store, here, plan, trainer_for(plan).shapes(), ""), lie))


if __name__ == "__main__":
    main()
