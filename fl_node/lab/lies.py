"""False global weights, each wrong in one way, and a program that publishes them with a header's account.

In a lab that shows why nobody has to trust the header, with the environment of a stopped header's unit::

    python -P -m fl_node.lab.lies sum
"""

from __future__ import annotations

import argparse
import os
import tempfile
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
from fl_node.chain.keys import load_key
from fl_node.errors import ProcessError
from fl_node.lab.hand import Hand
from fl_node.models.ensemble import trainer_for
from fl_node.protocol.masked import count_of
from fl_node.protocol.names import MISSING
from fl_node.protocol.reader import Reader
from fl_node.runtime.waiting import wait_until

PATIENCE = 120.0
"""Seconds in which the round must close."""

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


def main() -> None:
    """Publish a lie in place of the header whose account, node and contract the environment names."""
    parser = argparse.ArgumentParser(prog="python -P -m fl_node.lab.lies", description=__doc__)
    parser.add_argument("lie", choices=LIES)
    lie = parser.parse_args().lie
    chain = Chain(os.environ["FL_NODE_RPC"], load_key(Path(os.environ["FL_NODE_KEY"])))
    contract, store = chain.contract(os.environ["FL_NODE_CONTRACT"]), connect(os.environ["FL_NODE_STORE"])
    with tempfile.TemporaryDirectory() as name:
        plan = Reader(store, Path(name)).read_plan(contract.plan())
        print(publish(Hand(contract, store, Path(name), plan, trainer_for(plan).shapes(), ""), lie))


if __name__ == "__main__":
    main()
