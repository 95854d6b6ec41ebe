"""JSON-RPC over the socket of a local Geth. Runs with the host's own Python, 3.8 or newer."""

from __future__ import annotations

import json
import socket
from typing import Any


class GethError(Exception):
    """Geth does not answer, or answers with an error."""


def call(path: str, method: str, *parameters: Any) -> Any:
    """Return what Geth answers to a call."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(connection.makefile("rb").readline() or b"{}")
    except (OSError, ValueError) as error:
        raise GethError(f"Geth does not answer: {error}") from error
    if "result" not in answer:
        raise GethError("Geth: {}: {}".format(method, answer.get("error", {}).get("message", "no answer")))
    return answer["result"]


def balance(path: str, account: str) -> int:
    """Return what an account owns, in wei."""
    return int(call(path, "eth_getBalance", account, "latest"), 16)


def signers(path: str) -> list:
    """Return the accounts that may seal, sorted."""
    return sorted(str(account).lower() for account in call(path, "clique_getSigners"))
