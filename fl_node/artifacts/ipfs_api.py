"""The few calls of a daemon's API that every round makes: over kept connections, and with nothing in between.

``ipfshttpclient`` does what is rare; a call of it costs more than a small file takes to arrive.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from fl_node.artifacts import cid
from fl_node.errors import JsonError, StoreError
from fl_node.runtime import strict_json

CONNECTIONS = 8
"""Connections that are kept; a header fetches several files at a time."""
MAX_ANSWER_BYTES = 1024 * 1024
SLOWEST_ADD = 5_000_000
"""Bytes per second at which a daemon stores a file at least; it answers when it has stored and pinned all of it."""


class Refused(StoreError):
    """The daemon reports an error."""


class IpfsApi:
    """A daemon's API.

    Parameters
    ----------
    url
        Its URL, such as ``http://127.0.0.1:5001/api/v0/``.
    timeout
        Seconds that the daemon has to connect, and for each part of an answer.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._prefix = urllib3.util.parse_url(url).path or "/"
        self._pool = urllib3.connection_from_url(url, maxsize=CONNECTIONS)

    def call(
        self,
        name: str,
        options: Mapping[str, str | int],
        timeout: float | None = None,
        body: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Call the API and return its answer, of which nothing is read yet.

        Parameters
        ----------
        name
            The call, such as ``cat``.
        options
            Its arguments and options.
        timeout
            Seconds for each part of the answer, if others than usual.
        body, headers
            What is sent.

        Raises
        ------
        Refused
            The daemon reports an error.
        urllib3.exceptions.HTTPError
            It does not answer, or not in time.
        """
        response = self._pool.urlopen(
            "POST",
            f"{self._prefix}{name}?{urlencode(options)}",
            body=body,
            headers=dict(headers or {}),
            timeout=urllib3.Timeout(connect=self._timeout, read=self._timeout if timeout is None else timeout),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        if response.status != 200:
            text = response.read(MAX_ANSWER_BYTES).decode(errors="replace")
            response.close()
            try:
                text = str(strict_json.loads(text)["Message"])
            except (JsonError, LookupError, TypeError):
                text = text.strip() or f"HTTP status {response.status}"
            raise Refused(text)
        return response

    def answer(self, name: str, options: Mapping[str, str | int], timeout: float | None = None) -> Any:
        """Call the API and return its answer, which is one JSON value.

        Parameters
        ----------
        name, options, timeout
            As for :meth:`call`.

        Raises
        ------
        Refused
            The daemon reports an error, or its answer makes no sense.
        """
        return _value(self.call(name, options, timeout))

    def add(self, path: Path, options: Mapping[str, str | int]) -> tuple[str, str]:
        """Send a file to the daemon, and return the CID that it gives the file, and the one it should give.

        Parameters
        ----------
        path
            The file. It is read once.
        options
            How the daemon stores it.

        Raises
        ------
        Refused
            The daemon reports an error, or its answer makes no sense.
        """
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        hasher = cid.Hasher()

        def body() -> Iterator[bytes]:
            yield head
            with path.open("rb") as file:
                while chunk := file.read(cid.CHUNK_BYTES):
                    hasher.update(chunk)
                    yield chunk
            yield tail

        size = path.stat().st_size
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        timeout = self._timeout + size / SLOWEST_ADD
        value = _value(self.call("add", {**options, "quieter": "true"}, timeout, body(), headers))
        try:
            return str(value["Hash"]), hasher.cid()
        except (LookupError, TypeError) as error:
            raise Refused(f"the answer {value!r} names no CID") from error


def _value(response: urllib3.BaseHTTPResponse) -> Any:
    with response:
        content = response.read(MAX_ANSWER_BYTES)
        response.drain_conn()
    try:
        return strict_json.loads(content)
    except JsonError as error:
        raise Refused(f"the answer is no JSON: {content[:60]!r}") from error
