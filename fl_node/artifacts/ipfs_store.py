"""A store that is an IPFS daemon in a private swarm, reached through its API."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from fl_node.artifacts import cid
from fl_node.artifacts.store import BLOCK_BYTES, Progress, receive, silent
from fl_node.errors import FileMissing, StoreError, StoreUnreachable

REQUEST_TIMEOUT = 30.0
KEPT = "/fl-node/journals"
"""Where a daemon has the files that it keeps by a name."""


class IpfsStore:
    """An IPFS daemon, reached through its API.

    A daemon that restarts is waited for no longer than one request; the roles try again.
    """

    def __init__(self, address: str, timeout: float = REQUEST_TIMEOUT) -> None:
        self.address = address
        self._timeout = timeout
        self._client: Any = None

    def add(self, path: Path) -> str:
        """Store and pin a file and return its CID.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error, or gives the file another CID than it should have.
        """
        name = self._add(path)
        self._pin(name)
        return name

    def _add(self, path: Path) -> str:
        """Store a file without a pin and return its CID.

        Raises
        ------
        StoreError
            The daemon gives the file another CID than it should have.
        """
        # All that the CID depends on is said, so that a change of Kubo's defaults changes nothing.
        opts = {
            "cid-version": 0,
            "raw-leaves": False,
            "chunker": f"size-{cid.CHUNK_BYTES}",
            "max-file-links": cid.LINKS_PER_NODE,
            "hash": "sha2-256",
            "trickle": False,
            "inline": False,
            "pin": False,
        }
        with self.errors():
            added = self._connect().add(path, opts=opts)
        name = str(added["Hash"])
        if name != cid.of_file(path):
            raise StoreError(
                f"IPFS at {self.address} returned the CID {name} for {path.name}; should be {cid.of_file(path)}"
            )
        return name

    def keep(self, path: Path, name: str) -> str:
        """Store a file below a name of this daemon, in place of the file that had it; return the file's CID.

        Parameters
        ----------
        path
            The file.
        name
            Its name in :data:`KEPT`, a folder of the daemon's own file system (MFS), which keeps what is in it.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error.
        """
        added, target = self._add(path), f"{KEPT}/{name}"
        self._files("mkdir", KEPT, parents="true")
        with contextlib.suppress(StoreError):  # there need be none
            self._files("rm", target)
        self._files("cp", f"/ipfs/{added}", target)
        return added

    def kept(self) -> dict[str, str]:
        """Return the CIDs of the files that were kept by a name, by that name.

        Raises
        ------
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The daemon reports an error.
        """
        self._files("mkdir", KEPT, parents="true")
        with self.errors():
            answers = self._connect()._client.request("/files/ls", (KEPT,), opts={"long": "true"}, decoder="json")
        return {str(one["Name"]): str(one["Hash"]) for answer in answers for one in answer.get("Entries") or []}

    def _files(self, call: str, *arguments: str, **options: str) -> None:
        """Change the daemon's file system; its client takes an answer for an error."""
        with self.errors():
            self._connect()._client.request(f"/files/{call}", arguments, opts=options)

    def _pin(self, name: str) -> None:
        """Pin a file. The daemon reads all of it and reports progress, so a large file does not time out.

        Raises
        ------
        StoreError
            The daemon did not pin the file.
        """
        pinned: list[str] = []
        with (
            self.errors(),
            self._connect()._client.request(
                "/pin/add", (name,), opts={"progress": "true"}, stream=True, decoder="json"
            ) as answers,
        ):
            for answer in answers:
                pinned += answer.get("Pins") or []
        if name not in pinned:
            raise StoreError(f"IPFS at {self.address} did not pin {name}")

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path``; give up after ``timeout`` seconds without progress.

        Parameters
        ----------
        file_cid, path, max_bytes, timeout, progress
            As for :meth:`fl_node.artifacts.store.Store.fetch`.

        Raises
        ------
        FileMissing
            Nothing arrived for ``timeout`` seconds; ``received`` is how many bytes had arrived before.
        StoreUnreachable
            The IPFS daemon does not answer.
        StoreError
            The file has more than ``max_bytes``, does not match its CID, or the daemon reports an error.
        """
        received, whole = 0, ""

        def count(now: int, length: int | None) -> None:
            nonlocal received, whole
            received, whole = now, f" of {length}" if length else ""
            progress(now, length)

        stream = _Stream(self, file_cid, max_bytes, timeout)
        try:
            # Closed at once, so that the daemon asks for no more of a file that is given up.
            with contextlib.closing(stream.blocks()) as blocks:
                receive(file_cid, path, max_bytes, blocks, lambda: stream.length, count)
        except FileMissing as error:
            if error.received or not received:
                raise
            raise FileMissing(f"{error}; received {received}{whole} bytes", received) from error

    def arrived(self, timeout: float) -> int | None:
        """Return how many bytes this daemon has ever got from others, or None if it does not say so in time."""
        try:
            with self.errors():
                client = self._connect()._client
                (answer,) = client.request("/bitswap/stat", (), decoder="json", timeout=timeout)
                return int(answer["DataReceived"])
        except (StoreError, LookupError, TypeError, ValueError):
            return None

    def open(self, file_cid: str, offset: int, length: int, timeout: float) -> Any:
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
            Seconds that each read may take.
        """
        # The daemon ends its search in the swarm when the client has gone.
        opts = {"offset": offset, "length": length}
        return self._connect().cat(file_cid, opts=opts, timeout=timeout, stream=True)

    def peers(self) -> list[str]:
        """Return the multiaddresses of the peers connected now."""
        with self.errors():
            answer = self._connect().swarm.peers()
        return [f"{p['Addr']}/p2p/{p['Peer']}" for p in answer["Peers"] or []]

    def connect_peer(self, address: str) -> None:
        """Connect to a peer at its multiaddress."""
        with self.errors():
            # Not swarm.connect(), which sends every letter of the address as an address of its own (0.8.0a2).
            self._connect().swarm._client.request("/swarm/connect", (address,), decoder="json")

    def bootstrap(self) -> list[str]:
        """Return the bootstrap peers that the daemon is configured with."""
        with self.errors():
            return [str(peer) for peer in self._connect().bootstrap.list()["Peers"] or []]

    def version(self) -> str:
        """Return the daemon's version."""
        with self.errors():
            return str(self._connect().version()["Version"])

    def identity(self) -> str:
        """Return the daemon's peer id."""
        with self.errors():
            return str(self._connect().id()["ID"])

    def _connect(self) -> Any:
        if self._client is None:
            import ipfshttpclient

            # It sets an argument that urllib3 no longer needs, whenever it opens a connection.
            warnings.filterwarnings("ignore", "The 'strict' parameter", FutureWarning, "urllib3")
            client = ipfshttpclient.Client(self.address, chunk_size=BLOCK_BYTES, timeout=self._timeout)
            # The node's own daemon is reached directly: proxies and passwords (~/.netrc) are for the world outside.
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
        import urllib3

        try:
            yield
        except (ipfs.TimeoutError, requests.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
            if file_cid:
                raise FileMissing(f"no node in the swarm provided {file_cid} in time") from error
            raise StoreUnreachable(f"IPFS at {self.address} does not answer") from error
        except (ipfs.ConnectionError, requests.ConnectionError) as error:
            raise StoreUnreachable(f"IPFS at {self.address} can't be reached; is the daemon running?") from error
        except ipfs.ErrorResponse as error:
            if file_cid and any(text in str(error) for text in ("deadline exceeded", "timed out", "canceled")):
                raise FileMissing(f"no node in the swarm provided {file_cid} in time") from error
            raise StoreError(f"IPFS at {self.address}: {error}") from error
        except (ipfs.Error, requests.RequestException, urllib3.exceptions.HTTPError, RecursionError) as error:
            raise StoreError(f"IPFS at {self.address}: {error}") from error


class _Stream:
    """A file as a daemon sends it, for as long as anything arrives.

    A daemon asks for some blocks ahead, and on a slow line these come at once and in any order, so that for a while
    there is nothing to send of a file that does arrive. Then what came from others tells, and the file is asked for
    again from where it was; blocks that came in the meantime are there.
    """

    SAMPLE = 1.0
    """Seconds between two looks at what came from others."""

    def __init__(self, store: IpfsStore, file_cid: str, max_bytes: int, timeout: float) -> None:
        self.length: int | None = None
        self._store = store
        self._cid = file_cid
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._received = 0
        self._sampled = 0.0
        self._arrived: int | None = None

    def blocks(self) -> Generator[bytes, None, None]:
        """Yield the file's bytes.

        Raises
        ------
        FileMissing
            Nothing arrived for the time allowed.
        """
        while True:
            self._sample()
            try:
                with self._store.errors(self._cid):
                    yield from self._from_here()
                return
            except FileMissing:
                before = self._arrived
                if before is None:
                    raise
                self._sample()
                if self._arrived is None or self._arrived <= before:
                    raise

    def _from_here(self) -> Iterator[bytes]:
        # One byte more than allowed is asked for, to notice a file that is longer.
        left = self._max_bytes + 1 - self._received
        with self._store.open(self._cid, self._received, left, self._timeout) as stream:
            # The daemon sends 4 KB at a time; the response underneath puts them together much faster.
            response = stream._closables[0]
            # Once a part is sent, trouble in the daemon just ends its answer; its length is said first.
            if self.length is None and (length := response.headers.get("X-Content-Length")):
                self.length = int(length)
            while block := response.raw.read(BLOCK_BYTES):
                self._received += len(block)
                if time.monotonic() - self._sampled >= self.SAMPLE:
                    self._sample()
                yield block

    def _sample(self) -> None:
        self._arrived, self._sampled = self._store.arrived(self._timeout), time.monotonic()
