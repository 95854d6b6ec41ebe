"""Files that a pending transaction publishes are fetched before its block."""

from __future__ import annotations

import threading

from fl_node.artifacts import cid
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.artifacts.prefetch import MAX_WAITING, WORKERS, Prefetch
from fl_node.chain.abi import encoder, publication
from fl_node.errors import FileMissing

HANG = 600.0
NAMES = [cid.of_bytes(bytes([number])) for number in range(100)]


class Daemon(IpfsStore):
    """A daemon that is asked for blocks; all of them are missing, and it answers when the test wants."""

    def __init__(self) -> None:
        super().__init__("/ip4/127.0.0.1/tcp/1")
        self.asked: list[str] = []
        self.was_asked = threading.Semaphore(0)
        self.may_answer = threading.Event()

    def fetch_block(self, name: str, timeout: float) -> None:
        self.asked.append(name)
        self.was_asked.release()
        assert self.may_answer.wait(HANG)
        raise FileMissing(name)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.was_asked.acquire(timeout=HANG)


def test_a_file_is_fetched_once_also_after_others_were_missing() -> None:
    daemon = Daemon()
    daemon.may_answer.set()
    prefetch = Prefetch(daemon)
    for name in (*NAMES[:10], *NAMES[:10], NAMES[10]):
        prefetch(name)
    daemon.wait_for(11)
    assert sorted(daemon.asked) == sorted(NAMES[:11])


def test_too_many_files_are_ignored_until_some_have_arrived() -> None:
    daemon = Daemon()
    prefetch = Prefetch(daemon)
    for name in NAMES[:WORKERS]:
        prefetch(name)
    daemon.wait_for(WORKERS)
    for name in NAMES[WORKERS:]:
        prefetch(name)
    daemon.may_answer.set()
    daemon.wait_for(MAX_WAITING)
    assert sorted(daemon.asked) == sorted(NAMES[: WORKERS + MAX_WAITING])
    prefetch(NAMES[-1])
    daemon.wait_for(1)


def test_the_published_file_of_each_call_is_known() -> None:
    digest = cid.to_digest(NAMES[0])
    for name, types, arguments in (
        ("setLocalWeight", "uint256,bytes32", [1, digest]),
        ("setLocalWeight", "uint256,bytes32,uint256,bytes32,bool", [1, digest, 3, cid.to_digest(NAMES[1]), True]),
        ("setGlobalWeight", "bytes32", [digest]),
        ("openMasks", "uint256,bytes32", [2, digest]),
    ):
        call = encoder().get_function_by_signature(f"{name}({types})")(*arguments)._encode_transaction_data()
        assert publication(bytes.fromhex(call[2:])) == (name, NAMES[0])


def test_other_calls_publish_no_file() -> None:
    call = encoder().functions.attestGlobalWeight(1, cid.to_digest(NAMES[0]))._encode_transaction_data()
    assert publication(bytes.fromhex(call[2:])) is None
    assert publication(b"") is None
    call = encoder().functions.setGlobalWeight(cid.to_digest(NAMES[0]))._encode_transaction_data()
    assert publication(bytes.fromhex(call[2:])[:-1]) is None
