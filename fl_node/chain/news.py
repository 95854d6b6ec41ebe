"""What a node reports by itself: new blocks, events of a contract, and transactions before a block has them.

Nodes that serve WebSocket where they serve HTTP report them (``eth_subscribe``), as the nodes of a lab and of the
hosts do. Then roles need not poll. For any other node, or while the connection is lost, roles poll as before.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from fl_node.errors import JsonError
from fl_node.runtime import strict_json

OPEN_TIMEOUT = 5.0
FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
"""Seconds until a lost connection is opened again: the first time, and at most."""
MAX_MESSAGE_BYTES = 4 * 1024**2
BLOCKS, EVENTS, TRANSACTIONS = 1, 2, 3
"""The ids of the requests for subscriptions."""


@dataclass(frozen=True)
class Mark:
    """How much has been reported: blocks, events of the contract, and calls of :meth:`News.ring`."""

    blocks: int
    events: int
    rings: int


class News:
    """The reports of one node.

    Parameters
    ----------
    rpc
        The URL of its RPC.
    address
        The contract.
    topics
        The topics of the contract's events that count.
    on_call
        Called with the input of each transaction to the contract that waits for a block, in the thread that listens.
        Only a hint: a node may report none, and a transaction may never get into a block.
    """

    def __init__(
        self, rpc: str, address: str, topics: Sequence[str], on_call: Callable[[bytes], None] | None = None
    ) -> None:
        self._url = "ws" + rpc.removeprefix("http")
        self._address = address.lower()
        self._on_call = on_call
        self._subscriptions: dict[int, list[Any]] = {
            BLOCKS: ["newHeads"],
            EVENTS: ["logs", {"address": address, "topics": [list(topics)]}],
        }
        if on_call is not None:
            self._subscriptions[TRANSACTIONS] = ["newPendingTransactions", True]
        self._changed = threading.Condition()
        self._mark = Mark(0, 0, 0)
        self._alive = self._closed = False
        self.newest: str | None = None
        """The hash of the block that was reported last."""
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="news", daemon=True)

    def start(self) -> None:
        """Begin to listen, in the background."""
        self._thread.start()

    def close(self) -> None:
        """End; the thread ends soon."""
        self._closed = True
        self._drop()

    @property
    def is_alive(self) -> bool:
        """Whether the node reports now."""
        return self._alive

    def wait_until_alive(self, timeout: float) -> bool:
        """Wait until the node reports, and return whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: self._alive, timeout)

    def mark(self) -> Mark:
        """Return how much has been reported until now."""
        return self._mark

    def ring(self) -> None:
        """Wake up who waits: something else has changed."""
        self._count(rings=1)

    def wait(self, since: Mark, timeout: float, *, for_events: bool = False) -> bool:
        """Wait for a report, and return whether there was one; not if the connection was lost.

        Parameters
        ----------
        since
            What was known before.
        timeout
            Seconds to wait at most.
        for_events
            Blocks alone do not count.
        """

        def is_new() -> bool:
            now = self._mark
            changed = now.events != since.events or now.rings != since.rings
            return changed or (not for_events and now.blocks != since.blocks)

        with self._changed:
            self._changed.wait_for(lambda: is_new() or not self._alive, timeout)
            return is_new()

    def distrust(self) -> None:
        """Drop the connection: the node has a block that it did not report."""
        self._drop()

    def _count(self, *, blocks: int = 0, events: int = 0, rings: int = 0) -> None:
        with self._changed:
            now = self._mark
            self._mark = Mark(now.blocks + blocks, now.events + events, now.rings + rings)
            self._changed.notify_all()

    def _set_alive(self, alive: bool) -> None:
        with self._changed:
            self._alive = alive
            self._changed.notify_all()

    def _drop(self) -> None:
        self._set_alive(False)
        if (connection := self._connection) is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed:
            # Whatever a node answers, waits without its reports are as right, only slower.
            with contextlib.suppress(OSError, WebSocketException, JsonError, ValueError, LookupError, TypeError):
                self._listen()
            was_alive = self._alive
            self._set_alive(False)
            pause = FIRST_PAUSE if was_alive else min(2 * pause, LAST_PAUSE)
            end = time.monotonic() + pause
            while not self._closed and (left := end - time.monotonic()) > 0:
                time.sleep(min(left, 0.5))

    def _listen(self) -> None:
        """Listen until the connection ends."""
        uri = parse_uri(self._url)
        protocol = ClientProtocol(uri, max_size=MAX_MESSAGE_BYTES)
        # The node is this host's own: no proxy, and no thread but this one between a report and who waits for it.
        with socket.create_connection((uri.host, uri.port), OPEN_TIMEOUT) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = ssl.create_default_context() if uri.secure else None
            self._connection = context.wrap_socket(plain, server_hostname=uri.host) if context else plain
            if self._closed:  # while it connected, so that nobody has closed the connection
                return
            protocol.send_request(protocol.connect())
            self.newest = None
            kinds: dict[str, int] = {}
            for message in self._messages(self._connection, protocol):
                told: dict[str, Any] = strict_json.loads(message, max_bytes=MAX_MESSAGE_BYTES)
                if "id" not in told:
                    kind = kinds[str(told["params"]["subscription"])]
                    if kind == TRANSACTIONS:
                        self._see_transaction(told["params"]["result"])
                    else:
                        if kind == BLOCKS:
                            self.newest = _hash_of(told["params"]["result"])
                        self._count(blocks=int(kind == BLOCKS), events=int(kind == EVENTS))
                    continue
                kind = int(told["id"])
                if kind == TRANSACTIONS and "result" not in told:
                    continue  # not every node reports them
                kinds[str(told["result"])] = kind
                if not self._alive and {BLOCKS, EVENTS} <= set(kinds.values()):
                    self._connection.settimeout(None)
                    # What happened before is seen by who looks now.
                    self._set_alive(True)
                    self._count(blocks=1, events=1)

    def _see_transaction(self, transaction: object) -> None:
        """Hand on the input of a transaction to the contract."""
        if self._on_call is None or not isinstance(transaction, dict):
            return
        if str(transaction.get("to")).lower() == self._address:
            self._on_call(bytes.fromhex(str(transaction["input"]).removeprefix("0x")))

    def _messages(self, connection: socket.socket, protocol: ClientProtocol) -> Iterator[bytes]:
        """Yield the messages of the node, after the subscriptions are requested."""
        message = b""
        while True:
            for data in protocol.data_to_send():
                if data:
                    connection.sendall(data)
            if not (received := connection.recv(65536)):
                return
            protocol.receive_data(received)
            if protocol.handshake_exc is not None:
                raise protocol.handshake_exc
            for event in protocol.events_received():
                if isinstance(event, Response):
                    for number, parameters in self._subscriptions.items():
                        request = {"jsonrpc": "2.0", "id": number, "method": "eth_subscribe", "params": parameters}
                        protocol.send_text(json.dumps(request).encode())
                elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.CONT):
                    message += event.data
                    if event.fin:
                        yield message
                        message = b""


def _hash_of(header: object) -> str | None:
    """Return the hash of a reported block, if the node reports it."""
    found = header.get("hash") if isinstance(header, dict) else None
    return found if isinstance(found, str) else None
