"""An IPFS daemon in a private swarm as a store, through its API."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import urllib3

from fl_node.artifacts import cid
from fl_node.artifacts.ipfs_api import IpfsApi, Refused
from fl_node.artifacts.store import BLOCK_BYTES, Progress, receive, silent
from fl_node.errors import FileMissing, StoreError, StoreUnreachable

REQUEST_TIMEOUT = 30.0
MAX_BLOCK_BYTES = 2 * 1024**2
"""Maximum size of a block in the swarm."""
NAMED_FILES = "fl-node/"
"""The start of the names of pins of named files.

Not the daemon's file system (MFS): its garbage collector reads the root of MFS before it takes its lock, so it may
delete what is written to MFS at that moment, even the root, without which the daemon does not start again.
"""
COLLECT_TIMEOUT = 900.0
"""Seconds that a garbage collection may take."""
SMALL_REPOSITORY = 64 * 1024**2
"""Bytes up to which a repository is collected each time; the collector reads every block that is pinned."""
GROWTH = 1.25
"""A larger one is collected when it has grown by this factor since, so that the work stays in proportion."""
NOT_PINNED = "not pinned"
"""What the daemon's error says of a file without a pin."""


class IpfsStore:
    """An IPFS daemon as a store, through its API.

    Requests are not repeated while the daemon restarts; the roles try again.
    """

    def __init__(self, address: str, timeout: float = REQUEST_TIMEOUT) -> None:
        self.address = address
        self._timeout = timeout
        self._client: Any = None
        self._api: IpfsApi | None = None
        self._named: dict[str, set[str]] = {}
        self._collected = 0  # the size of the repository after the last collection, in bytes

    def add(self, path: Path) -> str:
        """Store and pin a file and return its CID.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error, or returns a wrong CID.
        """
        return self._add(path)

    def _add(self, path: Path, pin_name: str = "") -> str:
        """Store and pin a file in one call, which no garbage collection interrupts, and return its CID.

        Parameters
        ----------
        path
            The file.
        pin_name
            The name of the pin, if it has one.

        Raises
        ------
        StoreError
            The daemon returns a wrong CID.
        """
        # Set every option that the CID depends on, so that it does not change with Kubo's defaults.
        options: dict[str, str | int] = {
            "cid-version": 0,
            "raw-leaves": "false",
            "chunker": f"size-{cid.CHUNK_BYTES}",
            "max-file-links": cid.LINKS_PER_NODE,
            "hash": "sha2-256",
            "trickle": "false",
            "inline": "false",
            "pin": "true",
        }
        if pin_name:
            options["pin-name"] = pin_name
        with self.errors():
            name, right = self._connect_api().add(path, options)
        if name != right:
            raise StoreError(f"IPFS at {self.address} returned the CID {name} for {path.name}; should be {right}")
        return name

    def add_named(self, path: Path, name: str) -> str:
        """Store a file under a name in this daemon, in place of an earlier file of that name; return its CID.

        Parameters
        ----------
        path
            The file.
        name
            Its name, which its pin has after :data:`NAMED_FILES`.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error.
        """
        if name not in self._named:
            self._named[name] = {file_cid for file_cid, known in self._pins() if known == name}
        file_cid = self._add(path, f"{NAMED_FILES}{name}")
        self.remove(self._named[name] - {file_cid})
        self._named[name] = {file_cid}
        return file_cid

    def named_files(self) -> dict[str, str]:
        """Return the CIDs of the named files, by name.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error.
        """
        return {name: file_cid for file_cid, name in self._pins()}

    def _pins(self) -> list[tuple[str, str]]:
        """Return CIDs and names of all named files."""
        options: dict[str, str | int] = {"type": "recursive", "names": "true", "name": NAMED_FILES}
        with self.errors(), _readable():
            keys = self._connect_api().answer("pin/ls", options).get("Keys") or {}
            pins = [(str(file_cid), str(pin["Name"])) for file_cid, pin in keys.items()]
        return [(cid_, name.removeprefix(NAMED_FILES)) for cid_, name in pins if name.startswith(NAMED_FILES)]

    def remove(self, names: Iterable[str]) -> None:
        """Unpin files; their blocks stay until :meth:`collect`. A file without a pin is ignored.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error.
        """
        for name in names:
            with self.errors():
                self._unpin(name)

    def _unpin(self, name: str) -> None:
        try:
            self._connect_api().answer("pin/rm", {"arg": name})
        except Refused as error:
            if NOT_PINNED not in str(error):
                raise

    def collect(self) -> None:
        """Run the daemon's garbage collector, if the repository is small or has grown since the last time.

        The collector deletes all blocks without a pin. Meanwhile no file can be added; a call that adds and pins a
        file waits, and is never cut in two.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error.
        """
        if SMALL_REPOSITORY < self.size() < GROWTH * self._collected:
            return
        with self.errors():
            options: dict[str, str | int] = {"silent": "true"}
            with self._connect_api().call("repo/gc", options, COLLECT_TIMEOUT) as response:
                response.drain_conn()
        self._collected = self.size()

    def size(self) -> int:
        """Return the size of the daemon's repository in bytes, as it estimates it."""
        with self.errors(), _readable():
            return int(self._connect_api().answer("repo/stat", {"size-only": "true"})["RepoSize"])

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path``; give up after ``timeout`` seconds without progress.

        Parameters
        ----------
        file_cid, path, max_bytes, timeout, progress
            As for :meth:`fl_node.artifacts.store.Store.fetch`.

        Raises
        ------
        FileMissing
            Nothing arrived for ``timeout`` seconds; its ``received`` is the number of bytes that arrived before.
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The file has more than ``max_bytes``, does not match its CID, or the daemon reports an error.
        """
        received, of_length = 0, ""

        def count(received_bytes: int, length: int | None) -> None:
            nonlocal received, of_length
            received, of_length = received_bytes, f" of {length}" if length else ""
            progress(received_bytes, length)

        stream = _Stream(self, file_cid, max_bytes, timeout)
        try:
            # Close at once, so that the daemon stops requesting blocks of an abandoned file.
            with contextlib.closing(stream.blocks()) as blocks:
                receive(file_cid, path, max_bytes, blocks, lambda: stream.length, count)
        except FileMissing as error:
            if error.received or not received:
                raise
            raise FileMissing(f"{error}; received {received}{of_length} bytes", received) from error

    def bytes_from_peers(self, timeout: float) -> int | None:
        """Return how many bytes this daemon has ever received from peers, or None if it does not answer in time."""
        try:
            with self.errors():
                return int(self._connect_api().answer("bitswap/stat", {}, timeout)["DataReceived"])
        except (StoreError, LookupError, TypeError, ValueError):
            return None

    def open(self, file_cid: str, offset: int, length: int, timeout: float) -> urllib3.BaseHTTPResponse:
        """Request part of a file from the daemon, as a stream.

        Parameters
        ----------
        file_cid
            The file's CID.
        offset
            The first byte.
        length
            The number of bytes.
        timeout
            Maximum seconds for each read.
        """
        # When the client disconnects, the daemon stops searching the swarm.
        options: dict[str, str | int] = {"arg": file_cid, "offset": offset, "length": length}
        return self._connect_api().call("cat", options, timeout)

    def open_block(self, name: str, timeout: float) -> urllib3.BaseHTTPResponse:
        """Request one block from the daemon: a small file has no others, so nothing else need be looked for.

        Parameters
        ----------
        name
            The block's CID.
        timeout
            Maximum seconds for each read.
        """
        return self._connect_api().call("block/get", {"arg": name}, timeout)

    def fetch_block(self, name: str, timeout: float, *, offline: bool = False) -> None:
        """Have the daemon fetch one block into its repository, without a pin.

        Parameters
        ----------
        name
            The block's CID.
        timeout
            Seconds that the daemon searches the swarm.
        offline
            Look only in the repository.

        Raises
        ------
        StoreError
            The block did not arrive, or the daemon does not answer.
        """
        with self.errors(name):
            options = {"arg": name, "timeout": f"{timeout:g}s", "offline": str(offline).lower()}
            self._connect_api().answer("block/stat", options, timeout + 1)

    def peers(self) -> list[str]:
        """Return the multiaddresses of the connected peers."""
        with self.errors(), _readable():
            return [f"{p['Addr']}/p2p/{p['Peer']}" for p in self._connect().swarm.peers()["Peers"] or []]

    def connect_peer(self, address: str) -> None:
        """Connect to a peer at its multiaddress."""
        with self.errors():
            # Not swarm.connect(), which sends each letter of the address as a separate address (0.8.0a2).
            self._connect().swarm._client.request("/swarm/connect", (address,), decoder="json")

    def bootstrap(self) -> list[str]:
        """Return the bootstrap peers in the daemon's configuration."""
        with self.errors(), _readable():
            return [str(peer) for peer in self._connect().bootstrap.list()["Peers"] or []]

    def version(self) -> str:
        """Return the daemon's version."""
        with self.errors(), _readable():
            return str(self._connect().version()["Version"])

    def identity(self) -> str:
        """Return the daemon's peer id."""
        with self.errors(), _readable():
            return str(self._connect().id()["ID"])

    def _connect_api(self) -> IpfsApi:
        if self._api is None:
            self._api = IpfsApi(str(self._connect()._client._base_url), self._timeout)
        return self._api

    def _connect(self) -> Any:
        if self._client is None:
            import ipfshttpclient

            # For each connection it sets an argument that urllib3 has deprecated.
            warnings.filterwarnings("ignore", "The 'strict' parameter", FutureWarning, "urllib3")
            client = ipfshttpclient.Client(self.address, chunk_size=BLOCK_BYTES, timeout=self._timeout)
            # Connect to the daemon directly: ignore proxies and ~/.netrc.
            client._client._session_props["trust_env"] = False
            client._client.open_session()
            self._client = client
        return self._client

    @contextlib.contextmanager
    def errors(self, file_cid: str | None = None) -> Iterator[None]:
        """Translate errors of the client and the daemon into errors of this project.

        Parameters
        ----------
        file_cid
            The CID of the file that is requested, if any; then a time-out means that this file is missing.

        Raises
        ------
        FileMissing
            No peer provided ``file_cid`` in time.
        StoreUnreachable
            The daemon does not answer.
        StoreError
            The daemon reports another error.
        """
        import ipfshttpclient.exceptions as ipfs
        import requests

        try:
            yield
        except (ipfs.TimeoutError, requests.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
            if file_cid:
                raise FileMissing(f"no node in the swarm provided {file_cid} in time") from error
            raise StoreUnreachable(f"IPFS at {self.address} does not answer") from error
        except (ipfs.ConnectionError, requests.ConnectionError, *_AWAY) as error:
            raise StoreUnreachable(f"IPFS at {self.address} can't be reached; is the daemon running?") from error
        except (ipfs.ErrorResponse, Refused) as error:
            if file_cid and any(text in str(error) for text in ("deadline exceeded", "timed out", "canceled")):
                raise FileMissing(f"no node in the swarm provided {file_cid} in time") from error
            raise StoreError(f"IPFS at {self.address}: {error}") from error
        except (ipfs.Error, requests.RequestException, urllib3.exceptions.HTTPError, RecursionError) as error:
            raise StoreError(f"IPFS at {self.address}: {error}") from error


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Translate the errors of a program that reads an answer without what a daemon's answer has.

    Raises
    ------
    Refused
        The answer has another form.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Refused("its answer makes no sense; is this the API of an IPFS daemon?") from error


_AWAY = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProtocolError,
)
"""Errors of a daemon that has stopped."""


class _Stream:
    """The content of a file from a daemon, for as long as its blocks arrive.

    A daemon requests several blocks ahead. On a slow connection they arrive together and in any order, so the daemon
    may send nothing for a while although the file arrives. The stream then checks whether the daemon has received
    bytes from peers; if so, it requests the file again from the current offset.
    """

    SAMPLE_INTERVAL = 1.0
    """Seconds between two readings of the bytes received from peers."""

    def __init__(self, store: IpfsStore, file_cid: str, max_bytes: int, timeout: float) -> None:
        self.length: int | None = None
        self._store = store
        self._cid = file_cid
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._received = 0
        self._sampled_at = 0.0
        self._from_peers: int | None = None

    def blocks(self) -> Generator[bytes, None, None]:
        """Yield the file's bytes.

        Raises
        ------
        FileMissing
            No bytes arrived for the timeout.
        """
        # Most files arrive at once; only for the others ask the daemon what it receives from peers.
        if (rest := self._timeout - self.SAMPLE_INTERVAL) > 0:
            with contextlib.suppress(FileMissing):
                yield from self._translated(self.SAMPLE_INTERVAL)
                return
        timeout = rest if rest > 0 else self._timeout
        while True:
            self._sample()
            try:
                yield from self._translated(timeout)
                return
            except FileMissing:
                before, timeout = self._from_peers, self._timeout
                if before is None:
                    raise
                self._sample()
                if self._from_peers is None or self._from_peers <= before:
                    raise

    def _translated(self, timeout: float) -> Iterator[bytes]:
        with self._store.errors(self._cid):
            yield from self._remaining_blocks(timeout)

    def _remaining_blocks(self, timeout: float) -> Iterator[bytes]:
        if not self._received and self._max_bytes <= MAX_BLOCK_BYTES:
            with self._store.open_block(self._cid, timeout) as response:
                content = cid.content_of_leaf(response.read(MAX_BLOCK_BYTES))
                response.drain_conn()
            if content is not None:
                self.length = self._received = len(content)
                yield bytes(content)
                return
        # Request one byte more than allowed, to detect a file that is too large.
        remaining = self._max_bytes + 1 - self._received
        with self._store.open(self._cid, self._received, remaining, timeout) as response:
            # A later error in the daemon just ends its answer; this header tells the full length.
            if self.length is None and (length := response.headers.get("X-Content-Length")):
                self.length = int(length)
            while block := response.read(BLOCK_BYTES):
                self._received += len(block)
                if self._from_peers is not None and time.monotonic() - self._sampled_at >= self.SAMPLE_INTERVAL:
                    self._sample()
                yield block

    def _sample(self) -> None:
        self._from_peers, self._sampled_at = self._store.bytes_from_peers(self._timeout), time.monotonic()
