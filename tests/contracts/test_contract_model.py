"""Any sequence of calls by anyone leaves the contract as a few lines of Python say, and keeps what it promises."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

import pytest
from deployment import (
    ACCOUNTS,
    HEADER,
    LONG,
    PLAN,
    ZERO_ADDRESS,
    ZERO_HASH,
    Deployment,
    Event,
    Refusal,
    Terms,
    sha,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from web3 import Web3

# Thousands of blocks say no more on Geth than on py-evm, whose blocks are quicker.
pytestmark = pytest.mark.parametrize("w3", ["py-evm"], indirect=True)

ADDRESSES = [account.address for account in ACCOUNTS.values()]
NODES = [0, 1, 2, 3, 2**256 - 1]
HASHES = [ZERO_HASH, *(sha(f"weights {number}") for number in range(6)), b"\xff" * 32]
CODE = b"shares".ljust(32, b"\0")
LIMIT = 8

LONG_RUN = 20
"""Steps of a sequence; some are several calls."""


class Refused(Exception):
    """The model refuses a call."""

    def __init__(self, error: str, *args: object) -> None:
        self.refusal = Refusal(error, args)


@dataclass
class Round:
    """Global weights, and the round that starts from them."""

    serial: int
    hash: bytes
    local_weights: dict[int, bytes] = field(default_factory=dict)
    members: int = 0
    rejected: set[int] = field(default_factory=set)
    opened: int | None = None
    openings: dict[int, bytes] = field(default_factory=dict)
    keys: dict[int, bytes] = field(default_factory=dict)
    """What learners announced in it for the next round."""
    closed: int | None = 0
    """When it closed; 0 while it is open, None if it has just closed and its block is to come."""

    @property
    def is_closed(self) -> bool:
        return self.closed != 0


@dataclass
class Model:
    """The contract as it should be."""

    terms: Terms
    deployer: str
    header: str
    late: bool = False
    """Whether the time of the current round is up."""
    accounts: dict[int, str] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    serials: int = 0
    latest: dict[int, bytes] = field(default_factory=dict)
    publications: dict[int, tuple[int, int]] = field(default_factory=dict)
    attested: dict[int, int] = field(default_factory=dict)
    rejected: dict[int, int] = field(default_factory=dict)
    ballot: int = 0
    voters: set[int] = field(default_factory=set)
    candidate: int = 0
    first_keys: dict[int, bytes] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def round(self) -> int:
        return max(0, len(self.rounds) - 1)

    @property
    def needed(self) -> int:
        return self.terms.learners

    def log(self, name: str, *args: object) -> None:
        self.events.append(Event(name, args))

    def is_majority(self, count: int) -> bool:
        return count > len(self.accounts) / 2

    def node_of(self, caller: str) -> int:
        node = next((node for node, account in self.accounts.items() if account == caller), 0)
        if node == 0:
            raise Refused("NotLearner", 0, caller)
        return node

    def started_from(self, number: int, weights: bytes) -> Round:
        right = self.rounds[number].hash if number < len(self.rounds) else ZERO_HASH
        if weights != right or weights == ZERO_HASH:
            raise Refused("OtherWeights", right)
        return self.rounds[number]

    def is_open(self, needed: int) -> Refused:
        return Refused("RoundIsOpen", self.round, len(self.rounds[-1].local_weights), needed)

    def register(self, caller: str, node: int, account: str) -> None:
        if caller != self.header:
            raise Refused("NotHeader", caller)
        if not 1 <= node <= self.terms.learners:
            raise Refused("InvalidNodeId", node, self.terms.learners)
        if account in (ZERO_ADDRESS, self.deployer):
            raise Refused("InvalidAccount", account)
        if node in self.accounts or account in self.accounts.values():
            raise Refused("AlreadyRegistered", node, account)
        self.accounts[node] = account
        self.log("LearnerRegistered", node, account)

    def set_local(self, caller: str, node: int, weights: bytes, *trained: object) -> None:
        if self.accounts.get(node) != caller:
            raise Refused("NotLearner", node, caller)
        if weights == ZERO_HASH:
            raise Refused("EmptyHash")
        if not self.rounds:
            raise Refused("NotStarted")
        current, start, attests = self.rounds[-1], self.round, True
        if trained:
            start, parent, attests = trained
            if not self.terms.asynchronous and start != self.round:
                raise Refused("WrongRound", self.round)
            self.started_from(start, parent)
        if current.is_closed:
            raise Refused("RoundIsClosed", self.round)
        serial, times = self.publications.get(node, (0, 0))
        times = times if serial == current.serial else 0
        if times == LIMIT:
            raise Refused("TooManyPublications", node)
        self.publications[node] = current.serial, times + 1
        current.local_weights[node] = self.latest[node] = weights
        self.log("LocalWeightSet", self.round, node, weights)
        if not self.terms.asynchronous and len(current.local_weights) == self.needed:
            self.end(current)
        if attests:
            self.attest_round(node, start)

    def end(self, current: Round) -> None:
        current.closed, current.members = None, len(self.accounts)
        self.log("RoundClosed", self.round, len(current.local_weights), current.members)

    def attest_round(self, node: int, number: int) -> None:
        one = self.rounds[number]
        if self.attested.get(node, 0) < one.serial and self.rejected.get(node) != one.serial:
            self.attested[node] = one.serial
            self.log("GlobalWeightAttested", number, node, one.hash)

    def set_global(self, caller: str, weights: bytes) -> None:
        if caller != self.header:
            raise Refused("NotHeader", caller)
        if weights == ZERO_HASH:
            raise Refused("EmptyHash")
        if self.rounds and not self.terms.asynchronous and not self.rounds[-1].is_closed:
            raise self.is_open(self.needed)
        self.check_masks()
        self.serials += 1
        self.rounds.append(Round(self.serials, weights))
        self.late = False
        if self.voters:
            self.voters, self.ballot = set(), self.ballot + 1
        self.log("GlobalWeightSet", self.round, weights)

    def announce(self, caller: str, number: int, key: bytes) -> None:
        if not self.terms.threshold:
            raise Refused("NoMasks")
        node = self.node_of(caller)
        if key == ZERO_HASH:
            raise Refused("EmptyHash")
        if number != len(self.rounds):
            raise Refused("WrongRound", len(self.rounds))
        if self.rounds and self.rounds[-1].is_closed:
            raise Refused("RoundIsClosed", self.round)
        keys = self.rounds[-1].keys if self.rounds else self.first_keys
        if node in keys:
            raise Refused("AlreadyAnnounced", node)
        keys[node] = key
        self.log("KeyAnnounced", number, node, key)

    def open(self, caller: str, number: int, shares: bytes) -> None:
        if not self.terms.threshold:
            raise Refused("NoMasks")
        node = self.node_of(caller)
        if shares == ZERO_HASH:
            raise Refused("EmptyHash")
        if not self.rounds:
            raise Refused("NotStarted")
        if number != self.round:
            raise Refused("WrongRound", self.round)
        current = self.rounds[-1]
        if not current.is_closed:
            raise self.is_open(self.needed)
        if node not in current.local_weights:
            raise Refused("NotMember", node)
        if node in current.openings:
            raise Refused("AlreadyOpened", node)
        current.openings[node] = shares
        self.log("MasksOpened", number, node, shares)

    def check_masks(self) -> None:
        threshold = self.terms.threshold
        if not threshold:
            return
        if not self.rounds and len(self.first_keys) < self.terms.learners:
            raise Refused("KeysAreMissing", len(self.first_keys), self.terms.learners)
        if self.rounds and len(self.rounds[-1].openings) < threshold:
            raise Refused("MasksAreClosed", self.round, len(self.rounds[-1].openings), threshold)

    def close(self, caller: str) -> None:
        if not self.rounds:
            raise Refused("NotStarted")
        if self.rounds[-1].is_closed:
            raise Refused("RoundIsClosed", self.round)
        if self.terms.asynchronous or self.terms.timeout == 0 or not self.late:
            raise self.is_open(self.needed)
        if len(self.rounds[-1].local_weights) < self.terms.minimum:
            raise self.is_open(self.terms.minimum)
        self.end(self.rounds[-1])

    def attest(self, caller: str, number: int, weights: bytes) -> None:
        node = self.node_of(caller)
        serial = self.started_from(number, weights).serial
        if self.attested.get(node, 0) >= serial or self.rejected.get(node) == serial:
            raise Refused("AlreadyJudged", node)
        self.attest_round(node, number)

    def reject(self, caller: str, number: int, weights: bytes, code: bytes, evidence: bytes) -> None:
        node = self.node_of(caller)
        one = self.started_from(number, weights)
        if max(self.attested.get(node, 0), self.rejected.get(node, 0)) >= one.serial:
            raise Refused("AlreadyJudged", node)
        self.rejected[node] = one.serial
        one.rejected.add(node)
        self.log("GlobalWeightRejected", number, node, weights, code, evidence)
        if self.is_majority(len(one.rejected)):
            del self.rounds[number:]
            self.log("GlobalWeightWithdrawn", number, weights)
            self.succeed()

    def vote(self, caller: str, ballot: int) -> None:
        node = self.node_of(caller)
        if ballot != self.ballot:
            raise Refused("WrongBallot", self.ballot)
        if node in self.voters:
            raise Refused("AlreadyVoted", node)
        if self.rounds and not self.terms.asynchronous and not self.rounds[-1].is_closed:
            raise self.is_open(self.needed)
        self.voters.add(node)
        self.log("HeaderVoted", ballot, node)
        if self.is_majority(len(self.voters)):
            self.succeed()

    def succeed(self) -> None:
        self.voters, self.ballot = set(), self.ballot + 1
        self.candidate = (self.candidate + 1) % (len(self.accounts) + 1)
        node, self.header = [(0, self.deployer), *self.accounts.items()][self.candidate]
        self.log("HeaderChanged", self.header, node)


class Promises:
    """What must hold whatever the model says: judged by the events and the getters of the contract alone."""

    def __init__(self, run: Deployment) -> None:
        self.run = run
        self.learners = 0
        self.round = 0
        self.header = run.read("header")
        self.voters: dict[int, set[int]] = defaultdict(set)
        """Of each ballot."""
        self.rejected: dict[int, set[int]] = {}
        """Who rejected the global weights that are or were the round's last."""
        self.closed: dict[int, list[object]] = {}
        """What is in the rounds that are closed."""
        self.opened: dict[int, dict[int, bytes]] = defaultdict(dict)
        """What members opened of the closed rounds."""

    def see(self, events: Sequence[Event]) -> None:
        """Look at the events of a call that succeeded, and at what the contract says after it."""
        majority: set[int] = set()
        for event in events:
            match event:
                case Event("LearnerRegistered"):
                    self.learners += 1
                case Event("GlobalWeightSet", (number, _)):
                    self.rejected[number] = set()
                    threshold = self.run.terms.threshold
                    assert number == 0 or len(self.opened[number - 1]) >= threshold, "no sum before enough is opened"
                case Event("MasksOpened", (number, node, opening)):
                    assert number in self.closed, "only closed rounds are opened"
                    assert node not in self.opened[number], "nobody opens a round twice"
                    self.opened[number][node] = opening
                case Event("RoundClosed", (number, *_)):
                    assert number not in self.closed, "a round closes once"
                    self.closed[number] = self.record(number)
                case Event("HeaderVoted", (ballot, node)):
                    assert node not in self.voters[ballot], "nobody votes twice"
                    self.voters[ballot].add(node)
                    majority = self.voters[ballot]
                case Event("GlobalWeightRejected", (number, node, *_)):
                    assert node not in self.rejected[number], "nobody rejects twice"
                    self.rejected[number].add(node)
                    majority = self.rejected[number]
                case Event("GlobalWeightWithdrawn", (number, _)):
                    assert 2 * len(self.rejected[number]) > self.learners, "only a majority withdraws"
                    self.closed = {earlier: one for earlier, one in self.closed.items() if earlier < number}
                    for later in [one for one in self.opened if one >= number]:
                        del self.opened[later]
                case Event("HeaderChanged"):
                    assert 2 * len(majority) > self.learners, "only a majority deposes"
        names = {event.name for event in events}
        self.look(withdrawn="GlobalWeightWithdrawn" in names, changed="HeaderChanged" in names)

    def look(self, *, withdrawn: bool = False, changed: bool = False) -> None:
        """Compare with what the contract said before."""
        round_, header = self.run.read("round"), self.run.read("header")
        assert round_ >= self.round or withdrawn, "a round goes back only by a withdrawal"
        assert header == self.header or changed, "a header changes only where the log says so"
        self.round, self.header = round_, header
        if withdrawn:
            self.look_at_closed_rounds()

    def look_at_closed_rounds(self) -> None:
        """Compare what is in closed rounds with what was in them when they closed."""
        for number, before in self.closed.items():
            assert self.record(number) == before, "the set of a closed round never changes"

    def record(self, number: int) -> list[object]:
        """What is in a round: all of it but the rejections of its global weights."""
        published, members, _, opened, closed = self.run.read("roundAt", number)
        return [published, members, opened, closed, *(self.run.read("localWeightAt", number, node) for node in NODES)]


class Calls:
    """Sends the same calls to a contract and to the model.

    What is called follows from a number that Hypothesis draws. Its own state machines leave out most kinds of calls
    in each sequence, so that few rounds would ever close.
    """

    TERMS = (
        Terms(learners=2),
        Terms(learners=3, minimum=2),
        Terms(learners=1, timeout=0),
        Terms(learners=3, timeout=0, asynchronous=True),
        Terms(learners=2, minimum=2, threshold=2),
        Terms(learners=3, minimum=2, threshold=2),
    )

    def __init__(self, w3: Web3, seed: int) -> None:
        self.w3 = w3
        self.random = Random(seed)
        terms = self.random.choice(self.TERMS)
        self.run = Deployment(w3, terms)
        self.model = Model(terms, HEADER.address, HEADER.address)
        self.promises = Promises(self.run)
        learners = list(enumerate(["alice", "bob", "mallory"][: terms.learners], 1))
        for node, name in learners[: self.random.choice([3, 3, 2, 2, 1, 0])]:
            self.both("header", "registerLearner", self.model.register, node, ACCOUNTS[name].address)

    def play(self) -> None:
        """Take some steps, and compare after each."""
        for _ in range(LONG_RUN):
            # What is right is more likely than each wrong thing, or few sequences would get anywhere.
            (step,) = self.random.choices(list(self.STEPS), list(self.STEPS.values()))
            step(self)
            self.the_state_agrees()
        self.every_getter_agrees()
        self.promises.look_at_closed_rounds()
        # No hash is lost: withdrawn ones and those that were replaced stay in the log.
        assert self.run.history() == self.model.events

    def both(self, caller: str, name: str, apply: Callable[..., None], *args: object) -> None:
        account = ACCOUNTS[caller]
        already = len(self.model.events)
        try:
            apply(account.address, *args)
        except Refused as refused:
            assert self.run.refused(account, name, *args) == refused.refusal
        else:
            events = self.run.events(self.run.write(account, name, *args)["logs"])
            self.stamp()
            assert events == self.model.events[already:]
            self.promises.see(events)

    def stamp(self) -> None:
        """Note the time of the block in which a round has opened or closed."""
        for one in self.model.rounds[-1:]:
            one.opened = self.run.now() if one.opened is None else one.opened
            one.closed = self.run.now() if one.closed is None else one.closed

    def mostly(self) -> bool:
        return self.random.random() < 0.8

    def hash(self) -> bytes:
        return self.random.choice(HASHES[1:] if self.mostly() else HASHES)

    def anyone(self) -> str:
        return self.random.choice(list(ACCOUNTS))

    def header(self) -> str:
        return next(name for name, account in ACCOUNTS.items() if account.address == self.model.header)

    def members(self) -> list[tuple[int, str]]:
        """Nodes and names of the learners, in the order of their registration."""
        names = {account.address: name for name, account in ACCOUNTS.items()}
        return [(node, names[address]) for node, address in self.model.accounts.items()]

    def some_members(self) -> list[tuple[int, str]]:
        """All learners, or some, in any order; now and then one twice."""
        members = self.members()
        some = self.random.sample(members, len(members) if self.mostly() else self.random.randint(0, len(members)))
        return [one for one in some for _ in range(1 if self.mostly() else 2)]

    def aimed(self) -> tuple[int, bytes]:
        """The current round or one near it, and its global weights or others."""
        offset = 0 if self.mostly() else self.random.choice([-2, -1, 1])
        number = max(0, self.model.round + offset)
        known = number < len(self.model.rounds)
        return number, self.model.rounds[number].hash if known and self.mostly() else HASHES[-1]

    def register(self) -> None:
        caller = self.header() if self.mostly() else self.anyone()
        account = self.random.choice([*(account.address for account in ACCOUNTS.values()), ZERO_ADDRESS])
        self.both(caller, "registerLearner", self.model.register, self.random.choice(NODES), account)

    def set_global(self) -> None:
        caller = self.header() if self.mostly() else self.anyone()
        self.both(caller, "setGlobalWeight", self.model.set_global, self.hash())

    def set_local(self) -> None:
        node = self.random.choice(NODES)
        self.both(self.anyone(), "setLocalWeight", self.model.set_local, node, self.hash())

    def all_publish(self) -> None:
        attests = self.mostly()
        for node, name in self.some_members():
            more = (*self.aimed(), attests) if self.mostly() else ()
            self.both(name, "setLocalWeight", self.model.set_local, node, self.hash(), *more)

    def publish_as_often_as_possible(self) -> None:
        for node, name in self.some_members()[:1]:
            for _ in range(LIMIT + 1):
                self.both(name, "setLocalWeight", self.model.set_local, node, self.hash())

    def close(self) -> None:
        if self.mostly() and self.model.terms.timeout and not self.model.late:
            tester = self.w3.provider.ethereum_tester
            tester.time_travel(self.run.now() + LONG + 1)
            tester.mine_block()
            self.model.late = True
        self.both(self.anyone(), "closeRound", self.model.close)

    def attest(self) -> None:
        self.both(self.anyone(), "attestGlobalWeight", self.model.attest, *self.aimed())

    def reject(self) -> None:
        aimed = self.aimed()
        self.both(self.anyone(), "rejectGlobalWeight", self.model.reject, *aimed, CODE, self.hash())

    def all_reject(self) -> None:
        aimed = self.aimed()
        for _, name in self.some_members():
            self.both(name, "rejectGlobalWeight", self.model.reject, *aimed, CODE, ZERO_HASH)

    def announce(self) -> None:
        number = len(self.model.rounds) if self.mostly() else self.random.randint(0, 3)
        for _, name in self.some_members():
            self.both(name, "announceKey", self.model.announce, number, self.hash())

    def open(self) -> None:
        number = self.model.round if self.mostly() else self.random.randint(0, 3)
        for name in [name for _, name in self.some_members()] if self.mostly() else [self.anyone()]:
            self.both(name, "openMasks", self.model.open, number, self.hash())

    def vote(self) -> None:
        ballot = self.model.ballot if self.mostly() else self.random.randint(0, self.model.ballot + 1)
        self.both(self.anyone(), "voteHeader", self.model.vote, ballot)

    def all_vote(self) -> None:
        ballot = self.model.ballot
        for _, name in self.some_members():
            self.both(name, "voteHeader", self.model.vote, ballot)

    STEPS: ClassVar[dict[Callable[["Calls"], None], int]] = {
        register: 2,
        set_global: 6,
        set_local: 2,
        all_publish: 6,
        publish_as_often_as_possible: 1,
        close: 2,
        announce: 3,
        open: 4,
        attest: 2,
        reject: 2,
        all_reject: 2,
        vote: 2,
        all_vote: 2,
    }

    def the_state_agrees(self) -> None:
        model = self.model
        current = model.rounds[-1] if model.rounds else Round(0, ZERO_HASH)
        state = len(model.rounds), current.hash, current.is_closed, model.header, model.ballot
        assert self.run.read("getState") == state

    def every_getter_agrees(self) -> None:
        read, model = self.run.read, self.model
        current = model.rounds[-1] if model.rounds else Round(0, ZERO_HASH)
        assert read("header") == model.header
        assert read("deployer") == HEADER.address
        assert read("plan") == PLAN
        assert read("round") == model.round
        assert read("learners") == list(model.accounts)
        assert read("getGlobalWeight") == current.hash
        for number in range(len(model.rounds) + 1):
            one = model.rounds[number] if number < len(model.rounds) else Round(2**24, ZERO_HASH, opened=0)
            published, rejections = len(one.local_weights), len(one.rejected)
            assert read("globalWeightAt", number) == one.hash
            assert read("roundAt", number) == (published, one.members, rejections, one.opened, one.closed)
            for node in NODES:
                assert read("openingAt", number, node) == one.openings.get(node, ZERO_HASH)
                assert read("keyAt", number + 1, node) == one.keys.get(node, ZERO_HASH)
                assert read("localWeightAt", number, node) == one.local_weights.get(node, ZERO_HASH)
        for node in NODES:
            assert read("keyAt", 0, node) == model.first_keys.get(node, ZERO_HASH)
        for address in [*ADDRESSES, ZERO_ADDRESS]:
            node = next((node for node, account in model.accounts.items() if account == address), 0)
            assert read("nodeIdOf", address) == node
        for node in NODES:
            assert read("accountOf", node) == model.accounts.get(node, ZERO_ADDRESS)
            assert read("getLocalWeight", node) == model.latest.get(node, ZERO_HASH)
            rejected = bool(model.rounds) and model.rejected.get(node, 0) == current.serial
            attested = bool(model.rounds) and model.attested.get(node, 0) >= current.serial and not rejected
            assert read("verdictOf", node) == (attested, rejected, node in model.voters)


@settings(
    max_examples=20,
    deadline=None,
    # A dozen calls can be read as they are.
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_any_sequence_of_calls_by_anyone_leaves_what_the_model_says(w3: Web3, seed: int) -> None:
    Calls(w3, seed).play()
