"""Random bytes in place of the shares that a learner is about to publish in a round with masks.

In a lab that shows why wrong shares do no harm, with the environment of a learner's unit::

    python -P -m fl_node.lab.wrong_shares
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.chain.keys import load_key
from fl_node.privacy.dealing import OWN, SHARE_BYTES
from fl_node.protocol.openings import Opening
from fl_node.roles.masking import opening_path
from fl_node.runtime import files


def write(contract: Contract, folder: Path) -> Path:
    """Write what a learner then publishes, for it publishes what is on its disk.

    Parameters
    ----------
    contract
        The run's contract, with the learner's account; its current round is open.
    folder
        The learner's folder, which has one for each run.

    Returns
    -------
    Path
        The file.
    """
    view = contract.view(contract.chain.address)
    parent, round_ = str(view.state.global_cid), view.state.round
    shares = {member: {OWN: secrets.token_bytes(SHARE_BYTES)} for member in view.learners}
    opening = Opening(contract.plan(), int(view.node_id or 0), round_, parent, view.learners, shares)
    path = opening_path(folder / contract.address.lower(), round_, parent)
    files.write(path, opening.to_bytes())
    return path


def main() -> None:
    """Write wrong shares for the learner whose account, node, contract and folder the environment names."""
    chain = Chain(os.environ["FL_NODE_RPC"], load_key(Path(os.environ["FL_NODE_KEY"])))
    contract = chain.contract(os.environ["FL_NODE_CONTRACT"])
    print(write(contract, Path(os.environ["FL_NODE_FOLDER"])))


if __name__ == "__main__":
    main()
