"""Where model files are: a private IPFS swarm, or a folder that names files as IPFS would.

Both are reached through :class:`Store`; the code of the roles does not know which it has. What comes out of a
store is checked against its CID here, so that neither an IPFS daemon nor a folder has to be believed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit

from fl_node.artifacts import cid
from fl_node.errors import ConfigError, FileMissing, StoreError, StoreUnreachable
from fl_node.runtime import files

BLOCK_BYTES = 256 * 1024
REQUEST_TIMEOUT = 30.0

Progress = Callable[[int, int | None], None]
"""Called as a file arrives, with the bytes that are there and those it has, if that is known; may raise to end it."""


def silent(_received: int, _length: int | None) -> None:
    """Tell nobody how far a file is."""


class Store(Protocol):
    """A place for files that are named by their content."""

    address: str

    def add(self, path: Path) -> str:
        """Store a file and return its CID."""

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path``, whole and checked, or raise.

        It may take as long as it needs, as long as something arrives. What has arrived stays on this node, so a fetch
        that failed goes on there when it is called again.

        Raises
        ------
        FileMissing
            For ``timeout`` seconds nothing arrived.
        StoreError
            The file has more than ``max_bytes``, or is not what its CID says.
        """


class TooLarge(StoreError):
    """A file that has more bytes than it may have; the rest of it is not read."""

    code = "too_large"


class WrongContent(StoreError):
    """A file that is not what its CID says."""

    code = "malformed"


def connect(address: str) -> Store:
    """Return the store at an address: a folder, or the multiaddress of an IPFS API.

    ``/ip4/127.0.0.1/tcp/5001`` is the latter. A folder must exist, unless ``file:`` stands before it: then the first
    file that is added makes it.

    Raises
    ------
    ConfigError
        The address is neither, such as a URL, ``host:port``, or the path of a folder that is not there.
    """
    if address.startswith("file:"):
        return FolderStore(Path(_explicit(address)))
    if address.startswith(_MULTIADDRESS):
        _check_multiaddress(address)
        return IpfsStore(address)
    # These may even exist as folders: other versions of this program made them.
    if _URL.match(address) or _HOST_AND_PORT.match(address) or f"/{address}".startswith(_MULTIADDRESS):
        raise _no_store(address, f"is neither a folder nor a multiaddress{_meant(address)}")
    if not os.path.isdir(address):  # noqa: PTH112 - Path raises where a name is too long
        there = os.path.lexists(address) if "\0" not in address else False
        raise _no_store(address, "is no folder" if there else "is not there")
    return FolderStore(Path(address))


_MULTIADDRESS = ("/ip4/", "/ip6/", "/dns/", "/dns4/", "/dns6/", "/unix/")
_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/")
_HOST_AND_PORT = re.compile(r"\s*(\[[^/]*\]|[^/:]*):[0-9]*\s*/?\s*$")


def _no_store(address: str, problem: str) -> ConfigError:
    return ConfigError(
        f"store {address!r} {problem}; it should be the multiaddress of an IPFS API, such as "
        "/ip4/127.0.0.1/tcp/5001, or an existing folder (file:FOLDER makes a new one)"
    )


def _explicit(address: str) -> str:
    path = address.removeprefix("file:")
    if path.startswith("//"):
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise _no_store(address, f"names the host {parts.netloc!r}")
        path = unquote(parts.path)
    if not path.strip() or not path.isprintable() or path != path.strip():
        raise _no_store(address, "names no folder")
    if os.path.lexists(path) and not os.path.isdir(path):  # noqa: PTH112 - as above
        raise _no_store(address, "is no folder")
    return path


def _check_multiaddress(address: str) -> None:
    from ipfshttpclient.exceptions import AddressError
    from ipfshttpclient.http_common import multiaddr_to_url_data

    try:
        url, *_ = multiaddr_to_url_data(address, "")
    except (AddressError, ValueError) as error:
        raise _no_store(address, "is malformed") from error
    # The parser takes spaces around a number, other scripts' digits, and port 0.
    plain = address.isprintable() and address == address.strip()
    if not address.startswith("/unix/"):
        plain = plain and address.isascii() and " " not in address and urlsplit(url).port != 0
    if not plain:
        raise _no_store(address, "is malformed")


def _meant(address: str) -> str:
    """Return the multiaddress that a URL or host and port stands for, as a question; nothing if it is not clear."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if (
        not host
        or not port
        or parts.scheme not in ("", "http", "https")
        or not re.fullmatch(r"[A-Za-z0-9.:-]+", host)
    ):
        return ""
    kind = "ip6" if ":" in host else "ip4" if re.fullmatch(r"[0-9.]+", host) else "dns"
    return f" (is it /{kind}/{host}/tcp/{port}{'/https' if parts.scheme == 'https' else ''}?)"


class FolderStore:
    """A folder in which each file bears its CID as its name."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder)
        self._folder = folder

    def add(self, path: Path) -> str:
        """Store a file and return its CID."""
        name = cid.of_file(path)
        target = self._folder / name
        # A copy may be damaged since the machine lost power; then this one replaces it.
        if not target.is_file() or cid.of_file(target) != name:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with _replacing(target) as file, path.open("rb") as source:
                    shutil.copyfileobj(source, file)
            except OSError as error:
                raise StoreError(f"store folder {self._folder}: {error.strerror or error}") from error
        return name

    def fetch(self, file_cid: str, path: Path, max_bytes: int, timeout: float, progress: Progress = silent) -> None:
        """Write the file with this CID to ``path``, waiting for it up to ``timeout`` seconds."""
        source = self._folder / file_cid
        deadline = time.monotonic() + timeout
        while not source.is_file():
            if time.monotonic() >= deadline:
                raise FileMissing(f"{file_cid} is not in the store folder {self._folder}")
            time.sleep(min(0.05, timeout))
        try:
            file = source.open("rb")
        except OSError as error:  # this one file's trouble, unlike that of the folder it is written to
            raise StoreError(f"store folder {self._folder}: {file_cid}: {error.strerror or error}") from error
        with file:
            length = source.stat().st_size
            _receive(file_cid, path, max_bytes, iter(lambda: file.read(BLOCK_BYTES), b""), lambda: length, progress)


class IpfsStore:
    """An IPFS daemon, reached through its API.

    A daemon that restarts is waited for no longer than one request; the roles try again.
    """

    def __init__(self, address: str, timeout: float = REQUEST_TIMEOUT) -> None:
        self.address = address
        self._timeout = timeout
        self._client: Any = None

    def add(self, path: Path) -> str:
        """Store and pin a file and return its CID."""
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
            raise StoreError(f"IPFS at {self.address} gave {path.name} the CID {name}, not {cid.of_file(path)}")
        self._pin(name)
        return name

    def _pin(self, name: str) -> None:
        """Pin a file. The daemon reads all of it, and says how far it is, so a large file is no time-out."""
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
        """Write the file with this CID to ``path``; give up when the swarm gives nothing for ``timeout`` seconds."""
        received, whole = 0, ""

        def count(now: int, length: int | None) -> None:
            nonlocal received, whole
            received, whole = now, f" of {length}" if length else ""
            progress(now, length)

        stream = _Stream(self, file_cid, max_bytes, timeout)
        try:
            # Closed at once, so that the daemon asks for no more of a file that is given up.
            with contextlib.closing(stream.blocks()) as blocks:
                _receive(file_cid, path, max_bytes, blocks, lambda: stream.length, count)
        except FileMissing as error:
            if error.received or not received:
                raise
            raise FileMissing(f"{error}; {received}{whole} bytes of it had arrived", received) from error

    def arrived(self) -> int | None:
        """Return how many bytes this daemon has ever got from others, or None if it does not say."""
        try:
            with self.errors():
                (answer,) = self._connect()._client.request("/bitswap/stat", (), decoder="json")
                return int(answer["DataReceived"])
        except (StoreError, LookupError, TypeError, ValueError):
            return None

    def open(self, file_cid: str, offset: int, length: int, timeout: float) -> Any:
        """Ask for a file from an offset on; ``timeout`` is for each read."""
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
        """Raise errors of client and daemon as those of this module."""
        import ipfshttpclient.exceptions as ipfs
        import requests
        import urllib3

        try:
            yield
        except (ipfs.TimeoutError, requests.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
            if file_cid:
                raise FileMissing(f"nobody in the swarm gave {file_cid} in time") from error
            raise StoreUnreachable(f"IPFS at {self.address} does not answer") from error
        except (ipfs.ConnectionError, requests.ConnectionError) as error:
            raise StoreUnreachable(f"IPFS at {self.address} can't be reached; is the daemon running?") from error
        except ipfs.ErrorResponse as error:
            if file_cid and any(text in str(error) for text in ("deadline exceeded", "timed out", "canceled")):
                raise FileMissing(f"nobody in the swarm gave {file_cid} in time") from error
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
        """Return the file's bytes, or raise a FileMissing when nothing arrived for the time allowed."""
        while True:
            self._sample()
            try:
                with self._store.errors(self._cid):
                    yield from self._from_here()
                return
            except FileMissing:
                before = self._arrived
                self._sample()
                if before is None or self._arrived is None or self._arrived <= before:
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
        self._arrived, self._sampled = self._store.arrived(), time.monotonic()


def _receive(
    file_cid: str,
    path: Path,
    max_bytes: int,
    blocks: Iterable[bytes],
    length: Callable[[], int | None] = lambda: None,
    progress: Progress = silent,
) -> None:
    received = 0
    with _replacing(path) as file:
        for block in blocks:
            received += len(block)
            if received > max_bytes:
                raise TooLarge(f"{file_cid} has more than the {max_bytes} bytes allowed")
            file.write(block)
            progress(received, length())
        file.flush()
        if (whole := length()) is not None and received < whole:
            raise FileMissing(f"{file_cid} came in part only: {received} of {whole} bytes", received)
        if (found := cid.of_file(Path(file.name))) != file_cid:
            raise WrongContent(f"what the store gave for {file_cid} is {found}")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that becomes ``target`` when all went well and vanishes when not."""
    # Not by tempfile, whose files nobody else may read: a run's are for everybody.
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with files.named(target.parent), path.open("xb") as file:
        try:
            yield file
            file.flush()
            path.replace(target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
