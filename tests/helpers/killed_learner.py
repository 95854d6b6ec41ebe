"""A learner with a stub trainer that ends by SIGKILL when it logs a certain event.

python -m tests.helpers.killed_learner RPC KEY CONTRACT FOLDER STORE [EVENT ROUND]
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from fl_node.artifacts.folder_store import FolderStore
from fl_node.chain.client import Chain
from fl_node.chain.keys import load_key
from fl_node.privacy.secret import beside
from fl_node.roles import factory
from fl_node.roles.loop import Site
from tests.helpers.at_event import at_event, kill
from tests.helpers.stub import StubTrainer


def main() -> None:
    rpc, key, contract, folder, store, *end = sys.argv[1:]
    if end:
        logging.getLogger("fl_node").setLevel(logging.INFO)
        at_event(end[0], int(end[1]), kill)
    chain = Chain(rpc, load_key(Path(key)))
    Path(folder).mkdir(parents=True, exist_ok=True)
    secret = beside(Path(key))
    site = Site(chain, chain.contract(contract), FolderStore(Path(store)), Path(folder), secret=secret)
    factory.run_learner(site, StubTrainer)


if __name__ == "__main__":
    main()
