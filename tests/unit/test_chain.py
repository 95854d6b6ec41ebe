"""Keys, transactions and the contract, on a real (embedded) chain; wrong answers from a made-up node."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fl_node.artifacts import cid
from fl_node.chain import node
from fl_node.chain import rpc as rpcs
from fl_node.chain.abi import _errors
from fl_node.chain.client import Chain
from fl_node.chain.contract import (
    CALL_GAS,
    HEADER_CHANGED,
    REJECTED,
    ROUND_CLOSED,
    WITHDRAWN,
    ClosedRound,
    Contract,
    State,
    Terms,
    Verdict,
)
from fl_node.chain.keys import create_key, load_key
from fl_node.chain.node import Sealed
from fl_node.chain.rpc import Request
from fl_node.chain.transactions import Receipt
from fl_node.errors import ChainError, ChainUnreachable, ConfigError, ContractError, LogError
from fl_node.protocol import history
from fl_node.runtime.waiting import wait_until
from tests.helpers.accounts import ALICE, BOB, HEADER, MALLORY, POOR, account
from tests.helpers.chain import OPEN

PLAN = cid.of_bytes(b"plan")
WEIGHTS = [cid.of_bytes(b"weights %d" % number) for number in range(10)]
NOBODY = "0x" + "00" * 20


@pytest.fixture
def header(rpc: str) -> Contract:
    """A new contract as its header sees it; Alice is learner 1."""
    chain = Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(PLAN, OPEN).contract))
    contract.register_learner(1, ALICE.address, chain.nonce())
    return contract


def of(contract: Contract, account: Any) -> Contract:
    """Return the contract as another account sees it."""
    return Chain(contract.chain.rpc, account).contract(contract.address)


# Keys


def test_a_new_key_is_its_owners_alone_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "role.key"
    address = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(path.read_text().strip())) == 32
    assert load_key(path).address == address
    assert create_key(tmp_path / "other.key") != address


def test_a_key_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "role.key"
    address = create_key(path)
    content = path.read_bytes()
    assert create_key(path) == address
    assert path.read_bytes() == content


@pytest.mark.parametrize("form", ["{}", "{}\n", "0x{}", "  0x{}  \n", "{:>64}"])
def test_a_key_is_64_hexadecimal_digits(tmp_path: Path, form: str) -> None:
    path = tmp_path / "role.key"
    path.touch(0o600)
    path.write_text(form.format(bytes(ALICE.key).hex()))
    assert load_key(path).address == ALICE.address


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"12", b"zz" * 32, b"00" * 32, b"ff" * 32, b"ab" * 33, b"0x", b"\xff" * 64, b"{}"]
)
def test_a_file_that_holds_no_key_is_named_and_its_content_is_not(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "role.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_key(path)
    assert str(caught.value) == f"key file {path} should hold 64 hexadecimal digits"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_may_read_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "role.key"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}; others may read it: chmod 600 {path}"):
        load_key(path)
    with pytest.raises(ConfigError):
        create_key(path)


def test_a_key_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.key: No such file"):
        load_key(tmp_path / "nowhere.key")
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="Is a directory"):
        load_key(tmp_path)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_a_device_is_no_key_file_and_its_mode_should_stay(path: str) -> None:
    for use in (load_key, create_key):
        with pytest.raises(ConfigError, match=f"key file {path}") as raised:
            use(Path(path))
        assert "chmod" not in str(raised.value)


def test_a_key_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"key file .*file/role\.key: "):
        create_key(tmp_path / "file" / "role.key")


# What the node says of itself


def test_a_node_says_what_it_is(rpc: str) -> None:
    chain = Chain(rpc)
    assert chain.chain_id() == 20240191
    assert chain.client() == "fl-node/embedded"
    assert chain.peers() == 0
    assert chain.is_ready()
    assert chain.genesis().startswith("0x")
    assert len(chain.genesis()) == 66
    assert chain.timestamp(0) == 1_700_000_000
    assert chain.balance(POOR.address) == 0
    assert chain.balance(ALICE.address.lower()) > 10**20
    assert chain.block_number() >= 0


def test_without_a_key_nothing_can_be_sent(rpc: str, header: Contract) -> None:
    reader = Chain(rpc)
    for attempt in (
        lambda: reader.address,
        reader.nonce,
        lambda: reader.deploy(PLAN, OPEN, 0),
        lambda: reader.contract(header.address).set_global_weight(WEIGHTS[0], 0),
    ):
        with pytest.raises(ConfigError, match="--key"):
            attempt()


# The contract


def test_a_contract_knows_its_plan_header_and_learners(header: Contract) -> None:
    assert header.plan() == PLAN
    assert header.header() == HEADER.address
    assert header.has_known_code()
    header.register_learner(7, BOB.address, header.chain.nonce())
    header.register_learner(3, MALLORY.address, header.chain.nonce())
    assert header.learners() == [1, 3, 7]
    assert header.account_of(7) == BOB.address
    assert header.account_of(2) is None
    assert header.node_id_of(BOB.address) == 7
    assert header.node_id_of(POOR.address) is None


def test_rounds_and_weights_are_read_as_cids(header: Contract) -> None:
    alice = of(header, ALICE)
    assert header.state() == State(started=False, round=0, global_cid=None)
    assert header.global_weight_at(0) is None
    for number in range(3):
        receipt = header.set_global_weight(WEIGHTS[number], header.chain.nonce())
        assert receipt is not None
        assert header.state() == State(started=True, round=number, global_cid=WEIGHTS[number])
        alice.set_local_weight(1, WEIGHTS[number + 5], alice.chain.nonce())
    assert [header.global_weight_at(n) for n in range(4)] == [*WEIGHTS[:3], None]
    assert [header.local_weight_at(n, 1) for n in range(4)] == [*WEIGHTS[5:8], None]
    assert header.local_weight_at(0, 2) is None


def test_what_is_read_at_the_block_of_a_look_is_one_picture(header: Contract) -> None:
    header.set_global_weight(WEIGHTS[0], header.chain.nonce())
    alice = of(header, ALICE)
    before = alice.view(ALICE.address)
    assert (before.nonce, before.learners, before.node_id) == (alice.chain.nonce(), (1,), 1)
    assert before.state == alice.state()
    alice.set_local_weight(1, WEIGHTS[1], before.nonce)
    assert alice.local_weight_at(0, 1) == WEIGHTS[1]
    assert alice.local_weight_at(0, 1, before.block) is None
    after = alice.view(ALICE.address)
    assert after.nonce == before.nonce + 1
    assert alice.local_weight_at(0, 1, after.block) == WEIGHTS[1]


def test_the_log_tells_everything_in_the_order_in_which_it_happened(header: Contract) -> None:
    alice, chain = of(header, ALICE), header.chain
    receipts = [
        header.set_global_weight(WEIGHTS[0], chain.nonce()),
        alice.set_local_weight(1, WEIGHTS[1], alice.chain.nonce()),
        header.register_learner(2, BOB.address, chain.nonce()),
        alice.set_local_weight(1, WEIGHTS[2], alice.chain.nonce()),
        header.set_global_weight(WEIGHTS[3], chain.nonce()),
    ]
    log = header.log()
    assert [(e.name, e.round, e.node_id, e.cid, e.account) for e in log] == [
        ("LearnerRegistered", None, 1, None, ALICE.address),
        ("GlobalWeightSet", 0, None, WEIGHTS[0], None),
        ("LocalWeightSet", 0, 1, WEIGHTS[1], None),
        ("GlobalWeightAttested", 0, 1, WEIGHTS[0], None),
        ("LearnerRegistered", None, 2, None, BOB.address),
        ("LocalWeightSet", 0, 1, WEIGHTS[2], None),
        ("GlobalWeightSet", 1, None, WEIGHTS[3], None),
    ]
    sent = [(e.block, e.transaction) for e in log[1:] if e.name != "GlobalWeightAttested"]
    assert sent == [(r.block, r.transaction) for r in receipts if r]
    assert sorted(log) == log


def test_the_terms_of_a_contract_are_read_as_they_were_given(rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    for terms in (Terms(7, 3, 11), Terms(), OPEN):
        assert chain.contract(str(chain.deploy(PLAN, terms).contract)).terms() == terms


@pytest.fixture
def synchronous(rpc: str) -> Contract:
    """A new contract in round 0 as its header sees it: Alice, Bob and Mallory of four learners; rounds take 1 s."""
    chain = Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(PLAN, Terms(4, 2, 1)).contract))
    for node_id, learner in enumerate((ALICE, BOB, MALLORY), 1):
        contract.register_learner(node_id, learner.address, chain.nonce())
    contract.set_global_weight(WEIGHTS[0], chain.nonce())
    return contract


def close(contract: Contract) -> None:
    """Let three of the learners publish in round 0, Bob without an attestation, and close it."""
    for node_id, learner in enumerate((ALICE, BOB, MALLORY), 1):
        mine = of(contract, learner)
        start = (0, WEIGHTS[0])
        assert mine.set_local_weight(
            node_id, WEIGHTS[node_id], mine.chain.nonce(), trained_from=start, attests=learner is not BOB
        )
    assert wait_until(lambda: contract.close_round(contract.chain.nonce()) is not None, 30, 0.01)


def test_a_round_that_closes_is_in_state_record_and_log(synchronous: Contract) -> None:
    opened = synchronous.round_at(0)
    assert (opened.published, opened.members, opened.rejections, opened.closed_at) == (0, 0, 0, 0)
    assert opened.opened_at == synchronous.chain.timestamp(synchronous.chain.block_number())
    assert not synchronous.state().closed
    close(synchronous)
    closed = synchronous.round_at(0)
    assert (closed.published, closed.members, closed.opened_at) == (3, 3, opened.opened_at)
    assert closed.closed_at == synchronous.chain.timestamp(synchronous.chain.block_number())
    assert synchronous.state().closed
    assert [(e.round, e.members) for e in synchronous.log() if e.name == ROUND_CLOSED] == [(0, 3)]
    synchronous.register_learner(4, POOR.address, synchronous.chain.nonce())
    assert synchronous.members(0) == [1, 2, 3]
    assert synchronous.learners() == [1, 2, 3, 4]


def test_a_closed_round_is_read_in_one_block(synchronous: Contract) -> None:
    before = synchronous.view(HEADER.address).block
    close(synchronous)
    after = synchronous.view(HEADER.address).block
    # A role that saw the round closed in one block must not read its publications in another.
    assert synchronous.local_weights(0, [1, 2, 3], before) == {}
    assert sorted(synchronous.local_weights(0, [1, 2, 3], after)) == [1, 2, 3]
    synchronous.register_learner(4, POOR.address, synchronous.chain.nonce())
    assert synchronous.members(0, after) == [1, 2, 3]
    assert synchronous.members(0, before) == [1, 2, 3]


def test_a_closed_round_is_shown_with_the_weights_that_ended_it_and_no_others(synchronous: Contract) -> None:
    assert synchronous.closed_round(0, WEIGHTS[4]) is None
    close(synchronous)
    assert synchronous.closed_round(0, WEIGHTS[4]) is None
    published = synchronous.local_weights(0, [1, 2, 3])
    synchronous.set_global_weight(WEIGHTS[4], synchronous.chain.nonce())
    assert synchronous.closed_round(0, WEIGHTS[4]) == ClosedRound(WEIGHTS[0], published, (1, 2, 3))
    assert synchronous.closed_round(0, WEIGHTS[5]) is None
    assert synchronous.closed_round(1, WEIGHTS[4]) is None


def test_attestations_are_counted_and_more_than_half_finalize(synchronous: Contract) -> None:
    def finalized(round_: int) -> tuple[int, bool]:
        past = history.read(synchronous)
        return len(past.attested(round_)), past.is_finalized(round_)

    assert finalized(0) == (0, False)
    close(synchronous)
    assert finalized(0) == (2, True)
    synchronous.set_global_weight(WEIGHTS[4], synchronous.chain.nonce())
    assert finalized(1) == (0, False)
    bob = of(synchronous, BOB)
    assert bob.attest(1, WEIGHTS[4], bob.chain.nonce()) is not None
    assert bob.verdict_of(2) == Verdict(attested=True, rejected=False, voted=False)
    assert finalized(0) == (3, True)
    assert bob.attest(1, WEIGHTS[4], bob.chain.nonce()) is None
    assert bob.attest(1, WEIGHTS[5], bob.chain.nonce()) is None


def test_a_rejection_says_what_is_wrong_and_the_majoritys_withdraws(synchronous: Contract) -> None:
    close(synchronous)
    synchronous.set_global_weight(WEIGHTS[4], synchronous.chain.nonce())
    long = "a code that is much longer than 32 bytes, é"
    for learner, code, evidence in ((ALICE, "share", WEIGHTS[5]), (BOB, long, None)):
        mine = of(synchronous, learner)
        assert mine.reject(1, WEIGHTS[4], mine.chain.nonce(), code=code, evidence=evidence) is not None
    log = synchronous.log()
    assert [(e.round, e.node_id, e.cid, e.code, e.evidence) for e in log if e.name == REJECTED] == [
        (1, 1, WEIGHTS[4], "share", WEIGHTS[5]),
        (1, 2, WEIGHTS[4], long[:32], None),
    ]
    assert [(e.round, e.cid) for e in log if e.name == WITHDRAWN] == [(1, WEIGHTS[4])]
    assert [(e.account, e.node_id) for e in log if e.name == HEADER_CHANGED] == [(ALICE.address, 1)]
    assert synchronous.header() == synchronous.state().header == ALICE.address
    assert synchronous.deployer() == HEADER.address
    assert (synchronous.state().round, synchronous.state().closed, synchronous.state().ballot) == (0, True, 1)
    assert synchronous.global_weight_at(1) is None


def test_learners_vote_once_and_the_majority_replaces_the_header(synchronous: Contract) -> None:
    alice, bob = of(synchronous, ALICE), of(synchronous, BOB)
    assert alice.vote(0, alice.chain.nonce()) is None, "the round is open"
    close(synchronous)
    assert alice.vote(0, alice.chain.nonce()) is not None
    assert alice.verdict_of(1) == Verdict(attested=True, rejected=False, voted=True)
    assert alice.vote(0, alice.chain.nonce()) is None
    assert synchronous.header() == HEADER.address
    assert bob.vote(0, bob.chain.nonce()) is not None
    assert synchronous.header() == ALICE.address
    assert bob.vote(0, bob.chain.nonce()) is None, "the ballot is over"
    with pytest.raises(ContractError) as caught:
        synchronous.set_global_weight(WEIGHTS[4], synchronous.chain.nonce())
    assert caught.value.name == "NotHeader"


@pytest.mark.parametrize(
    "attempt",
    [
        lambda c, n: c.set_local_weight(1, WEIGHTS[9], n),
        lambda c, n: c.set_local_weight(1, WEIGHTS[9], n, trained_from=(0, WEIGHTS[0])),
        lambda c, n: c.set_local_weight(1, WEIGHTS[9], n, trained_from=(1, WEIGHTS[0])),
        lambda c, n: c.set_local_weight(1, WEIGHTS[9], n, trained_from=(0, WEIGHTS[7])),
        lambda c, n: c.close_round(n),
        lambda c, n: c.attest(0, WEIGHTS[0], n),
        lambda c, n: c.reject(0, WEIGHTS[0], n, code="share"),
        lambda c, n: c.vote(5, n),
    ],
    ids=["paper's call", "closed", "other round", "other weights", "close", "attest", "reject", "vote"],
)
def test_whoever_comes_too_late_is_told_so_and_reads_the_state_again(
    synchronous: Contract, attempt: Callable[[Contract, int], Any]
) -> None:
    close(synchronous)
    alice = of(synchronous, ALICE)
    before = synchronous.log()
    assert attempt(alice, alice.chain.nonce()) is None
    assert synchronous.log() == before


def test_the_header_is_told_that_the_round_is_open(synchronous: Contract) -> None:
    before = synchronous.chain.nonce()
    assert synchronous.set_global_weight(WEIGHTS[4], before) is None
    assert synchronous.chain.nonce() == before


class _Crossed(Chain):
    """A chain on which the other learners publish between a call that is tried and its transaction."""

    crosses: Contract | None = None

    def _fees_if_ready(self, first: Sequence[Request]) -> tuple[int, int]:
        fees, crosses = super()._fees_if_ready(first), self.crosses
        if crosses is not None:
            self.crosses = None
            close(Chain(self.rpc, HEADER).contract(crosses.address))
        return fees


def test_a_publication_that_a_block_takes_after_the_round_has_closed_is_refused_and_no_error(
    synchronous: Contract,
) -> None:
    chain = _Crossed(synchronous.chain.rpc, ALICE)
    chain.crosses = synchronous
    # Alice's other process publishes first, and so the number is another's.
    late = chain.contract(synchronous.address)
    assert late.set_local_weight(1, WEIGHTS[9], chain.nonce() + 1, trained_from=(0, WEIGHTS[0])) is None
    assert synchronous.local_weight_at(0, 1) == WEIGHTS[1]
    assert [entry.cid for entry in synchronous.log() if entry.name == "LocalWeightSet"] == WEIGHTS[1:4]


def test_a_node_without_subscriptions_is_asked_as_before(rpc: str, header: Contract) -> None:
    contract = Chain(rpc, HEADER).contract(header.address)
    contract.listen()
    news = contract.chain.news
    assert news is not None
    assert not news.is_alive
    assert contract.set_global_weight(WEIGHTS[0], contract.chain.nonce()) is not None
    assert contract.chain.newest() == contract.chain.block_number()
    news.close()


def test_one_contracts_log_is_not_anothers(rpc: str, header: Contract) -> None:
    chain = Chain(rpc, HEADER)
    contract = chain.contract(str(chain.deploy(PLAN, OPEN).contract))
    header.set_global_weight(WEIGHTS[0], header.chain.nonce())
    assert contract.log() == []


@pytest.mark.parametrize(
    ("account", "attempt", "error"),
    [
        (ALICE, lambda c, n: c.set_global_weight(WEIGHTS[0], n), f"NotHeader({ALICE.address.lower()})"),
        (ALICE, lambda c, n: c.register_learner(2, BOB.address, n), f"NotHeader({ALICE.address.lower()})"),
        (BOB, lambda c, n: c.set_local_weight(1, WEIGHTS[0], n), f"NotLearner(1, {BOB.address.lower()})"),
        (ALICE, lambda c, n: c.set_local_weight(1, WEIGHTS[0], n), "NotStarted()"),
        (HEADER, lambda c, n: c.register_learner(0, BOB.address, n), "InvalidNodeId(0, 9)"),
        (HEADER, lambda c, n: c.register_learner(10, BOB.address, n), "InvalidNodeId(10, 9)"),
        (HEADER, lambda c, n: c.register_learner(2, NOBODY, n), f"InvalidAccount({NOBODY})"),
        (HEADER, lambda c, n: c.register_learner(1, BOB.address, n), f"AlreadyRegistered(1, {BOB.address.lower()})"),
        (HEADER, lambda c, n: c.set_global_weight(cid.from_digest(bytes(32)), n), "EmptyHash()"),
    ],
)
def test_what_the_contract_refuses_is_said_by_its_custom_error_and_costs_nothing(
    header: Contract, account: Any, attempt: Callable[[Contract, int], Any], error: str
) -> None:
    contract = of(header, account)
    before = contract.chain.block_number()
    with pytest.raises(ContractError) as caught:
        attempt(contract, contract.chain.nonce())
    assert str(caught.value).lower() == f"the contract reverted: {error}".lower()
    assert contract.chain.block_number() == before


# Transactions


def test_a_transaction_that_is_sent_again_is_one_transaction(header: Contract) -> None:
    nonce = header.chain.nonce()
    first = header.set_global_weight(WEIGHTS[0], nonce)
    before = header.chain.block_number()
    assert header.set_global_weight(WEIGHTS[0], nonce) == first
    assert header.chain.block_number() == before
    assert header.state().round == 0
    # A process that was killed and its successor: another connection, the same transaction.
    assert of(header, HEADER).set_global_weight(WEIGHTS[0], nonce) == first


def test_a_transaction_whose_number_another_has_used_is_none(header: Contract) -> None:
    nonce = header.chain.nonce()
    assert header.set_global_weight(WEIGHTS[0], nonce) is not None
    assert header.set_global_weight(WEIGHTS[1], nonce) is None
    assert header.state() == State(started=True, round=0, global_cid=WEIGHTS[0])


def test_a_receipt_names_transaction_block_and_gas(header: Contract) -> None:
    receipt = header.set_global_weight(WEIGHTS[0], header.chain.nonce())
    assert receipt is not None
    assert receipt.block == header.chain.block_number()
    assert 40_000 < receipt.gas < CALL_GAS
    assert receipt.contract is None
    assert receipt.transaction.startswith("0x")


def test_what_is_sealed_tells_sender_gas_and_time(header: Contract) -> None:
    receipts = [header.set_global_weight(WEIGHTS[0], header.chain.nonce())]
    alice = of(header, ALICE)
    receipts.append(alice.set_local_weight(1, WEIGHTS[1], alice.chain.nonce()))
    names = [receipt.transaction for receipt in receipts if receipt is not None]
    unknown = "0x" + "12" * 32
    sealed = header.chain.sealed([*names, unknown, names[0]])
    assert list(sealed) == names
    assert [sealed[name].sender for name in names] == [HEADER.address, ALICE.address]
    for receipt in receipts:
        assert receipt is not None
        assert sealed[receipt.transaction].gas == receipt.gas
        assert sealed[receipt.transaction].time == header.chain.timestamp(receipt.block)
    assert header.chain.sealed([]) == {}


class _Unlucky(Chain):
    """A chain on which the first transfer is in no block in time."""

    waits = 1

    def _receipt(self, transaction: Any, patience: float = 0.0) -> Receipt | None:
        if self.waits:
            self.waits -= 1
            return None
        return super()._receipt(transaction, patience)


class _Overtaken(Chain):
    """A chain on which another transaction of the account uses the number of the first transfer."""

    overtaken = False

    def send(
        self, to: str | None, data: Any, gas: int, nonce: int, value: int = 0, *, simulate: bool = False
    ) -> Receipt | None:
        if not self.overtaken:
            self.overtaken = True
            Chain(self.rpc, self.account).send_noop()
        return super().send(to, data, gas, nonce, value, simulate=simulate)


@pytest.mark.parametrize("kind", [_Unlucky, _Overtaken])
def test_ether_is_given_once_however_long_it_takes(rpc: str, kind: type[Chain]) -> None:
    receiver = account(f"receiver {kind.__name__}").address
    kind(rpc, ALICE).transfer(receiver, 10**15)
    assert Chain(rpc).balance(receiver) == 10**15


@pytest.mark.parametrize("kind", [_Unlucky, _Overtaken])
def test_a_contract_is_deployed_once_however_long_it_takes(rpc: str, kind: type[Chain]) -> None:
    chain = kind(rpc, ALICE)
    before = chain.nonce()
    contract = chain.contract(str(chain.deploy(PLAN, OPEN).contract))
    assert contract.plan() == PLAN
    assert chain.nonce() == before + 2, "the contract, and a transaction of no effect"


def test_an_account_that_owns_nothing_is_told_so(rpc: str) -> None:
    with pytest.raises(ChainError, match="balance 0"):
        Chain(rpc, POOR).deploy(PLAN, OPEN)


def test_where_there_is_no_contract_it_is_said(rpc: str) -> None:
    for address in (NOBODY, ALICE.address, ALICE.address.lower()):
        with pytest.raises(ChainError, match=f"chain at {rpc}: no contract at {address}"):
            Chain(rpc).contract(address)


@pytest.mark.parametrize("address", ["", "0x", "0x12", "federation", "0x" + "zz" * 20, ALICE.address[:-1]])
def test_what_is_no_address_is_no_contract(rpc: str, address: str) -> None:
    with pytest.raises(ConfigError, match="40 hexadecimal digits"):
        Chain(rpc).contract(address)


def test_a_contract_of_another_kind_is_noticed(rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    # Code that is one STOP: it answers every call with nothing.
    data = "0x6001600c60003960016000f300"
    receipt = chain.send(None, data, 100_000, chain.nonce())
    assert receipt is not None
    contract = chain.contract(str(receipt.contract))
    assert not contract.has_known_code()
    with pytest.raises(ChainError, match="did not answer plan"):
        contract.plan()
    assert contract.log() == []


def test_a_contract_from_before_masks_has_no_threshold(rpc: str) -> None:
    chain = Chain(rpc, HEADER)
    # Code that answers every call with four numbers, as getTerms of such a contract: 2, 1, 30, 0.
    data = "0x6014600c60003960146000f3" + "6002600052" + "6001602052" + "601e604052" + "60806000f3"
    receipt = chain.send(None, data, 200_000, chain.nonce())
    assert receipt is not None
    assert chain.contract(str(receipt.contract)).terms() == Terms(2, 1, 30, asynchronous=False, threshold=0)


# Trouble


def test_a_node_that_is_down_is_named(free_port: Callable[[], int]) -> None:
    rpc = f"http://127.0.0.1:{free_port()}"
    chain = Chain(rpc, ALICE)
    for attempt in (
        chain.block_number,
        chain.chain_id,
        chain.nonce,
        chain.client,
        chain.genesis,
        lambda: chain.contract(NOBODY),
        lambda: chain.deploy(PLAN, OPEN),
    ):
        with pytest.raises(ChainUnreachable, match=rf"chain at {rpc} can't be reached; is the node running\?"):
            attempt()


@pytest.mark.parametrize(
    "rpc",
    [
        *("", " ", "localhost:8545", "127.0.0.1:8545", "8545", "/ip4/127.0.0.1/tcp/8545", "files"),
        *("ftp://127.0.0.1", "ws://127.0.0.1:8545", "http://", "http:/127.0.0.1:8545", "http://:8545"),
        *("http://127.0.0.1:0", "http://127.0.0.1:65536", "http://127.0.0.1:x"),
        *("http://127.0.0.1:8545\r", " http://127.0.0.1:8545", "http://127.0.0.1:8545 ", "http://127.0.0.1:\u0668"),
    ],
    ids=ascii,
)
def test_what_is_no_url_is_named_with_the_right_form(rpc: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Chain(rpc)
    assert str(caught.value) == f"RPC {rpc!r}: should be a URL such as http://127.0.0.1:8545"


@pytest.fixture
def odd_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[..., None]]]:
    """A server, and a function that sets what it answers: status and body, or a function of the request."""
    answer: list[Any] = [200, b""]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer
            content = json.dumps(body(request)).encode() if callable(body) else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    def say(status: int, body: Any) -> None:
        answer[:] = [status, body]

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", say
        server.shutdown()


def with_result(result: Any) -> Callable[[Any], Any]:
    """Return a body that gives each request the same result."""

    def body(request: Any) -> Any:
        if isinstance(request, list):
            return [body(call) for call in request]
        return {"jsonrpc": "2.0", "id": request["id"], "result": result}

    return body


def with_error(code: int, message: str, **more: Any) -> Callable[[Any], Any]:
    def body(request: Any) -> Any:
        if isinstance(request, list):
            return [body(call) for call in request]
        return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message, **more}}

    return body


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>log in</html>"),
        (200, b"\xff\xfe"),
        (200, b"null"),
        (200, b"5"),
        (200, b"[]"),
        (200, b"[5]"),
        (200, b"{}"),
        (200, b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "parse error"}}'),
        (200, with_result(None)),
        (200, with_result("many")),
        (200, with_result([])),
        (200, lambda request: {"jsonrpc": "2.0", "id": request["id"], "error": "out of order"}),
        (200, lambda request: {"jsonrpc": "2.0", "id": [0], "result": "0x1"}),
        (200, lambda request: {"jsonrpc": "2.0", "id": {"a": 1}, "error": {"message": "no"}}),
        (200, lambda request: {"jsonrpc": "2.0", "id": request["id"] == 0, "result": "0x1"}),
        (200, lambda request: {"jsonrpc": "2.0", "id": request["id"] + 0.0, "result": "0x1"}),
        *(
            (200, with_result(result))
            for result in (10, True, "10", "-0x1", "0x-1", "0x1_0", " 0x1", "0x", "0x\u0661")
        ),
        (200, with_result("0x" + "f" * 65)),
        (200, with_result("x" * 100_000)),
        (200, with_error(-32000, "no\nfl-node: all is well\r\x1b[2J" * 1000)),
        (404, b""),
        (500, b"{}"),
        (301, b""),
        (200, b"[" * 70_000),
        (200, b'{"id":' * 70_000),
        (200, b'{"jsonrpc":"2.0","id":0,"id":1,"result":"0x1"}'),
        (200, b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"result":"0x1"}'),
        (200, b'{"jsonrpc":"2.0","id":0,"result":"\\ud800"}'),
    ],
)
def test_what_is_no_answer_of_a_node_is_an_error_of_one_line(
    odd_node: tuple[str, Callable[..., None]], status: int, body: Any
) -> None:
    rpc, say = odd_node
    say(status, body)
    for ask in (Chain(rpc).block_number, Chain(rpc, ALICE).nonce):
        with pytest.raises(ChainError) as caught:
            ask()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


def test_a_node_that_has_not_indexed_its_blocks_is_asked_again_for_what_is_sealed(
    odd_node: tuple[str, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rpc, say = odd_node
    asked: list[str] = []
    receipt = {"blockNumber": "0x5", "from": ALICE.address.lower(), "to": None, "gasUsed": "0xcf08"}

    def answer(request: Any) -> Any:
        asked.append(request["method"])
        if asked == ["eth_getTransactionReceipt"]:
            return with_error(-32000, "transaction indexing is in progress")(request)
        return with_result(receipt if request["method"] == asked[0] else {"timestamp": "0x10"})(request)

    say(200, answer)
    assert Chain(rpc).sealed(["0x12"]) == {"0x12": Sealed(ALICE.address, None, 53_000, 16)}
    assert asked == ["eth_getTransactionReceipt"] * 2 + ["eth_getBlockByNumber"]

    monkeypatch.setattr(node, "INDEX_PATIENCE", 0.1)
    say(200, with_error(-32000, "transaction indexing is in progress"))
    assert Chain(rpc).sealed(["0x12"]) == {}


def test_an_error_that_the_node_gives_is_passed_on(odd_node: tuple[str, Callable[..., None]]) -> None:
    rpc, say = odd_node
    say(200, with_error(-32000, "missing trie node"))
    with pytest.raises(ChainError, match="missing trie node"):
        Chain(rpc).block_number()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "execution reverted"),
        ("0x", "execution reverted"),
        ("0x08c379a0", "execution reverted"),
        ("0x12345678", "execution reverted"),
        ("junk", "execution reverted"),
    ],
)
def test_a_revert_without_a_custom_error_is_a_refusal_all_the_same(
    odd_node: tuple[str, Callable[..., None]], data: str | None, message: str
) -> None:
    rpc, say = odd_node
    say(200, with_error(3, "execution reverted", **({} if data is None else {"data": data})))
    with pytest.raises(ContractError, match=f"the contract reverted: {message}"):
        Contract(Chain(rpc), ALICE.address).plan()


def test_an_event_of_another_contract_is_not_one_of_the_run(odd_node: tuple[str, Callable[..., None]]) -> None:
    rpc, say = odd_node
    entry = dict.fromkeys(("blockNumber", "logIndex", "transactionIndex"), "0x1")
    entry |= {
        "blockHash": "0x" + "0c" * 32,
        "transactionHash": "0x" + "0c" * 32,
        "data": "0x",
        "address": BOB.address,
    }
    say(200, with_result([entry | {"topics": ["0x" + "0c" * 32]}]))
    with pytest.raises(LogError, match=BOB.address):
        Contract(Chain(rpc), ALICE.address).log()


@pytest.mark.parametrize("extra", [None, "0x", "0x00"])
def test_a_genesis_without_extra_data_is_not_that_of_clique(
    odd_node: tuple[str, Callable[..., None]], extra: str | None
) -> None:
    rpc, say = odd_node
    say(200, with_result({"number": "0x0", "timestamp": "0x0", "hash": "0x" + "0c" * 32, "extraData": extra}))
    assert not Chain(rpc).is_clique


@pytest.mark.parametrize("rest", ["", "00", "zz", "ff" * 31, "ff" * 500, "\u0661"])
def test_a_custom_error_with_damaged_arguments_is_that_error(
    odd_node: tuple[str, Callable[..., None]], rest: str
) -> None:
    rpc, say = odd_node
    # One with arguments: without them nothing is damaged.
    selector, (name, _) = next(item for item in _errors().items() if item[1][1])
    say(200, with_error(3, "execution reverted", data=f"0x{selector}{rest}"))
    with pytest.raises(ContractError) as raised:
        Contract(Chain(rpc), ALICE.address).learners()
    assert raised.value.name == name


@pytest.mark.parametrize("result", ["0x00", "0x" + "ff" * 64, "junk", 5, {"a": 1}])
def test_what_is_no_answer_of_a_contract_is_an_error_of_one_line(
    odd_node: tuple[str, Callable[..., None]], result: Any
) -> None:
    rpc, say = odd_node
    say(200, with_result(result))
    with pytest.raises(ChainError) as caught:
        Contract(Chain(rpc), ALICE.address).learners()
    assert "\n" not in str(caught.value)


def test_an_answer_without_an_end_is_not_read_to_its_end(
    odd_node: tuple[str, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rpc, say = odd_node
    monkeypatch.setattr(rpcs, "MAX_ANSWER_BYTES", 1000)
    say(200, b" " * 5000)
    with pytest.raises(ChainError, match="more than the 1000 allowed"):
        Chain(rpc).block_number()
    say(200, with_result("0x5"))
    assert Chain(rpc).block_number() == 5


# Waiting


def test_waiting_ends_with_the_answer_or_the_time() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), 120.0, 0.001)
    assert not wait_until(lambda: False, 0.02, 0.001)
    assert wait_until(lambda: True, 0.0)
