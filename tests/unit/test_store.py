"""The folder that names files by their content, and what a store's answer must be before it is believed."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.artifacts import cid
from fl_node.artifacts.address import connect
from fl_node.artifacts.folder_store import FolderStore
from fl_node.artifacts.ipfs_store import IpfsStore, _Stream
from fl_node.artifacts.store import TooLarge, WrongContent, receive
from fl_node.chain.client import Chain
from fl_node.errors import ChainUnreachable, ConfigError, FileMissing, StoreError

CONTENT = b"local weights\n" * 30_000
NAME = cid.of_bytes(CONTENT)


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(content=st.binary(max_size=1000))
def test_a_file_comes_out_as_it_went_in_under_its_cid(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    base = tmp_path_factory.getbasetemp()
    (base / "in").write_bytes(content)
    place = FolderStore(base / "round-trip")
    name = place.add(base / "in")
    assert name == cid.of_bytes(content)
    place.fetch(name, base / "out", len(content), 0.0)
    assert (base / "out").read_bytes() == content


def test_what_is_added_twice_is_there_once(tmp_path: Path, folder: FolderStore, source: Path) -> None:
    assert folder.add(source) == folder.add(source) == NAME
    assert files(tmp_path / "store") == [NAME]


def test_a_file_that_is_missing_is_missing_at_once_or_after_the_time_allowed(
    tmp_path: Path, folder: FolderStore
) -> None:
    for timeout in (0.0, 0.2):
        start = time.monotonic()
        with pytest.raises(FileMissing, match=NAME):
            folder.fetch(NAME, tmp_path / "out", 1000, timeout)
        assert time.monotonic() - start >= timeout
    assert not (tmp_path / "out").exists()


def test_a_file_that_comes_while_it_is_waited_for_is_fetched(
    tmp_path: Path, folder: FolderStore, source: Path
) -> None:
    threading.Timer(0.1, folder.add, [source]).start()
    folder.fetch(NAME, tmp_path / "out", len(CONTENT), 10.0)
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_a_file_that_is_too_large_is_refused_and_leaves_what_was_there(
    tmp_path: Path, folder: FolderStore, source: Path
) -> None:
    folder.add(source)
    (tmp_path / "out").write_text("before")
    before = files(tmp_path)
    with pytest.raises(TooLarge, match=f"{NAME} has more than the {len(CONTENT) - 1} bytes allowed"):
        folder.fetch(NAME, tmp_path / "out", len(CONTENT) - 1, 1.0)
    assert (tmp_path / "out").read_text() == "before"
    assert files(tmp_path) == before


def test_no_more_is_read_of_a_file_than_is_allowed(tmp_path: Path) -> None:
    read: list[int] = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            read.append(1)
            yield bytes(1000)

    with pytest.raises(TooLarge):
        receive(NAME, tmp_path / "out", 10_000, endless())
    assert len(read) == 11


def test_a_file_that_ends_too_early_is_missing_and_says_how_much_came(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="1 of 2 bytes") as caught:
        receive(NAME, tmp_path / "out", 10**6, iter([b"a"]), lambda: 2)
    assert caught.value.received == 1
    assert files(tmp_path) == []


class Daemon:
    """What a stream asks of a daemon: each answer is what it sends before it falls silent, and what came by then."""

    def __init__(self, *answers: tuple[bytes, int]) -> None:
        self._answers = iter(answers)
        self._arrived = 0
        self.offsets: list[int] = []
        self.timeouts: list[float] = []
        self.waited: list[float] = []

    def bytes_from_peers(self, timeout: float) -> int | None:
        self.timeouts.append(timeout)
        return self._arrived

    def errors(self, _file_cid: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def open(self, _file_cid: str, offset: int, length: int, timeout: float) -> Iterator[Any]:
        self.offsets.append(offset)
        self.waited.append(timeout)
        sent, self._arrived = next(self._answers)
        parts = [sent] if sent else []

        def read(_most: int) -> bytes:
            if not parts:
                if offset + len(sent) == len(CONTENT):
                    return b""
                raise FileMissing("silence")
            return parts.pop()

        headers = {"X-Content-Length": str(min(len(CONTENT) - offset, length))}
        yield SimpleNamespace(headers=headers, read=read)

    @contextlib.contextmanager
    def open_block(self, _name: str, _timeout: float) -> Iterator[Any]:
        yield SimpleNamespace(read=lambda _most: b"the root of a larger file", drain_conn=lambda: None)


def test_a_file_is_asked_for_again_from_where_it_was_while_anything_arrives() -> None:
    daemon = Daemon((b"", 10), (CONTENT[:2], 20), (b"", 30), (CONTENT[2:], 40))
    stream = _Stream(daemon, NAME, len(CONTENT), 1.0)  # type: ignore[arg-type]
    assert b"".join(stream.blocks()) == CONTENT
    assert daemon.offsets == [0, 0, 2, 2]
    assert stream.length == len(CONTENT)


def test_what_arrived_is_asked_only_of_a_file_that_is_not_here_at_once() -> None:
    daemon = Daemon((CONTENT, 10))
    assert b"".join(_Stream(daemon, NAME, len(CONTENT), 5.0).blocks()) == CONTENT  # type: ignore[arg-type]
    assert daemon.timeouts == []


def test_a_file_that_is_not_here_at_once_has_the_rest_of_its_time() -> None:
    daemon = Daemon((CONTENT[:2], 10), (CONTENT[2:], 20))
    assert b"".join(_Stream(daemon, NAME, len(CONTENT), 5.0).blocks()) == CONTENT  # type: ignore[arg-type]
    assert daemon.waited == [_Stream.SAMPLE_INTERVAL, 5.0 - _Stream.SAMPLE_INTERVAL]


def test_a_file_is_missing_when_nothing_arrives() -> None:
    daemon = Daemon((b"", 10), (b"", 10))
    with pytest.raises(FileMissing):
        list(_Stream(daemon, NAME, len(CONTENT), 1.0).blocks())  # type: ignore[arg-type]
    assert daemon.offsets == [0, 0]


def test_a_daemon_that_stands_still_is_asked_once_what_arrived_and_for_no_longer_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = Daemon((b"", 10))
    monkeypatch.setattr(daemon, "bytes_from_peers", daemon.timeouts.append)
    with pytest.raises(FileMissing):
        list(_Stream(daemon, NAME, len(CONTENT), 1.0).blocks())  # type: ignore[arg-type]
    assert daemon.timeouts == [1.0]


def test_progress_is_told_as_a_file_arrives_and_can_end_it(tmp_path: Path, folder: FolderStore, source: Path) -> None:
    folder.add(source)
    told: list[tuple[int, int | None]] = []
    folder.fetch(NAME, tmp_path / "out", len(CONTENT), 0.0, lambda *now: told.append(now))
    assert told[-1] == (len(CONTENT), len(CONTENT))

    def end(_received: int, _length: int | None) -> None:
        raise StoreError("enough")

    with pytest.raises(StoreError, match="enough"):
        folder.fetch(NAME, tmp_path / "other", len(CONTENT), 0.0, end)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-1], lambda c: c + b"\0", lambda c: b"L" + c[1:], lambda c: b""],
    ids=["shorter", "longer", "changed", "empty"],
)
def test_a_file_that_is_not_what_its_cid_says_is_refused(
    tmp_path: Path, folder: FolderStore, source: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder.add(source)
    (tmp_path / "store" / NAME).write_bytes(damage(CONTENT))
    before = files(tmp_path)
    with pytest.raises(WrongContent, match=NAME):
        folder.fetch(NAME, tmp_path / "out", 10**6, 1.0)
    assert files(tmp_path) == before


def test_a_damaged_copy_is_replaced_when_its_file_is_added_again(
    tmp_path: Path, folder: FolderStore, source: Path
) -> None:
    folder.add(source)
    (tmp_path / "store" / NAME).write_bytes(b"")
    folder.add(source)
    folder.fetch(NAME, tmp_path / "out", 10**6, 0.0)


def test_a_file_is_in_the_store_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: FolderStore, source: Path
) -> None:
    def half(original, target, *_):  # type: ignore[no-untyped-def]
        target.write(original.read(100))
        target.flush()
        assert not (tmp_path / "store" / NAME).exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", half)
    with pytest.raises(StoreError, match="No space left on device"):
        folder.add(source)
    assert files(tmp_path / "store") == []


UNREADABLE = Path("/proc/self/mem")
"""A file that can be opened; reading it from its start is an input/output error."""
needs_proc = pytest.mark.skipif(not UNREADABLE.exists(), reason="there is no /proc")


@needs_proc
def test_a_file_of_the_folder_that_can_not_be_read_is_an_error_of_that_file(
    tmp_path: Path, folder: FolderStore, source: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / NAME).symlink_to(UNREADABLE)
    with pytest.raises(StoreError, match=f"^store folder {tmp_path / 'store'}: {NAME}: Input/output error$"):
        folder.fetch(NAME, tmp_path / "out", 10**6, 0.0)
    assert not (tmp_path / "out").exists()
    folder.add(source)
    folder.fetch(NAME, tmp_path / "out", 10**6, 0.0)


@needs_proc
@pytest.mark.parametrize("when", ["at first", "while it is copied"])
def test_a_file_that_is_added_and_can_not_be_read_is_no_error_of_the_store(
    tmp_path: Path, folder: FolderStore, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    if when == "while it is copied":
        monkeypatch.setattr(cid, "of_file", lambda _: NAME)
    with pytest.raises(OSError, match="Input/output error") as caught:
        folder.add(UNREADABLE)
    assert caught.value.filename == str(UNREADABLE)
    assert not list(tmp_path.rglob("*.*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"store folder .*file/store"):
        FolderStore(tmp_path / "file" / "store").add(source)


def test_a_folder_in_the_place_of_a_file_is_no_file(tmp_path: Path, folder: FolderStore) -> None:
    (tmp_path / "store" / NAME).mkdir(parents=True)
    with pytest.raises(FileMissing):
        folder.fetch(NAME, tmp_path / "out", 1000, 0.0)


def test_readers_and_writers_side_by_side_see_whole_files(tmp_path: Path, folder: FolderStore, source: Path) -> None:
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                folder.add(source)
                folder.fetch(NAME, tmp_path / f"out-{number}-{turn}", len(CONTENT), 5.0)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert files(tmp_path / "store") == [NAME]


@pytest.mark.parametrize(
    "address", ["/ip4/127.0.0.1/tcp/5001", "/ip6/::1/tcp/5001", "/dns/node/tcp/5001", "/dns4/node/tcp/5001"]
)
def test_a_multiaddress_is_an_ipfs_daemon(address: str) -> None:
    connected = connect(address)
    assert isinstance(connected, IpfsStore)
    assert connected.address == address


@pytest.mark.parametrize("address", ["files", "./files", "file:files", "file:./files", "here/.."])
def test_a_folder_that_is_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("files", "here"):
        Path(name).mkdir()
    connected = connect(address)
    assert isinstance(connected, FolderStore)
    assert connected.address == str(Path(address.removeprefix("file:")))


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "file://localhost{}"])
def test_a_folder_that_was_asked_for_comes_with_its_first_file(tmp_path: Path, source: Path, form: str) -> None:
    folder = tmp_path / "new" / "files"
    connected = connect(form.format(folder))
    assert not folder.exists()
    assert connected.add(source) == NAME
    assert files(folder) == [NAME]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "  ",
        "nowhere",
        "nowhere/files",
        "~/files",
        "plain",
        "plain/files",
        "files\r",
        "files ",
        "a\0b",
        "x" * 5000,
        "file:",
        "file: ",
        "file:files\r",
        "file:plain",
        "file://host/files",
        "http://127.0.0.1:5001",
        " http://127.0.0.1:5001",
        "HTTP://127.0.0.1:5001/",
        "http:/127.0.0.1:5001",
        "https://node.example:5001/api/v0",
        "tcp://127.0.0.1:5001",
        "ipfs://QmPlan",
        "127.0.0.1",
        "127.0.0.1:5001",
        "localhost:5001",
        "node:5001/",
        "[::1]:5001",
        "ip4/127.0.0.1/tcp/5001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/tcp",
        "/ip4/127.0.0.1/tcp/",
        "/ip4/127.0.0.1/tcp/0",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/5001\r",
        "/ip4/127.0.0.1/tcp/5001 ",
        "/ip4/127.0.0.1/tcp/\u0665",
        "/ip4/127.0.0.1/udp/5001",
        "/ip4/127.0.0.1/tcp/5001/p2p/QmPeer",
        "/ip4/127.0.0.300/tcp/5001",
        "/ip6/127.0.0.1/tcp/5001",
        "/ip5/127.0.0.1/tcp/5001",
        "/IP4/127.0.0.1/tcp/5001",
        "/dns//tcp/5001",
        "/dns/a b/tcp/5001",
        "/dnsaddr/node/tcp/5001",
        "/tcp/5001",
        "/unix/",
    ],
    ids=ascii,
)
def test_what_is_neither_is_refused_with_the_right_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("")
    # What earlier mistakes left behind is no folder that was asked for.
    for name in ("http:/127.0.0.1:5001", "127.0.0.1:5001", "ip4/127.0.0.1/tcp/5001", "files"):
        Path(name).mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        connect(address)
    message = str(caught.value)
    assert message.startswith(f"store {address!r} ")
    assert "such as /ip4/127.0.0.1/tcp/5001, or an existing folder (file:FOLDER creates one)" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001"),
        ("https://node:5001/api/v0", "/dns/node/tcp/5001/https"),
        ("[::1]:5001", "/ip6/::1/tcp/5001"),
    ],
)
def test_a_url_is_told_as_the_multiaddress_that_it_means(address: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"(did you mean {meant}?)")):
        connect(address)
    assert isinstance(connect(meant), IpfsStore)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """A proxy that the environment names, and a password for 127.0.0.1 in a .netrc."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0)
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, url)
            monkeypatch.setenv(name.upper(), url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        yield proxy


def test_the_nodes_own_daemon_is_asked_directly_and_told_no_password(elsewhere: socket.socket) -> None:
    heard = []

    def answer() -> None:
        client, _ = api.accept()
        with client:
            heard.append(client.recv(65536))
            body = b'{"Version": "0.1"}'
            client.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            client.sendall(body)

    with socket.create_server(("127.0.0.1", 0)) as api:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        daemon = IpfsStore(f"/ip4/127.0.0.1/tcp/{api.getsockname()[1]}", 10.0)
        assert daemon.version() == "0.1"
        thread.join(10.0)
    assert heard[0].startswith(b"POST /api/v0/version")
    assert b"authorization" not in heard[0].lower()
    with pytest.raises(BlockingIOError):
        elsewhere.accept()


def test_the_nodes_own_rpc_is_asked_directly(elsewhere: socket.socket, free_port: Callable[[], int]) -> None:
    with pytest.raises(ChainUnreachable):
        Chain(f"http://127.0.0.1:{free_port()}").chain_id()
    with pytest.raises(BlockingIOError):
        elsewhere.accept()


def test_a_daemon_that_is_down_is_named(tmp_path: Path, source: Path, free_port: Callable[[], int]) -> None:
    address = f"/ip4/127.0.0.1/tcp/{free_port()}"
    daemon = connect(address)
    for attempt in (lambda: daemon.add(source), lambda: daemon.fetch(NAME, tmp_path / "out", 1000, 1.0)):
        with pytest.raises(StoreError, match=f"IPFS at {address} can't be reached") as caught:
            attempt()
        assert not isinstance(caught.value, FileMissing)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def odd_daemon() -> Iterator[Callable[[object], IpfsStore]]:
    """A daemon that answers every request with the same JSON value."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        body = b""

        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    def answering(value: object) -> IpfsStore:
        Handler.body = json.dumps(value).encode()
        return IpfsStore(f"/ip4/127.0.0.1/tcp/{server.server_port}", 10.0)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield answering
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("call", ["version", "identity", "peers", "bootstrap", "size"])
@pytest.mark.parametrize("value", [None, 5, "x", [], {}, [None], {"Peers": 5, "RepoSize": None}, {"Peers": [{}]}])
def test_an_answer_of_another_program_is_an_error_of_the_store(
    odd_daemon: Callable[[object], IpfsStore], call: str, value: Any
) -> None:
    if (call, value) == ("bootstrap", {"Peers": [{}]}):
        return  # whatever it is, it is listed
    with pytest.raises(StoreError, match="is this the API of an IPFS daemon"):
        getattr(odd_daemon(value), call)()


@pytest.mark.parametrize("value", [None, 5, [], {"Keys": 5}, {"Keys": {"Qm": None}}, {"Keys": {"Qm": {}}}])
def test_named_files_of_another_program_are_an_error_of_the_store(
    odd_daemon: Callable[[object], IpfsStore], value: Any
) -> None:
    with pytest.raises(StoreError, match="is this the API of an IPFS daemon"):
        odd_daemon(value).named_files()
