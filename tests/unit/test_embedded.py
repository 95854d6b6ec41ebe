"""The chain in one Python process: its blocks outlive it, and no request brings it down."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_node.chain.client import Chain
from fl_node.nodes import CHAIN_ID, dev_chain
from fl_node.nodes.dev_chain import BALANCE, EmbeddedChain, RpcError
from tests.helpers.accounts import ALICE, BOB, FUNDED, POOR
from tests.helpers.waiting import eventually

ACCOUNTS = [funded.address for funded in FUNDED]
REVERT = "0x60006000fd"
"""Initialisation code that reverts."""


class Clock:
    """What the chain takes for the time of day."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dev_chain, "time", SimpleNamespace(time=clock.time))
    return clock


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    return tmp_path / "chain" / "blocks"


@pytest.fixture
def chain(blocks: Path) -> EmbeddedChain:
    return EmbeddedChain(blocks, ACCOUNTS)


def sign(nonce: int, *, sender: LocalAccount = ALICE, **changes: Any) -> str:
    """Return a signed transaction of 1 wei to Bob, or what the changes say."""
    transaction = {
        "type": 2,
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "gas": 100_000,
        "maxPriorityFeePerGas": 1,
        "maxFeePerGas": 10**11,
        "value": 1,
        "data": "0x",
        "to": BOB.address,
    }
    content = {name: value for name, value in (transaction | changes).items() if value is not None}
    return "0x" + bytes(sender.sign_transaction(content).raw_transaction).hex()


def head(chain: EmbeddedChain) -> Any:
    return chain.request("eth_getBlockByNumber", ["latest", False])


def error(chain: EmbeddedChain, method: str, *params: Any) -> dict[str, Any]:
    with pytest.raises(RpcError) as caught:
        chain.request(method, params)
    return caught.value.body


def test_each_transaction_gets_a_block_at_once(chain: EmbeddedChain) -> None:
    names = [chain.request("eth_sendRawTransaction", [sign(nonce)]) for nonce in range(3)]
    assert chain.request("eth_blockNumber", []) == "0x3"
    for number, name in enumerate(names, 1):
        receipt = chain.request("eth_getTransactionReceipt", [name])
        assert (receipt["blockNumber"], receipt["status"], receipt["gasUsed"]) == (hex(number), "0x1", hex(21_000))
        block = chain.request("eth_getBlockByNumber", [hex(number), False])
        assert block["transactions"] == [name]
        assert block["parentHash"] == chain.request("eth_getBlockByNumber", [hex(number - 1), False])["hash"]
    count = "eth_getBlockTransactionCountByNumber"
    assert [chain.request(count, [at]) for at in ("0x0", "0x3", "pending", "0x4")] == ["0x0", "0x1", "0x0", None]
    assert chain.request("eth_getTransactionCount", [ALICE.address, "latest"]) == "0x3"
    assert chain.request("eth_getBalance", [BOB.address]) == hex(BALANCE + 3)


def test_the_genesis_depends_on_the_accounts_alone(tmp_path: Path, clock: Clock) -> None:
    def genesis(name: str, accounts: list[str]) -> str:
        return str(EmbeddedChain(tmp_path / name, accounts).request("eth_getBlockByNumber", ["earliest"])["hash"])

    first = genesis("one", ACCOUNTS)
    clock.now += 1000
    assert genesis("two", ACCOUNTS) == first
    assert genesis("three", ACCOUNTS[:-1]) != first


@pytest.mark.parametrize("gap", [0, 1, 7, 3600])
def test_a_chain_that_is_killed_goes_on_with_the_same_blocks(
    blocks: Path, chain: EmbeddedChain, clock: Clock, gap: int
) -> None:
    names = []
    for nonce in range(4):
        names.append(chain.request("eth_sendRawTransaction", [sign(nonce)]))
        clock.now += gap
    names.append(chain.request("eth_sendRawTransaction", [sign(4, to=None, data=REVERT)]))
    # A killed process closes nothing.
    again = EmbeddedChain(blocks, ACCOUNTS)
    assert head(again) == head(chain)
    for name in names:
        receipt = chain.request("eth_getTransactionReceipt", [name])
        assert again.request("eth_getTransactionReceipt", [name]) == receipt
    assert [receipt["status"] for receipt in (again.request("eth_getTransactionReceipt", [n]) for n in names)] == [
        *["0x1"] * 4,
        "0x0",
    ]
    again.request("eth_sendRawTransaction", [sign(5)])
    assert head(EmbeddedChain(blocks, ACCOUNTS))["number"] == "0x6"


def test_time_on_the_chain_never_goes_back(blocks: Path, chain: EmbeddedChain, clock: Clock) -> None:
    times = []
    for nonce, step in enumerate([0, 0, -500, 0, 100]):
        clock.now += step
        chain.request("eth_sendRawTransaction", [sign(nonce)])
        times.append(int(head(chain)["timestamp"], 16))
    assert times == sorted(set(times))
    assert head(EmbeddedChain(blocks, ACCOUNTS)) == head(chain)


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_block_that_was_being_written_when_the_chain_was_killed_is_forgotten(
    blocks: Path, chain: EmbeddedChain, kept: int
) -> None:
    chain.request("eth_sendRawTransaction", [sign(0)])
    before, whole = head(chain), blocks.read_text()
    chain.request("eth_sendRawTransaction", [sign(1)])
    last = blocks.read_text().removeprefix(whole)
    blocks.write_text(whole + last[:kept])
    again = EmbeddedChain(blocks, ACCOUNTS)
    assert head(again) == before
    again.request("eth_sendRawTransaction", [sign(1, value=5)])
    assert head(EmbeddedChain(blocks, ACCOUNTS)) == head(again)


def test_whole_blocks_are_not_written_again_at_a_start(blocks: Path, chain: EmbeddedChain) -> None:
    # A chain that is killed while it starts would lose them.
    chain.request("eth_sendRawTransaction", [sign(0)])
    before = blocks.stat()
    EmbeddedChain(blocks, ACCOUNTS)
    after = blocks.stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (after.st_ino, after.st_mtime_ns, after.st_size)


@pytest.mark.parametrize("accounts", [ACCOUNTS[:-1], [*ACCOUNTS, POOR.address]], ids=["fewer", "more"])
def test_blocks_of_other_accounts_are_refused_and_kept(
    blocks: Path, chain: EmbeddedChain, accounts: list[str]
) -> None:
    chain.request("eth_sendRawTransaction", [sign(0)])
    content = blocks.read_bytes()
    with pytest.raises(SystemExit, match="line 1: not the next block of this chain"):
        EmbeddedChain(blocks, accounts)
    assert blocks.read_bytes() == content


@pytest.mark.parametrize(
    "line", [b"junk", b"0xzz", b"0x", b"0xc0", b"", b"0x" + b"00" * 50, b"\xff\xfe", b"\0" * 99, b"a\rb"]
)
def test_a_damaged_line_is_named(blocks: Path, chain: EmbeddedChain, line: bytes) -> None:
    chain.request("eth_sendRawTransaction", [sign(0)])
    content = blocks.read_bytes() + line + b"\n"
    blocks.write_bytes(content)
    with pytest.raises(SystemExit, match="line 2: not the next block of this chain"):
        EmbeddedChain(blocks, ACCOUNTS)
    assert blocks.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_blocks_that_are_no_file_are_named(tmp_path: Path, kind: str) -> None:
    place = tmp_path if kind == "folder" else Path("/dev/zero")
    with pytest.raises(SystemExit, match=f"^{place}: it exists and is not a regular file"):
        dev_chain.main(["--blocks", str(place), "--accounts", ",".join(ACCOUNTS)])


def test_a_block_that_is_missing_in_between_is_noticed(blocks: Path, chain: EmbeddedChain) -> None:
    for nonce in range(3):
        chain.request("eth_sendRawTransaction", [sign(nonce)])
    lines = blocks.read_text().splitlines(keepends=True)
    blocks.write_text(lines[0] + lines[2])
    with pytest.raises(SystemExit, match="line 2: not the next block"):
        EmbeddedChain(blocks, ACCOUNTS)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (sign(0, sender=POOR), "cannot afford"),
        (sign(1), "nonce too high: next nonce 0, tx nonce 1"),
        (sign(0, value=BALANCE), "not have enough balance"),
        (sign(0, gas=20_000), "gas"),
        (sign(0, gas=dev_chain.GAS_LIMIT + 1), "gas"),
        (sign(0, maxFeePerGas=1), "fee"),
        (sign(0, chainId=1), "invalid chain id for signer: have 1 want 20240191"),
    ],
    ids=["poor", "nonce too high", "too much", "too little gas", "too much gas", "too low a fee", "another chain"],
)
def test_a_transaction_that_can_be_in_no_block_is_refused_and_changes_nothing(
    blocks: Path, chain: EmbeddedChain, raw: str, message: str
) -> None:
    before = head(chain)
    assert message in error(chain, "eth_sendRawTransaction", raw)["message"]
    assert head(chain) == before
    chain.request("eth_sendRawTransaction", [sign(0)])
    assert head(EmbeddedChain(blocks, ACCOUNTS)) == head(chain)


def test_a_transaction_that_was_sent_before_is_known_and_one_with_its_number_refused(chain: EmbeddedChain) -> None:
    chain.request("eth_sendRawTransaction", [sign(0)])
    assert error(chain, "eth_sendRawTransaction", sign(0)) == {"code": -32000, "message": "already known"}
    assert error(chain, "eth_sendRawTransaction", sign(0, value=2)) == {
        "code": -32000,
        "message": "nonce too low: next nonce 1, tx nonce 0",
    }
    assert chain.request("eth_blockNumber", []) == "0x1"


def test_a_call_that_reverts_says_with_what(chain: EmbeddedChain) -> None:
    # Code that reverts with its first word of calldata: CALLDATALOAD(0), MSTORE(0), REVERT(0, 32).
    code = "6000356000526020" + "6000fd"
    size = len(code) // 2
    deploy = f"0x60{size:02x}600c60003960{size:02x}6000f3" + code
    name = chain.request("eth_sendRawTransaction", [sign(0, to=None, data=deploy, value=0)])
    address = chain.request("eth_getTransactionReceipt", [name])["contractAddress"]
    assert chain.request("eth_getCode", [address, "latest"]) == "0x" + code
    word = "0x" + "ab" * 32
    answer = error(chain, "eth_call", {"to": address, "data": word}, "latest")
    assert answer == {"code": 3, "message": "execution reverted", "data": word}


def test_a_call_is_answered_for_its_block_and_its_sender_whatever_was_asked_before(
    chain: EmbeddedChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Code that returns NUMBER + CALLER.
    code = "43330160005260206000f3"
    size = len(code) // 2
    deploy = f"0x60{size:02x}600c60003960{size:02x}6000f3" + code
    name = chain.request("eth_sendRawTransaction", [sign(0, to=None, data=deploy, value=0)])
    address = chain.request("eth_getTransactionReceipt", [name])["contractAddress"]

    def ask(sender: int, at: str = "latest", **more: str) -> int:
        request = {"to": address, "from": f"0x{sender:040x}"} | more
        return int(chain.request("eth_call", [request, at]), 16)

    number = ask(0)
    assert [ask(100), ask(0), ask(100)] == [number + 100, number, number + 100]
    chain.request("eth_sendRawTransaction", [sign(1)])
    both = [number + 1, number + 101, number, number + 100]
    assert [ask(0), ask(100), ask(0, "0x1"), ask(100, "0x1")] == both
    monkeypatch.setattr(chain, "_execute", None)  # from here on only answers that are kept
    assert [ask(0), ask(100), ask(0, "0x1"), ask(100, "0x1")] == both
    for question in ({"sender": 1}, {"sender": 0, "data": "0x01"}, {"sender": 0, "value": "0x1"}):
        with pytest.raises(RpcError):
            ask(**question)  # type: ignore[arg-type]


def test_a_call_changes_nothing_for_the_next_one_however_it_ends(chain: EmbeddedChain) -> None:
    # Code that adds 1 to its storage and returns the sum and the gas that is left.
    code = "60005460010180600055" + "6000525a602052" + "60406000f3"
    size = len(code) // 2
    deploy = f"0x60{size:02x}600c60003960{size:02x}6000f3" + code
    name = chain.request("eth_sendRawTransaction", [sign(0, to=None, data=deploy, value=0)])
    address = chain.request("eth_getTransactionReceipt", [name])["contractAddress"]
    # Other data in each call, so that no answer is one that was kept.
    requests = [{"to": address, "from": ALICE.address, "data": f"0x{number:02x}"} for number in range(1, 10)]

    def ask() -> str:
        return str(chain.request("eth_call", [requests.pop(), "latest"]))

    first = ask()
    assert int(first[:66], 16) == 1
    assert ask() == first
    assert "gas" in error(chain, "eth_call", requests.pop() | {"gas": hex(23_000)})["message"].lower()
    assert ask() == first
    with dev_chain._budget.of(0.0):
        assert error(chain, "eth_call", requests.pop())["code"] == -32002
    assert ask() == first
    assert chain.request("eth_getTransactionCount", [ALICE.address]) == "0x1"
    chain.request("eth_sendRawTransaction", [sign(1, to=address, value=0)])
    assert int(ask()[:66], 16) == 2
    assert chain.request("eth_getTransactionCount", [ALICE.address]) == "0x2"


def test_a_chain_keeps_a_bounded_number_of_small_answers(
    chain: EmbeddedChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev_chain, "MAX_KEPT", 3)
    kept = []
    for number in range(5):
        chain.request("eth_call", [{"to": BOB.address, "data": f"0x{number:04x}"}])
        kept.append(len(chain._answers))
    assert kept == [1, 2, 3, 1, 2]
    chain.request("eth_call", [{"to": BOB.address, "data": "0x" + "00" * 5000}])
    assert len(chain._answers) == 2


def test_an_unknown_method_is_refused(chain: EmbeddedChain) -> None:
    assert error(chain, "eth_coinbase") == {"code": -32601, "message": "the method eth_coinbase does not exist"}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("eth_sendRawTransaction", ["0x"]),
        ("eth_sendRawTransaction", ["0x00"]),
        ("eth_sendRawTransaction", ["0x02c0"]),
        ("eth_sendRawTransaction", ["0x03" + "00" * 10]),
        ("eth_sendRawTransaction", ["0xzz"]),
        ("eth_sendRawTransaction", [None]),
        ("eth_sendRawTransaction", []),
        ("eth_getBalance", ["0x12"]),
        ("eth_getBalance", ["0x" + "00" * 20, "0x99"]),
        ("eth_getCode", ["0x12", "latest"]),
        ("eth_getTransactionCount", [{}]),
        ("eth_getTransactionReceipt", [[]]),
        ("eth_getBlockByNumber", ["first"]),
        ("eth_getLogs", [5]),
        ("eth_getLogs", [{"fromBlock": "now"}]),
        ("eth_call", [{}]),
        ("eth_call", [{"to": "0x12"}]),
        ("eth_call", [{"to": "0x" + "00" * 20, "from": "0x12"}]),
        ("eth_call", [{"to": "0x" + "00" * 20, "data": "0x1"}]),
        ("eth_call", [{"to": "0x" + "00" * 20, "gas": "0x1"}]),
        ("eth_call", [{"to": "0x" + "00" * 20, "value": "0x1"}]),
        ("eth_call", [{"to": "0x" + "00" * 20}, "0x99"]),
        ("eth_call", [{"to": "0x" + "00" * 20}, {"blockHash": "0x" + "00" * 32}]),
        ("eth_call", [{"to": "0x" + "00" * 20}, {}]),
        ("eth_getTransactionCount", ["0x" + "00" * 20, {"blockHash": "0x12"}]),
        ("eth_chainId", {"a": 1}),
        ("eth_chainId", 5),
    ],
)
def test_wrong_arguments_are_an_answer_with_an_error(chain: EmbeddedChain, method: str, params: Any) -> None:
    with pytest.raises(RpcError) as caught:
        chain.request(method, params)
    assert caught.value.body["code"] < 0
    assert caught.value.body["message"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0x" + "00" * 20, "0x12", "latest"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["to", "from", "data", "gas"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_is_asked_the_answer_is_a_result_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    chain = _shared(tmp_path_factory)
    method = data.draw(st.sampled_from(sorted(chain._methods)))
    try:
        json.dumps(chain.request(method, data.draw(st.lists(JSON, max_size=3) | JSON)))
    except RpcError as answer:
        assert answer.body["message"]


@settings(max_examples=200)
@given(data=st.data())
def test_a_transaction_with_changed_bytes_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    chain = _shared(tmp_path_factory)
    raw = bytearray.fromhex(sign(0)[2:])
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    error(chain, "eth_sendRawTransaction", "0x" + raw.hex())


_chains: list[EmbeddedChain] = []


def _shared(factory: pytest.TempPathFactory) -> EmbeddedChain:
    if not _chains:
        _chains.append(EmbeddedChain(factory.mktemp("shared") / "blocks", ACCOUNTS))
    return _chains[0]


def post(rpc: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(rpc.removeprefix("http://"), timeout=600)
    try:
        connection.request("POST", "/", body, {"Content-Type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if response.status == 200 else content
    finally:
        connection.close()


GOOD = {"jsonrpc": "2.0", "id": 7, "method": "eth_chainId", "params": []}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b"5",
        b"null",
        b'"eth_chainId"',
        b"{}",
        b'{"id": 1}',
        b'{"method": 5}',
        b'{"method": "eth_call"}',
        b"[" * 70_000,
        b'{"id":' * 70_000,
        b'{"id":' + b"9" * 5000 + b',"method":"eth_chainId"}',
        b'{"id":1,"method":"eth_chainId","method":"eth_chainId"}',
        b'{"id":1,"method":"\\ud800"}',
        json.dumps([5] * 1001).encode(),
        json.dumps(GOOD | {"method": "eth_sendRawTransaction", "params": ["0x" + "c1" * 100_000]}).encode(),
        json.dumps(GOOD | {"method": "eth_getCode", "params": ["0x" + "01" * 20, "0x" + "f" * 100_000]}).encode(),
    ]
    + [json.dumps(GOOD | {"params": params}).encode() for params in (None, 5, {"a": 1}, "x")],
)
def test_a_request_that_is_junk_is_answered_with_an_error(rpc: str, body: bytes) -> None:
    status, answer = post(rpc, body)
    assert status == 200
    assert answer["error"]["code"] < 0
    assert post(rpc, json.dumps(GOOD).encode())[1]["result"] == hex(CHAIN_ID)


def test_a_batch_is_answered_one_by_one_in_order(rpc: str) -> None:
    requests = [GOOD, {"id": 8, "method": "unknown"}, 5, GOOD | {"id": 9, "method": "net_version"}]
    _, answers = post(rpc, json.dumps(requests).encode())
    assert [answer["id"] for answer in answers] == [7, 8, None, 9]
    assert [sorted(set(answer) & {"result", "error"}) for answer in answers] == [
        ["result"],
        ["error"],
        ["error"],
        ["result"],
    ]


@pytest.mark.parametrize("length", ["0", "-1", "many", "²", str(dev_chain.MAX_REQUEST_BYTES + 1), "9" * 5000])
def test_a_request_of_a_wrong_length_is_refused_and_the_chain_goes_on(rpc: str, length: str) -> None:
    status, _ = post(rpc, b"", {"Content-Length": length})
    assert status in {400, 413}
    assert post(rpc, json.dumps(GOOD).encode())[0] == 200


# What is no program on this machine, or asks for too much


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8545"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1:"},
        {"Host": "10.0.0.1:8545"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8080"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
def test_a_web_page_gets_no_answer(rpc: str, headers: dict[str, str]) -> None:
    status, _ = post(rpc, json.dumps(GOOD).encode(), headers)
    assert status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9000", "[::1]:8545", "[::1]"])
def test_loopback_may_be_called_by_each_of_its_names_and_any_forwarded_port(rpc: str, host: str) -> None:
    assert post(rpc, json.dumps(GOOD).encode(), {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "", "json"]
)
def test_what_a_page_may_send_without_asking_is_no_request(rpc: str, kind: str) -> None:
    assert post(rpc, json.dumps(GOOD).encode(), {"Content-Type": kind})[0] == 415


def test_the_type_may_name_a_character_set(rpc: str) -> None:
    assert post(rpc, json.dumps(GOOD).encode(), {"Content-Type": "application/json; charset=utf-8"})[0] == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "X"])
def test_nothing_but_post_is_answered_and_no_page_is_allowed_in(rpc: str, method: str) -> None:
    answer = raw(rpc, f"{method} / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 405 ", b"HTTP/1.1 501 "))
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize(
    "head",
    [
        "POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2",
        "POST / HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 2",
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nContent-Type: application/json\r\n"
        "Content-Length: 2",
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Type: text/plain\r\n"
        "Content-Length: 2",
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        "Content-Length: 3",
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json",
    ],
    ids=["no host", "HTTP/1.0", "two hosts", "two types", "two lengths", "chunked", "no length"],
)
def test_a_head_that_can_be_understood_in_two_ways_is_refused(rpc: str, head: str) -> None:
    answer = raw(rpc, head.encode() + b"\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1 ") == 1  # the rest is no second request


def raw(rpc: str, content: bytes) -> bytes:
    """Return what comes back for bytes, until the chain ends the connection."""
    host, port = rpc.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10.0) as client:
        client.sendall(content)
        return b"".join(iter(lambda: client.recv(65536), b""))


LOOP = "5b600056"
"""A loop without end: JUMPDEST, PUSH1 0, JUMP."""
MODEXP = (5, "0x" + "".join(f"{size:064x}" for size in (4096, 4096, 4096)) + "ff" * 12288)
PAIRING = (8, "0x" + "00" * 192 * 40)


@pytest.fixture
def cheap(chain: EmbeddedChain) -> tuple[EmbeddedChain, str]:
    """A chain with a contract that loops without end, and its address."""
    size = len(LOOP) // 2
    deploy = f"0x60{size:02x}600c60003960{size:02x}6000f3{LOOP}"
    name = chain.request("eth_sendRawTransaction", [sign(0, to=None, data=deploy, value=0)])
    return chain, chain.request("eth_getTransactionReceipt", [name])["contractAddress"]


@pytest.mark.parametrize(("number", "data"), [MODEXP, PAIRING, (6, "0x"), (7, "0x"), (9, "0x")])
def test_arithmetic_whose_gas_says_little_about_its_time_is_not_done(
    chain: EmbeddedChain, number: int, data: str
) -> None:
    request = {"to": f"0x{number:040x}", "data": data, "gas": hex(2**63)}
    assert "no precompiled contracts" in error(chain, "eth_call", request)["message"]
    name = chain.request("eth_sendRawTransaction", [sign(0, to=request["to"], data=data[:200], value=0)])
    assert chain.request("eth_getTransactionReceipt", [name])["status"] == "0x0"


@pytest.mark.parametrize("gas", [{}, {"gas": hex(2**64)}, {"gas": "0x" + "f" * 1000}])
def test_a_call_without_end_runs_out_of_gas(cheap: tuple[EmbeddedChain, str], gas: dict[str, str]) -> None:
    chain, address = cheap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dev_chain, "MAX_GAS", 200_000)
        assert "gas" in error(chain, "eth_call", {"to": address} | gas)["message"].lower()


def test_a_transaction_with_more_gas_than_any_of_fl_node_needs_is_refused(chain: EmbeddedChain) -> None:
    message = error(chain, "eth_sendRawTransaction", sign(0, gas=dev_chain.MAX_GAS + 1))["message"]
    assert "exceeds the gas limit" in message


def test_what_takes_too_much_processor_time_is_stopped_and_changes_nothing(
    cheap: tuple[EmbeddedChain, str], blocks: Path
) -> None:
    chain, address = cheap
    before = head(chain)
    with dev_chain._budget.of(0.0):
        assert error(chain, "eth_call", {"to": address})["code"] == -32002
        assert error(chain, "eth_sendRawTransaction", sign(1, to=address, value=0))["code"] == -32002
    assert head(chain) == before
    chain.request("eth_sendRawTransaction", [sign(1)])
    assert head(EmbeddedChain(blocks, ACCOUNTS)) == head(chain)


def test_a_batch_is_bounded_in_number_and_in_what_it_answers(rpc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, answer = post(rpc, json.dumps([GOOD] * (dev_chain.MAX_BATCH + 1)).encode())
    assert answer["error"]["message"].startswith("batch too large")
    monkeypatch.setattr(dev_chain, "MAX_ANSWER_BYTES", 200)
    _, answers = post(rpc, json.dumps([GOOD] * 10).encode())
    assert "result" in answers[0]
    assert answers[-1]["error"]["code"] == -32003


def test_a_request_whose_time_is_over_answers_the_rest_of_its_batch_with_an_error(
    rpc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev_chain, "MAX_SECONDS", 0.0)
    _, answers = post(rpc, json.dumps([GOOD] * 3).encode())
    assert [answer["error"]["code"] for answer in answers] == [-32002] * 3


@pytest.mark.parametrize("name", [[], {}, "x" * 1000, 1.5])
def test_an_id_that_is_none_is_not_repeated(rpc: str, name: object) -> None:
    assert post(rpc, json.dumps(GOOD | {"id": name}).encode())[1]["id"] is None


UNFINISHED = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"


@pytest.mark.parametrize("content", [b"", b"POST / HT", UNFINISHED], ids=["nothing", "a head", "a body"])
def test_unfinished_requests_keep_nobody_out(
    chain: EmbeddedChain, serve: Any, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(dev_chain, "CONNECTIONS", 30)
    url = serve(chain)
    before = threading.active_count()
    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(2 * dev_chain.CONNECTIONS):
            client = stack.enter_context(socket.create_connection((host, int(port)), 10.0))
            client.sendall(content)
        for _ in range(3):
            assert post(url, json.dumps(GOOD).encode())[0] == 200
        # The thread of a connection that is closed ends a moment later.
        eventually(lambda: threading.active_count() < before + 2 * dev_chain.CONNECTIONS, 60)


@pytest.mark.parametrize("content", [b"P", UNFINISHED], ids=["a head", "a body"])
def test_a_request_that_does_not_come_in_time_ends_its_connection(
    rpc: str, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(dev_chain, "PATIENCE", 0.05)
    assert b"HTTP/1.1 200" not in raw(rpc, content)


def test_a_client_that_goes_away_is_no_error(rpc: str, capfd: pytest.CaptureFixture[str]) -> None:
    host, port = rpc.removeprefix("http://").split(":")
    for content in (b"", b"POST /", UNFINISHED, UNFINISHED + b"        "):
        client = socket.create_connection((host, int(port)), 10.0)
        client.sendall(content)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        client.close()
    assert post(rpc, json.dumps(GOOD).encode())[0] == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def process(blocks: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "fl_node.nodes.dev_chain",
        "--blocks",
        str(blocks),
        "--accounts",
        ",".join(ACCOUNTS),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        yield child
        child.kill()


def test_as_a_process_it_prints_its_url_on_loopback_and_keeps_what_it_acknowledged_when_killed(
    process: subprocess.Popen[str], blocks: Path
) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    chain = Chain(url, ALICE)
    chain.web3.eth.send_raw_transaction(sign(0))
    chain.web3.eth.send_raw_transaction(sign(1))
    latest = chain.web3.eth.get_block("latest")["hash"]
    process.send_signal(signal.SIGKILL)
    process.wait(120)
    assert head(EmbeddedChain(blocks, ACCOUNTS))["hash"] == "0x" + bytes(latest).hex()
