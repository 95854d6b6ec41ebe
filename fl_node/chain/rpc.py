"""JSON-RPC over HTTP to one node: a persistent connection and batch requests."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, cast

import urllib3
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url
from web3.providers.base import JSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from fl_node.chain import answers
from fl_node.errors import ConfigError, JsonError
from fl_node.runtime import recursion, strict_json

recursion.restore()

MAX_BATCH = 500
"""Maximum number of requests in a batch; Geth answers 1,000 (``--rpc.batch-request-limit``)."""
MAX_ANSWER_BYTES = 256 * 1024**2
"""Maximum size of an answer, far above the log of the longest run."""

Request = tuple[str, Sequence[Any]]


class NodeProvider(JSONBaseProvider):
    """A web3 provider for your own node.

    It takes a third of the time of web3's ``HTTPProvider``, which matters because waiting roles poll the node. It
    ignores proxies in the environment and does not retry a failed request.

    Raises
    ------
    ConfigError
        The URL is invalid, or its scheme is neither ``http`` nor ``https``.
    """

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__()
        parsed = _parsed(url)
        self._url = url
        self._timeout = timeout
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._path = parsed.request_uri
        self._headers = {"Content-Type": "application/json"}
        if parsed.auth:
            self._headers |= urllib3.util.make_headers(basic_auth=parsed.auth)
        self._numbers = itertools.count()

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Make one request; web3 calls this."""
        answer = self._decoded(self._post(self.encode_rpc_request(method, params)))
        if isinstance(answer, dict) and "result" in answer:
            answers.check(method, answer["result"])
        return cast(RPCResponse, answer)

    def batch(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Make requests and return the answers in the same order; the node processes them in this order, too.

        Raises
        ------
        ValueError
            The node returned an invalid answer.
        urllib3.exceptions.HTTPError
            The node did not answer in time.
        """
        given: list[dict[str, Any]] = []
        for first in range(0, len(requests), MAX_BATCH):
            given += self._batch(requests[first : first + MAX_BATCH])
        return given

    def _batch(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        bodies = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            for (method, params), number in zip(requests, self._numbers, strict=False)
        ]
        answer = self._decoded(self._post(json.dumps(bodies if len(bodies) > 1 else bodies[0]).encode()))
        entries = [entry for entry in (answer if isinstance(answer, list) else [answer]) if isinstance(entry, dict)]
        by_id = {entry["id"]: entry for entry in entries if type(entry.get("id")) is int}
        if missing := [body for body in bodies if body["id"] not in by_id]:
            reported = (entry["error"] for entry in entries if "error" in entry)
            error = next(reported, "no answer")
            raise ValueError(f"{missing[0]['method']}: {error}")
        in_order = [by_id[body["id"]] for body in bodies]
        for (method, _), entry in zip(requests, in_order, strict=True):
            if "result" in entry:
                answers.check(method, entry["result"])
        return in_order

    def _decoded(self, answer: bytes) -> Any:
        try:
            return strict_json.loads(answer, max_bytes=MAX_ANSWER_BYTES, max_text=MAX_ANSWER_BYTES)
        except JsonError as error:
            raise ValueError(f"the answer {error}") from error

    def _post(self, body: bytes) -> bytes:
        if self._pool is None:
            self._pool = urllib3.connection_from_url(self._url, timeout=self._timeout)
        response = self._pool.urlopen(
            "POST",
            self._path,
            body=body,
            headers=self._headers,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        # Stop reading an answer that is too large; this connection can't be used again.
        answer = response.read(MAX_ANSWER_BYTES + 1, decode_content=False)
        if len(answer) > MAX_ANSWER_BYTES:
            response.close()
        if response.status != 200:
            raise ValueError(f"HTTP status {response.status}")
        return answer


def _parsed(url: str) -> Url:
    invalid = ConfigError(f"RPC {url!r}: should be a URL such as http://127.0.0.1:8545")
    try:
        parsed = parse_url(url)
    except LocationParseError as error:
        raise invalid from error
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if not is_plain or parsed.scheme not in ("http", "https") or not parsed.host or parsed.port == 0:
        raise invalid
    return parsed
