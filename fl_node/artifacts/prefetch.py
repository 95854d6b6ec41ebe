"""Fetches files into this host's IPFS repository before a block has the transactions that publish them.

A transaction reaches the nodes some milliseconds before its block. What arrives meanwhile is only in the repository:
roles read and check a file as usual, once the chain has its CID.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import OrderedDict

from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.errors import StoreError

WORKERS = 4
"""Files that are fetched concurrently."""
MAX_WAITING = 32
"""Files that wait for their turn; further ones are ignored."""
MAX_REMEMBERED = 256
"""Files that are not fetched again."""
TIMEOUT = 5.0
"""Seconds that the daemon searches the swarm."""


class Prefetch:
    """Fetches the first block of files in the background: all of a small file, the list of blocks of a large one.

    Parameters
    ----------
    store
        The daemon of this host.
    """

    def __init__(self, store: IpfsStore) -> None:
        self._store = store
        self._waiting: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._remembered: OrderedDict[str, None] = OrderedDict()
        self._threads: list[threading.Thread] = []

    def __call__(self, name: str) -> None:
        """Fetch the file with this CID, unless it was requested before or too many files wait."""
        if name in self._remembered:
            return
        if len(self._threads) < WORKERS:
            self._threads.append(threading.Thread(target=self._run, name="prefetch", daemon=True))
            self._threads[-1].start()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(name)
            self._remembered[name] = None
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _run(self) -> None:
        while True:
            # A role that needs the file fetches it and reports what is wrong.
            with contextlib.suppress(StoreError):
                self._store.fetch_block(self._waiting.get(), TIMEOUT)
