"""Three real Kubo nodes in a private swarm, through the store that the roles use."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import requests

from fl_node.artifacts import cid
from fl_node.artifacts.ipfs_api import IpfsApi, Refused
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.artifacts.prefetch import Prefetch
from fl_node.artifacts.store import TooLarge
from fl_node.chain.abi import SET_GLOBAL_WEIGHT
from fl_node.chain.client import Chain
from fl_node.chain.contract import Contract
from fl_node.errors import FileMissing, FLNodeError, StoreError
from fl_node.nodes.backends import ProcessBackend
from fl_node.nodes.ipfs import new_swarm_key
from fl_node.runtime.waiting import wait_until
from tests.helpers.chain import OPEN
from tests.helpers.swarm import HANG, SlowLine, daemon

NODES = ("header", "learner-1", "learner-2")
CHUNK = cid.CHUNK_BYTES
MEBIBYTE = 1024**2

MakeFile = Callable[[int], Path]

# Of a client that is older than its urllib3; see IpfsStore.
pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """A new file of so many random bytes, that no node has seen."""

    def make(size: int) -> Path:
        path = tmp_path / f"file-{random.randbytes(4).hex()}"
        path.write_bytes(random.randbytes(size))
        return path

    return make


@pytest.fixture(scope="module")
def stores(backend: ProcessBackend) -> dict[str, IpfsStore]:
    return {node: IpfsStore(ipfs.api) for node, ipfs in backend.ipfs.items()}


@contextlib.contextmanager
def away(backend: ProcessBackend, name: str, how: signal.Signals = signal.SIGKILL) -> Iterator[None]:
    """End a daemon, and start it again at the end."""
    process = backend.children[name].process
    process.send_signal(how)
    process.wait(HANG)
    try:
        yield
    finally:
        backend.restart(name)


def is_up(store: IpfsStore) -> bool:
    with contextlib.suppress(StoreError):
        return bool(store.version())
    return False


def fetch(store: IpfsStore, name: str, path: Path, max_bytes: int = 100 * MEBIBYTE) -> bytes:
    """Fetch a file as a role does: again, while the swarm finds together after a restart."""

    def fetched() -> bool:
        with contextlib.suppress(StoreError):
            store.fetch(name, path, max_bytes, 5.0)
            return True
        return False

    assert wait_until(fetched, HANG), f"{store.address} did not get {name}"
    return path.read_bytes()


# Names


@pytest.mark.parametrize(
    "size",
    [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 174 * CHUNK + 1],
    ids=["empty", "1", "chunk-1", "chunk", "chunk+1", "174-chunks+1"],
)
def test_kubo_names_a_file_as_this_package_does_and_gives_it_to_every_other_node(
    stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path, size: int
) -> None:
    path = make_file(size)
    added = stores["learner-1"].add(path)
    assert added == cid.of_file(path)
    for node in ("header", "learner-2"):
        stores[node].fetch(added, tmp_path / node, size, HANG)
        assert (tmp_path / node).read_bytes() == path.read_bytes()


def test_a_file_is_added_on_each_node_and_fetched_on_each_other(
    stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    for source in NODES:
        path = make_file(MEBIBYTE)
        added = stores[source].add(path)
        for node in NODES:
            stores[node].fetch(added, tmp_path / node, MEBIBYTE, HANG)
            assert (tmp_path / node).read_bytes() == path.read_bytes()


def test_a_file_that_is_added_again_has_the_same_name(stores: dict[str, IpfsStore], make_file: MakeFile) -> None:
    path = make_file(CHUNK)
    assert stores["header"].add(path) == stores["header"].add(path) == stores["learner-1"].add(path)


# Bounds


def test_no_more_is_fetched_than_is_allowed(
    stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    size = 3 * CHUNK
    added = stores["learner-1"].add(make_file(size))
    target = tmp_path / "fetched"
    with pytest.raises(TooLarge, match=f"more than the {size - 1} bytes allowed"):
        stores["header"].fetch(added, target, size - 1, HANG)
    assert not list(tmp_path.glob("*fetched*"))
    stores["header"].fetch(added, target, size, HANG)
    assert target.stat().st_size == size


def test_what_nobody_has_is_missing_within_the_time_allowed(stores: dict[str, IpfsStore], tmp_path: Path) -> None:
    name = cid.of_bytes(random.randbytes(32))
    with pytest.raises(FileMissing, match=name) as caught:
        stores["header"].fetch(name, tmp_path / "fetched", MEBIBYTE, 1.0)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_has_yet_comes_as_soon_as_somebody_adds_it(
    stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(CHUNK)
    adding = threading.Timer(1.0, stores["learner-2"].add, [path])
    adding.start()
    try:
        assert fetch(stores["header"], cid.of_file(path), tmp_path / "fetched") == path.read_bytes()
    finally:
        adding.join()


# Trouble


def test_a_daemon_that_was_killed_has_its_files_when_it_is_started_again(
    backend: ProcessBackend, stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(2 * CHUNK)
    added = stores["learner-1"].add(path)
    with away(backend, "learner-1 ipfs"), pytest.raises(FileMissing):
        stores["header"].fetch(added, tmp_path / "fetched", CHUNK, 1.0)
    # First from the node itself, then through the swarm, by a store that had a connection to the old daemon.
    assert fetch(stores["learner-1"], added, tmp_path / "own") == path.read_bytes()
    assert fetch(stores["header"], added, tmp_path / "fetched") == path.read_bytes()


def test_what_was_fetched_once_is_given_on_when_its_first_owner_is_away(
    backend: ProcessBackend, stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(2 * CHUNK)
    added = stores["learner-1"].add(path)
    stores["header"].fetch(added, tmp_path / "header", 2 * CHUNK, HANG)
    with away(backend, "learner-1 ipfs", signal.SIGTERM):
        assert fetch(stores["learner-2"], added, tmp_path / "learner") == path.read_bytes()


def test_a_daemon_that_is_down_is_an_error_of_one_line_that_says_where(
    backend: ProcessBackend, stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(10)
    name = cid.of_file(path)
    store = stores["learner-2"]
    fresh = IpfsStore(store.address)
    calls: list[Callable[[], object]] = [
        lambda: store.add(path),
        lambda: fresh.add(path),
        lambda: store.fetch(name, tmp_path / "fetched", 10, 1.0),
        lambda: fresh.fetch(name, tmp_path / "fetched", 10, 1.0),
        store.peers,
        store.version,
        store.bootstrap,
        fresh.identity,
    ]
    with away(backend, "learner-2 ipfs"):
        for call in calls:
            with pytest.raises(StoreError) as caught:
                call()
            assert str(caught.value) == f"IPFS at {store.address} can't be reached; is the daemon running?"
    assert wait_until(lambda: is_up(store) and is_up(fresh), HANG)
    assert store.add(path) == fresh.add(path) == name


def test_a_daemon_that_ends_in_the_middle_of_a_file_leaves_no_part_of_it(
    backend: ProcessBackend, stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(64 * MEBIBYTE)
    name = stores["header"].add(path)
    child = backend.children["header ipfs"]
    folder = tmp_path / "fetched"
    folder.mkdir()

    def end_it(_received: int, _length: int | None) -> None:
        child.process.kill()
        child.process.wait(HANG)

    try:
        with pytest.raises(StoreError) as caught:
            stores["header"].fetch(name, folder / "file", path.stat().st_size, HANG, end_it)
    finally:
        backend.restart("header ipfs")
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []
    assert fetch(stores["header"], name, folder / "file") == path.read_bytes()


def test_a_file_of_which_the_end_does_not_come_is_missing_and_not_another_file(
    backend: ProcessBackend, stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    # The daemon has sent the beginning with a code of 200 when its time is up; its answer just ends then.
    store = stores["header"]
    path = make_file(8 * CHUNK)
    name = store.add(path)
    _, _, host, _, port = backend.ipfs["header"].api.split("/")
    api = f"http://{host}:{port}/api/v0"
    leaves = requests.post(f"{api}/ls", params={"arg": name}, timeout=HANG).json()["Objects"][0]["Links"]
    for call, arguments in (("pin/rm", {"arg": name}), ("block/rm", {"arg": leaves[6]["Hash"], "force": "true"})):
        requests.post(f"{api}/{call}", params=arguments, timeout=HANG).raise_for_status()
    with pytest.raises(FileMissing, match=f"{name} .* of {8 * CHUNK} bytes"):
        store.fetch(name, tmp_path / "got", 100 * MEBIBYTE, 1.0)
    assert not (tmp_path / "got").exists()
    # Whoever has it gives what is missing, and then it comes whole.
    stores["learner-1"].add(path)
    assert fetch(store, name, tmp_path / "got") == path.read_bytes()


def test_a_daemon_that_stands_still_is_not_waited_for_longer_than_allowed(
    backend: ProcessBackend, stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(10)
    process = backend.children["learner-2 ipfs"].process
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreError) as caught:
            stores["learner-2"].fetch(cid.of_file(path), tmp_path / "fetched", 10, 1.0)
        assert "\n" not in str(caught.value)
    finally:
        process.send_signal(signal.SIGCONT)
    assert fetch(stores["learner-2"], stores["header"].add(path), tmp_path / "fetched") == path.read_bytes()


@contextlib.contextmanager
def newcomer(folder: Path, swarm_key: str) -> Iterator[IpfsStore]:
    """A daemon of the swarm that knows no peer."""
    with daemon(folder, swarm_key) as (node, child):
        store = IpfsStore(node.api)
        assert wait_until(lambda: is_up(store), HANG), child.tail()
        yield store


@pytest.mark.nightly
def test_a_file_may_come_slowly_but_not_stand_still(
    backend: ProcessBackend, make_file: MakeFile, tmp_path: Path
) -> None:
    # Its first ten blocks come together and in any order: for longer than the time allowed there is nothing to read.
    path, patience = make_file(14 * MEBIBYTE), 8.0
    owner = IpfsStore(backend.ipfs["learner-1"].api)
    name = owner.add(path)
    key = (backend.ipfs["learner-1"].folder / "swarm.key").read_text()
    with (
        SlowLine(backend.ipfs["learner-1"].swarm_port, MEBIBYTE) as line,
        newcomer(tmp_path / "newcomer", key) as store,
    ):
        store.connect_peer(f"/ip4/127.0.0.1/tcp/{line.port}/p2p/{backend.ipfs['learner-1'].peer_id}")
        came: list[int] = []
        store.fetch(name, tmp_path / "fetched", 100 * MEBIBYTE, patience, lambda now, _length: came.append(now))
        assert (tmp_path / "fetched").read_bytes() == path.read_bytes()
        assert came == sorted(came)
        assert came[-1] == 14 * MEBIBYTE
        other = make_file(2 * MEBIBYTE)
        line.cut = True
        with pytest.raises(FileMissing):
            store.fetch(owner.add(other), tmp_path / "other", 100 * MEBIBYTE, 1.0)
        line.cut = False
        assert fetch(store, owner.add(other), tmp_path / "other") == other.read_bytes()


# Ports


@pytest.mark.parametrize("swarm_key", [None, new_swarm_key()], ids=["no-key", "another-key"])
def test_a_daemon_without_the_swarm_key_gets_nothing(
    backend: ProcessBackend, stores: dict[str, IpfsStore], make_file: MakeFile, tmp_path: Path, swarm_key: str | None
) -> None:
    path = make_file(CHUNK)
    added = stores["header"].add(path)
    with daemon(tmp_path / "stranger", swarm_key, list(backend.ipfs.values())) as (_, child):
        lines = "Daemon is ready"
        assert wait_until(lambda: lines in child.log.read_text() or not child.running, HANG)
        assert child.running, child.tail()
        address = next(line.split()[-1] for line in child.log.read_text().splitlines() if "RPC API" in line)
        store = IpfsStore(address)
        for ipfs in backend.ipfs.values():
            with pytest.raises(FLNodeError, match=r"failed to negotiate security protocol|connect .* failure"):
                store.connect_peer(ipfs.address)
        with pytest.raises(FileMissing):
            store.fetch(added, tmp_path / "fetched", CHUNK, 2.0)
        assert store.peers() == []
        peers = {node: {peer.rpartition("/")[2] for peer in stores[node].peers()} for node in NODES}
        assert all(peers[node] <= {ipfs.peer_id for ipfs in backend.ipfs.values()} for node in NODES)


def test_a_daemon_refuses_to_start_without_a_swarm_key(backend: ProcessBackend, tmp_path: Path) -> None:
    environment = backend.ipfs["header"].environment
    del environment["IPFS_PATH"]
    with daemon(tmp_path / "stranger", None, list(backend.ipfs.values()), environment) as (_, child):
        assert child.process.wait(HANG) != 0
        assert "private network" in child.log.read_text()


def test_no_daemon_has_a_bootstrap_peer_or_a_peer_outside(
    backend: ProcessBackend, stores: dict[str, IpfsStore]
) -> None:
    known = {ipfs.peer_id for ipfs in backend.ipfs.values()}
    for node in NODES:
        assert stores[node].bootstrap() == []
        own = backend.ipfs[node].peer_id
        assert stores[node].identity() == own
        wanted = known - {own}
        assert wait_until(lambda: {p.rpartition("/")[2] for p in stores[node].peers()} == wanted, HANG)  # noqa: B023


def test_daemons_listen_on_loopback_alone(backend: ProcessBackend) -> None:
    for node in NODES:
        process = psutil.Process(backend.children[f"{node} ipfs"].process.pid)
        listening = [c.laddr for c in process.net_connections("inet") if c.status in (psutil.CONN_LISTEN, "NONE")]
        assert {backend.ipfs[node].api_port, backend.ipfs[node].swarm_port} == {address.port for address in listening}
        assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_file_that_is_kept_by_name_takes_the_place_of_the_one_before_and_others_can_fetch_it(
    stores: Mapping[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    first, second = make_file(1000), make_file(CHUNK + 1)
    stores["header"].add_named(first, "journal")
    name = stores["header"].add_named(second, "journal")
    assert stores["header"].named_files() == {"journal": name}
    assert stores["learner-1"].named_files() == {}
    stores["learner-1"].fetch(name, tmp_path / "got", 2 * CHUNK, HANG)
    assert (tmp_path / "got").read_bytes() == second.read_bytes()


def test_a_published_file_is_fetched_before_a_role_asks_for_it(
    stores: dict[str, IpfsStore], make_file: MakeFile, chain: Callable[[str], Chain]
) -> None:
    header, learner = chain("header"), chain("learner-1")
    address = str(header.deploy(cid.of_bytes(b"plan"), OPEN).contract)
    listening = Contract(learner, address)
    listening.listen(Prefetch(stores["learner-1"]), [SET_GLOBAL_WEIGHT])
    assert listening.chain.news is not None
    assert listening.chain.news.wait_until_alive(HANG)
    added = stores["header"].add(make_file(900_000))

    def is_local() -> bool:
        with contextlib.suppress(StoreError):
            stores["learner-1"].fetch_block(added, 1.0, offline=True)
            return True
        return False

    assert not is_local()
    header.contract(address).set_global_weight(added, header.nonce())
    assert wait_until(is_local, HANG)
    listening.chain.news.close()


def test_of_a_named_file_only_the_newest_copy_survives_a_collection(
    stores: Mapping[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    store = stores["learner-2"]
    old = store.add_named(make_file(1000), "journal-of-learner-2")
    again = IpfsStore(store.address)  # a role that was restarted
    new = again.add_named(make_file(2 * CHUNK), "journal-of-learner-2")
    again.collect()
    assert store.named_files()["journal-of-learner-2"] == new
    assert not has_block(store, old)
    store.fetch(new, tmp_path / "got", 3 * CHUNK, HANG)


def test_a_removed_file_is_gone_after_a_collection_and_all_others_stay(
    stores: Mapping[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    store = stores["learner-2"]
    small, large, other = (store.add(make_file(size)) for size in (1000, 3 * CHUNK, 2 * CHUNK + 1))
    store.remove([small, large, small])  # twice, as after a kill
    IpfsStore(store.address).collect()
    assert not has_block(store, small)
    assert not has_block(store, large)
    store.fetch(other, tmp_path / "other", 3 * CHUNK, HANG)


def test_files_that_are_added_while_a_collection_runs_are_kept(
    stores: Mapping[str, IpfsStore], make_file: MakeFile, tmp_path: Path
) -> None:
    store = stores["learner-2"]
    paths = [make_file(CHUNK + number) for number in range(40)]
    collecting = threading.Event()

    def collect() -> None:
        while not collecting.is_set():
            IpfsStore(store.address).collect()

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        names = [store.add(path) for path in paths]
    finally:
        collecting.set()
        thread.join()
    IpfsStore(store.address).collect()
    assert all(has_block(store, name) for name in names)
    for name in names:
        store.fetch(name, tmp_path / name, 2 * CHUNK, HANG)


def has_block(store: IpfsStore, name: str) -> bool:
    """Return whether a daemon has a file's first block itself."""
    api = IpfsApi(f"http://127.0.0.1:{store.address.rpartition('/')[2]}/api/v0/", HANG)
    try:
        api.answer("block/stat", {"arg": name, "offline": "true"})
    except Refused:
        return False
    return True
