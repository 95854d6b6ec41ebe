"""A node that reports by WebSocket what a test wants it to report."""

from __future__ import annotations

import json
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

HANG = 600.0
"""Seconds after which a connection has hung."""
BLOCK, EVENT, TRANSACTION = "0xb", "0xe", "0xf"
"""The subscriptions."""


class Reporter:
    """A node that reports what a test wants."""

    def __init__(self, *, reports_transactions: bool = True) -> None:
        self.reports_transactions = reports_transactions
        self.requests: list[dict[str, object]] = []
        self.connections: list[ServerConnection] = []
        self.subscribed = threading.Semaphore(0)
        self._answered: set[tuple[ServerConnection, str]] = set()
        self._changed = threading.Condition()
        self.server: Server = serve(self._serve, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.socket.getsockname()[1]}"

    def report(self, subscription: str, result: object = None) -> None:
        """Send a report, as a node does: not before the request for the subscription is answered."""
        connection = self.connections[-1]
        with self._changed:
            assert self._changed.wait_for(lambda: (connection, subscription) in self._answered, HANG)
        params = {"subscription": subscription, "result": {} if result is None else result}
        connection.send(json.dumps({"jsonrpc": "2.0", "method": "eth_subscription", "params": params}))

    def close(self) -> None:
        self.server.shutdown()
        for connection in self.connections:
            connection.close()
        self._thread.join(HANG)

    def _serve(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        try:
            for message in connection:
                request = json.loads(message)
                self.requests.append(request)
                name = {"newHeads": BLOCK, "logs": EVENT, "newPendingTransactions": TRANSACTION}[request["params"][0]]
                answer: dict[str, object] = {"result": name}
                if name == TRANSACTION and not self.reports_transactions:
                    answer = {"error": {"code": -32601, "message": "no such subscription"}}
                connection.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}))
                with self._changed:
                    self._answered.add((connection, name))
                    self._changed.notify_all()
                if name == EVENT:
                    self.subscribed.release()
        except ConnectionClosed:
            pass
