"""The contract of a run: its functions and its log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from eth_abi.exceptions import DecodingError
from web3 import Web3
from web3 import exceptions as web3_errors
from web3.contract.contract import ContractFunction

from fl_node.artifacts import cid
from fl_node.chain.abi import artifact, encoder, publication, signatures
from fl_node.chain.news import News
from fl_node.chain.node import LATEST, Head
from fl_node.chain.rpc import Request
from fl_node.chain.transactions import Receipt, Sender
from fl_node.errors import ChainError, ChainUnreachable, ContractError, LogError, Reverted
from fl_node.runtime import recursion

recursion.restore()

CALL_GAS = 200_000
REGISTRATION_GAS = 76_000
"""A bound of the gas that one more learner costs in a transaction that registers several."""
MAX_REGISTRATIONS = 50
"""The most learners that one transaction registers, so that it needs no more gas than the contract's deployment."""
LEARNER_REGISTERED, LOCAL_WEIGHT_SET, GLOBAL_WEIGHT_SET = "LearnerRegistered", "LocalWeightSet", "GlobalWeightSet"
ROUND_CLOSED, HEADER_VOTED, HEADER_CHANGED = "RoundClosed", "HeaderVoted", "HeaderChanged"
KEY_ANNOUNCED, MASKS_OPENED = "KeyAnnounced", "MasksOpened"
ATTESTED, REJECTED, WITHDRAWN = "GlobalWeightAttested", "GlobalWeightRejected", "GlobalWeightWithdrawn"
EVENTS = (
    LOCAL_WEIGHT_SET,
    ATTESTED,
    GLOBAL_WEIGHT_SET,
    ROUND_CLOSED,
    LEARNER_REGISTERED,
    REJECTED,
    WITHDRAWN,
    HEADER_VOTED,
    HEADER_CHANGED,
    MASKS_OPENED,
    KEY_ANNOUNCED,
)
"""The names of the contract's events."""
TURNS = tuple(name for name in EVENTS if name not in (LOCAL_WEIGHT_SET, ATTESTED))
"""Those after which the run goes on differently; of the others there is one for each learner and round."""
OUTDATED = frozenset(
    {
        "AlreadyAnnounced",
        "AlreadyJudged",
        "AlreadyOpened",
        "AlreadyVoted",
        "KeysAreMissing",
        "MasksAreClosed",
        "NotMember",
        "OtherWeights",
        "RoundIsClosed",
        "RoundIsOpen",
        "WrongBallot",
        "WrongRound",
    }
)
"""Custom errors of calls that came too late: another account acted first, and the caller reads the state again."""
MAX_CODE_CHARACTERS = 32
"""Maximum length of a rejection's code, in characters."""


@dataclass(frozen=True, order=True)
class LogEntry:
    """An event of the contract; events sort by block and log index.

    ``name`` is an element of :data:`EVENTS`. A field that the event lacks is None. ``round`` is the round of the
    local weights, or the round that starts from the global weights; ``account`` is a learner's or the new header's;
    ``code`` and ``evidence`` are the code of a rejection and the CID of its evidence; ``key`` is the public key that
    a learner announced.
    """

    block: int
    index: int
    name: str
    transaction: str
    round: int | None = None
    node_id: int | None = None
    cid: str | None = None
    account: str | None = None
    members: int | None = None
    code: str | None = None
    evidence: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class BlockId:
    """A block: its hash and its number."""

    hash: str
    number: int


@dataclass(frozen=True)
class Terms:
    """The settings of a plan that the contract enforces.

    A round closes by itself when ``learners`` learners have published; after ``round_timeout`` seconds (0: never)
    anyone can close it if ``min_learners`` have. The rounds of an asynchronous run never close. With masks,
    ``threshold`` members of a closed round must publish the shares that remove them (0: no masks).
    """

    learners: int = 1
    min_learners: int = 1
    round_timeout: int = 0
    asynchronous: bool = False
    threshold: int = 0


@dataclass(frozen=True)
class State:
    """The state of the contract.

    ``closed`` says whether the current round is closed, ``header`` is the account that may publish global weights,
    and ``ballot`` is the number of the current ballot on the header.
    """

    started: bool
    round: int
    global_cid: str | None
    closed: bool = False
    header: str | None = field(default=None, compare=False)
    ballot: int = 0


@dataclass(frozen=True)
class Verdict:
    """A learner's verdict on the current global weights, and whether it voted in the current ballot."""

    attested: bool
    rejected: bool
    voted: bool


@dataclass(frozen=True)
class RoundRecord:
    """The counters and times of a round.

    ``published`` learners have published local weights, ``members`` learners were registered when the round closed
    (0 while it is open), and ``rejections`` learners rejected the global weights that it started from.
    """

    published: int
    members: int
    rejections: int
    opened_at: int
    """Seconds since 1970, by the clock of the block's sealer."""
    closed_at: int
    """As ``opened_at``; 0 while the round is open."""


_NOTHING = RoundRecord(0, 0, 0, 0, 0)
"""The record of a round that has not started."""


@dataclass(frozen=True)
class ClosedRound:
    """A closed round as the contract recorded it.

    ``parent`` is the CID of the global weights that it started from, ``published`` has the CIDs of its local weights
    by nodeId, and ``members`` lists the learners that were registered when it closed. In a run with masks,
    ``openings`` has the CIDs of the files whose shares remove the masks, and ``keys`` the keys that learners
    announced in separate transactions for the next round, in hexadecimal digits; both by nodeId.
    """

    parent: str
    published: dict[int, str]
    members: tuple[int, ...]
    openings: dict[int, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """The contract's state at one block, as an account needs it.

    ``nonce`` is the number of the account's next transaction, ``learners`` are the registered nodeIds in ascending
    order, and ``node_id`` is the account's nodeId, if it has one. ``published`` is the CID of the local weights that
    the account published in the current round, and ``record`` has the round's counters; a learner has both.
    ``attested`` says of the learners asked for, by nodeId, whether they attested the round's global weights. A role
    reads everything else that its decision depends on at the same ``block`` (its hash). Sealers sometimes replace a
    block: a role that reads its nonce at one block and the effects of its transactions at another may send a
    transaction twice.
    """

    head: Head
    nonce: int
    state: State
    learners: tuple[int, ...]
    node_id: int | None
    published: str | None = None
    record: RoundRecord = _NOTHING
    attested: Mapping[int, bool] = field(default_factory=dict)

    @property
    def block(self) -> str:
        """The hash of the block."""
        return self.head.hash


Call = tuple[str, Sequence[Any]]
_STATE: Call = ("getState", [])
_PAPER = "setLocalWeight(uint256,bytes32)"
_PUBLISH = "setLocalWeight(uint256,bytes32,uint256,bytes32,bool)"


class Contract:
    """The contract of a run. Its methods take and return CIDs; the chain stores their digests."""

    closes_rounds = True
    """Whether the contract decides when a round closes, by the plan's terms; at first the header did."""

    def __init__(self, chain: Sender, address: str) -> None:
        self.chain = chain
        self.address = address
        self._functions = encoder().functions
        self._viewed: View | None = None
        """What the last view was, from which the next one's questions are guessed; never an answer."""

    def listen(self, on_publication: Callable[[str], None] | None = None, functions: Collection[str] = ()) -> None:
        """Subscribe to the node's blocks and to the contract's events, so that the role need not poll.

        A further call replaces the subscriptions of the call before.

        Parameters
        ----------
        on_publication
            Called with the CID of each file that a transaction publishes, before a block has the transaction, in
            another thread. Only a hint, because the block may never come.
        functions
            The functions whose files count; see :data:`fl_node.chain.abi.SET_LOCAL_WEIGHT`.
        """
        topics = [str(encoder().events[name]().topic) for name in TURNS]

        def see(call: bytes) -> None:
            published = publication(call)
            if on_publication is not None and published is not None and published[0] in functions:
                on_publication(published[1])

        if self.chain.news is not None:
            self.chain.news.close()
        self.chain.news = News(self.chain.rpc, self.address, topics, see if on_publication else None)
        self.chain.news.start()

    def has_known_code(self) -> bool:
        """Return whether the code on chain is this version's contract, so that its rules are known."""
        with self.chain.errors():
            code = bytearray(self.chain.web3.eth.get_code(Web3.to_checksum_address(self.address)))
        for constant in artifact()["immutableReferences"]:
            code[constant["start"] : constant["start"] + constant["length"]] = bytes(constant["length"])
        return bytes(code) == bytes.fromhex(artifact()["deployedBytecode"].removeprefix("0x"))

    def header(self) -> str:
        """Return the address of the account that may currently publish global weights."""
        return Web3.to_checksum_address(str(self._read("header")))

    def deployer(self) -> str:
        """Return the address of the account that deployed the contract, which was the first header."""
        return Web3.to_checksum_address(str(self._read("deployer")))

    def plan(self) -> str:
        """Return the CID of the plan."""
        return cid.from_digest(self._read("plan"))

    def round(self) -> int:
        """Return the current round."""
        return int(self._read("round"))

    def state(self) -> State:
        """Return the current state: the round, its global weights and the header."""
        return self._state(*self._read(_STATE[0]))

    def view(self, account: str, verdicts_of: Sequence[int] = ()) -> View:
        """Return the state from which a role decides, read at one block.

        A role that is killed and restarted decides by it again. Either it repeats the same transaction, with the same
        nonce, or the chain refuses the second transaction.

        Usually this takes one request: it asks which block is the newest, and for all values at the block that
        probably is. If another is the newest, or a round or nodeId was not foreseen, it asks again.

        Parameters
        ----------
        account
            The role's account.
        verdicts_of
            The nodeIds of learners of whom the role wants to know whether they attested the current global weights.

        Raises
        ------
        ChainUnreachable
            The node does not answer.
        """
        head: Head | None = None
        view: View | None = None
        calls = self._view_calls(account, verdicts_of)
        if (block := self.chain.likely_head()) is not None:
            try:
                newest, *answers = self.chain.ask(LATEST, *self._view_requests(account, calls, block))
            except ChainUnreachable:
                raise
            except ChainError:
                pass  # the node may no longer have this block
            else:
                head = self.chain.head_of(newest)
                view = self._view_of(head, calls, answers) if head.hash == block else None
        if view is None:
            head = head or self.chain.head()
            view = self._view_of(head, calls, self.chain.ask(*self._view_requests(account, calls, head.hash)))
        self._viewed = view
        return view

    def _view_calls(self, account: str, verdicts_of: Sequence[int]) -> list[Call]:
        """Return the calls of a view: also those of the round and the nodeId that the answers will probably name."""
        calls: list[Call] = [("learners", []), ("nodeIdOf", [account]), _STATE]
        calls += [("verdictOf", [node_id]) for node_id in verdicts_of]
        if (last := self._viewed) is not None and last.node_id is not None:
            for round_ in (last.state.round, last.state.round + 1):
                calls += _round_calls(round_, last.node_id)
        return calls

    def _view_requests(self, account: str, calls: Sequence[Call], block: str) -> list[Request]:
        nonce: Request = ("eth_getTransactionCount", [account, _at(block)])
        return [nonce, *(self._call(*call, at=block) for call in calls)]

    def _view_of(self, head: Head, calls: Sequence[Call], answers: Sequence[Any]) -> View:
        """Return the view at a block from the answers to its requests; ask for what was not foreseen."""
        nonce, *rest = answers
        results = self._results(calls, rest)
        known = {(name, *arguments): result for (name, arguments), result in zip(calls, results, strict=True)}
        learners, node_id, state = results[0], int(results[1]), self._state(*results[2])
        attested = {key[1]: Verdict(*result).attested for key, result in known.items() if key[0] == "verdictOf"}
        view = View(
            head,
            self.chain.quantity(nonce),
            state,
            tuple(sorted(learners)),
            node_id or None,
            attested=attested,
        )
        if not node_id or not state.started:
            return view
        wanted = _round_calls(state.round, node_id)
        if not all((name, *arguments) in known for name, arguments in wanted):
            record, published = self._read_all(*wanted, at=head.hash)
        else:
            record, published = (known[name, *arguments] for name, arguments in wanted)
        return replace(view, published=_cid(published), record=RoundRecord(*record))

    def _state(self, rounds: int, digest: bytes, closed: bool, header: str, ballot: int) -> State:
        return State(rounds > 0, max(rounds - 1, 0), _cid(digest), closed, Web3.to_checksum_address(header), ballot)

    def terms(self) -> Terms:
        """Return the settings that the contract enforces; one from before masks answers without the threshold."""
        call: Call = ("getTerms", ())
        (answer,) = self.chain.ask(self._call(*call))
        if isinstance(answer, str) and len(answer) == len("0x") + 4 * 64:
            answer += 64 * "0"
        return Terms(*self._results([call], [answer])[0])

    def verdict_of(self, node_id: int) -> Verdict:
        """Return a learner's verdict on the current global weights, and whether it voted in the current ballot."""
        return Verdict(*self._read("verdictOf", node_id))

    def round_at(self, round_: int) -> RoundRecord:
        """Return the counters and times of a round."""
        return RoundRecord(*self._read("roundAt", round_))

    def published_in(self, round_: int, digest: bytes) -> BlockId | None:
        """Return the block that published the global weights of a round, or None.

        Parameters
        ----------
        round_
            The round that starts from them.
        digest
            The digest of their file.
        """
        entries = self._entries(GLOBAL_WEIGHT_SET, "0x" + round_.to_bytes(32, "big").hex())
        blocks = [entry for entry in entries if bytes(entry["data"]) == digest]
        return (
            BlockId("0x" + bytes(blocks[-1]["blockHash"]).hex(), int(blocks[-1]["blockNumber"])) if blocks else None
        )

    def first_block_of(self, name: str) -> int | None:
        """Return the number of the block with the contract's first event of this name, or None."""
        return min((int(entry["blockNumber"]) for entry in self._entries(name)), default=None)

    def _entries(self, name: str, *indexed: str) -> list[Any]:
        """Return what the log has of an event with these first indexed fields."""
        topics = [encoder().events[name]().topic, *indexed]
        with self.chain.errors():
            entries = self.chain.web3.eth.get_logs(
                {
                    "address": Web3.to_checksum_address(self.address),
                    "fromBlock": 0,
                    "toBlock": "latest",
                    "topics": cast("Any", topics),
                }
            )
        expected = [bytes.fromhex(topic.removeprefix("0x")) for topic in topics]
        # The node may ignore the filter.
        entries = [entry for entry in entries if self._is_here(entry)]
        return [entry for entry in entries if [bytes(t) for t in entry["topics"][: len(expected)]] == expected]

    def _is_here(self, entry: Any) -> bool:
        return str(entry["address"]).lower() == self.address.lower()

    def attested_by(self, node_ids: Sequence[int], block: str | None = None) -> frozenset[int]:
        """Return which of these learners attested the current global weights, with one request.

        Parameters
        ----------
        node_ids
            The learners.
        block
            The hash of the block whose state counts; the newest if None.
        """
        verdicts = self._read_all(*(("verdictOf", [node_id]) for node_id in node_ids), at=block)
        return frozenset(
            node_id for node_id, verdict in zip(node_ids, verdicts, strict=True) if Verdict(*verdict).attested
        )

    def verdicts_on(self, round_: int, node_ids: Sequence[int], block: BlockId) -> tuple[frozenset[int], int] | None:
        """Return which of these learners attested the current global weights, and how many of all rejected them.

        Takes one request.

        Parameters
        ----------
        round_
            The round that starts from these weights.
        node_ids
            The learners.
        block
            A block that must still be part of the chain; if it is not, the result is None.
        """
        calls: list[Call] = [("roundAt", [round_]), *(("verdictOf", [node_id]) for node_id in node_ids)]
        there, *answers = self.chain.ask(
            ("eth_getBlockByNumber", [hex(block.number), False]), *(self._call(*call) for call in calls)
        )
        if there is None or there.get("hash") != block.hash:
            return None
        record, *verdicts = self._results(calls, answers)
        attested = (node_id for node_id, v in zip(node_ids, verdicts, strict=True) if Verdict(*v).attested)
        return frozenset(attested), RoundRecord(*record).rejections

    def members(self, round_: int, block: str | None = None) -> list[int]:
        """Return the nodeIds that were registered when a round closed, or are now if it is open, in ascending order.

        Parameters
        ----------
        round_
            The round.
        block
            The hash of the block whose state counts; the newest if None.
        """
        record, learners = self._read_all(("roundAt", [round_]), ("learners", []), at=block)
        closed = RoundRecord(*record)
        return sorted(learners[: closed.members] if closed.closed_at else learners)

    def closed_round(self, round_: int, ended_with: str, *, masked: bool = True) -> ClosedRound | None:
        """Return a closed round, read at one block; None if it is open there or ended with other weights.

        Sealers sometimes replace a block. Values that are read at two blocks may never have been true together.

        Parameters
        ----------
        round_
            The round.
        ended_with
            The CID of the global weights that ended it.
        masked
            Whether the run has masks; then openings and keys are read too.
        """
        head = self.chain.head().hash
        record, learners, parent, current = self._read_all(
            ("roundAt", [round_]),
            ("learners", []),
            ("globalWeightAt", [round_]),
            ("globalWeightAt", [round_ + 1]),
            at=head,
        )
        closed = RoundRecord(*record)
        if _cid(current) != ended_with or not closed.closed_at:
            return None
        members = sorted(learners[: closed.members])
        openings, keys = self.openings_and_next_keys(round_, members, head) if masked else ({}, {})
        published = self.local_weights(round_, members, head)
        return ClosedRound(str(_cid(parent)), published, tuple(members), openings, keys)

    def openings_and_next_keys(
        self, round_: int, node_ids: Sequence[int], block: str | None = None
    ) -> tuple[dict[int, str], dict[int, str]]:
        """Return learners' openings of a round and their keys for the next round, with one request.

        Both are by nodeId and leave out learners that published none. Openings are CIDs, keys are in hexadecimal
        digits.

        Parameters
        ----------
        round_
            The round.
        node_ids
            The learners.
        block
            The hash of the block whose state counts; the newest if None.
        """
        openings, keys = self._by_node_id(node_ids, ("openingAt", round_), ("keyAt", round_ + 1), at=block)
        return (
            {node_id: cid.from_digest(digest) for node_id, digest in openings.items()},
            {node_id: key.hex() for node_id, key in keys.items()},
        )

    def opening_at(self, round_: int, node_id: int, block: str | None = None) -> str | None:
        """Return the CID of the file whose shares remove masks from a round, as a learner published it, or None.

        Parameters
        ----------
        round_
            The round.
        node_id
            The learner's nodeId.
        block
            The hash of the block whose state counts; the newest if None.
        """
        return _cid(self._read("openingAt", round_, node_id, at=block))

    def keys(self, round_: int, node_ids: Sequence[int], block: str | None = None) -> dict[int, str]:
        """Return the keys that learners announced for a round, in hexadecimal digits, by nodeId.

        Parameters
        ----------
        round_
            The round that the keys are for.
        node_ids
            The learners.
        block
            The hash of the block whose state counts; the newest if None.
        """
        (keys,) = self._by_node_id(node_ids, ("keyAt", round_), at=block)
        return {node_id: key.hex() for node_id, key in keys.items()}

    def global_weight_at(self, round_: int) -> str | None:
        """Return the CID of the global weights that a round started from, or None."""
        return _cid(self._read("globalWeightAt", round_))

    def local_weight_at(self, round_: int, node_id: int, block: str | None = None) -> str | None:
        """Return the CID of the local weights that a learner published in a round, or None.

        Parameters
        ----------
        round_
            The round.
        node_id
            The learner's nodeId.
        block
            The hash of the block whose state counts; the newest if None.
        """
        return _cid(self._read("localWeightAt", round_, node_id, at=block))

    def local_weights(self, round_: int, node_ids: Sequence[int], block: str | None = None) -> dict[int, str]:
        """Return the CIDs of the local weights that learners published in a round, by nodeId, with one request.

        Parameters
        ----------
        round_
            The round.
        node_ids
            The learners.
        block
            The hash of the block whose state counts; the newest if None.
        """
        (digests,) = self._by_node_id(node_ids, ("localWeightAt", round_), at=block)
        return {node_id: cid.from_digest(digest) for node_id, digest in digests.items()}

    def learners(self) -> list[int]:
        """Return the registered nodeIds in ascending order."""
        return sorted(self._read("learners"))

    def account_of(self, node_id: int, block: str | None = None) -> str | None:
        """Return the account of a node, or None."""
        account = str(self._read("accountOf", node_id, at=block))
        return None if int(account, 16) == 0 else Web3.to_checksum_address(account)

    def node_id_of(self, account: str) -> int | None:
        """Return the nodeId that an account is registered for, or None."""
        return int(self._read("nodeIdOf", account)) or None

    def register_learner(self, node_id: int, account: str, nonce: int) -> Receipt | None:
        """Register a learner's account. Only the header may call this.

        Parameters
        ----------
        node_id
            The learner's nodeId, from 1.
        account
            The address of its account.
        nonce
            The number of the header's transaction.

        Returns
        -------
        Receipt or None
            None as for :meth:`set_local_weight`.
        """
        return self._transact(self._functions.registerLearner(node_id, Web3.to_checksum_address(account)), nonce)

    def register_learners(self, accounts: Mapping[int, str], nonce: int) -> Receipt | None:
        """Register the accounts of several learners in one transaction. Only the header may call this.

        Parameters
        ----------
        accounts
            The address of each learner's account by nodeId, at most :data:`MAX_REGISTRATIONS`.
        nonce
            The number of the header's transaction.

        Returns
        -------
        Receipt or None
            None as for :meth:`set_local_weight`.
        """
        addresses = [Web3.to_checksum_address(account) for account in accounts.values()]
        function = self._functions.registerLearners(list(accounts), addresses)
        return self._transact(function, nonce, gas=CALL_GAS + REGISTRATION_GAS * len(addresses))

    def accounts_of(self, node_ids: Sequence[int], block: str | None = None) -> dict[int, str]:
        """Return the accounts of those nodes that are registered, by nodeId, from one request.

        Parameters
        ----------
        node_ids
            The nodes.
        block
            The hash of the block whose state counts; the newest if None.
        """
        accounts = self._read_all(*(("accountOf", [node_id]) for node_id in node_ids), at=block)
        found = zip(node_ids, map(str, accounts), strict=True)
        return {node_id: Web3.to_checksum_address(account) for node_id, account in found if int(account, 16)}

    def set_local_weight(
        self,
        node_id: int,
        file_cid: str,
        nonce: int,
        *,
        trained_from: tuple[int, str] | None = None,
        attests: bool = True,
    ) -> Receipt | None:
        """Publish local weights. Only the learner with this nodeId may call this.

        Parameters
        ----------
        node_id
            The learner's nodeId.
        file_cid
            The CID of the local file.
        nonce
            The number of the learner's transaction.
        trained_from
            The round of the global weights that they were trained from, and their CID; if None, those of the round
            that is current when the transaction is sealed (the paper's call).
        attests
            Whether the learner has verified those global weights, and attests them.

        Returns
        -------
        Receipt or None
            None if no block included the transaction in time, if another transaction used its nonce, or if the call
            came too late (:data:`OUTDATED`); the caller reads the state again.
        """
        if trained_from is None:
            return self._transact(self._functions[_PAPER](node_id, cid.to_digest(file_cid)), nonce)
        round_, parent = trained_from
        function = self._functions[_PUBLISH]
        return self._transact(
            function(node_id, cid.to_digest(file_cid), round_, cid.to_digest(parent), attests), nonce
        )

    def set_global_weight(self, file_cid: str, nonce: int) -> Receipt | None:
        """Publish global weights; header only. Returns as :meth:`set_local_weight` does."""
        return self._transact(self._functions.setGlobalWeight(cid.to_digest(file_cid)), nonce)

    def close_round(self, nonce: int) -> Receipt | None:
        """Close the current round after its timeout. Returns as :meth:`set_local_weight` does."""
        # A simulation sees the time of the newest block, which may be old on an idle chain.
        return self._transact(self._functions.closeRound(), nonce, simulate=False)

    def attest(self, round_: int, global_cid: str, nonce: int) -> Receipt | None:
        """Attest global weights; learners only.

        Parameters
        ----------
        round_
            The round that starts from these weights.
        global_cid
            Their CID.
        nonce
            The number of the learner's transaction.

        Returns
        -------
        Receipt or None
            As for :meth:`set_local_weight`.
        """
        return self._transact(self._functions.attestGlobalWeight(round_, cid.to_digest(global_cid)), nonce)

    def reject(
        self, round_: int, global_cid: str, nonce: int, *, code: str, evidence: str | None = None
    ) -> Receipt | None:
        """Reject global weights; learners only.

        Parameters
        ----------
        round_
            The round that starts from these weights.
        global_cid
            Their CID.
        nonce
            The number of the learner's transaction.
        code
            The reason: the name of a field or of a check; cut to :data:`MAX_CODE_CHARACTERS`.
        evidence
            The CID of the file that should have been published, or about which the header made a false statement.

        Returns
        -------
        Receipt or None
            As for :meth:`set_local_weight`.
        """
        code_bytes = code.encode("ascii", "replace")[:MAX_CODE_CHARACTERS].ljust(MAX_CODE_CHARACTERS, b"\0")
        evidence_digest = cid.to_digest(evidence) if evidence else cid.EMPTY_DIGEST
        return self._transact(
            self._functions.rejectGlobalWeight(round_, cid.to_digest(global_cid), code_bytes, evidence_digest), nonce
        )

    def announce_key(self, round_: int, key: bytes, nonce: int) -> Receipt | None:
        """Announce the public key of this learner's masks in the next round.

        Parameters
        ----------
        round_
            The next round.
        key
            The X25519 public key, 32 bytes.
        nonce
            The number of the learner's transaction.

        Returns
        -------
        Receipt or None
            As for :meth:`set_local_weight`.
        """
        return self._transact(self._functions.announceKey(round_, key), nonce)

    def open_masks(self, round_: int, file_cid: str, nonce: int) -> Receipt | None:
        """Publish the shares that remove masks from a closed round; its members only.

        Parameters
        ----------
        round_
            The round.
        file_cid
            The CID of the file with the learner's shares.
        nonce
            The number of the learner's transaction.

        Returns
        -------
        Receipt or None
            As for :meth:`set_local_weight`.
        """
        return self._transact(self._functions.openMasks(round_, cid.to_digest(file_cid)), nonce)

    def vote(self, ballot: int, nonce: int) -> Receipt | None:
        """Vote to replace the header; learners only. Returns as :meth:`set_local_weight` does."""
        return self._transact(self._functions.voteHeader(ballot), nonce)

    def log(self, first: int = 0) -> list[LogEntry]:
        """Return all events of the contract from block ``first`` on, in the order of the log."""
        with self.chain.errors():
            entries = self.chain.web3.eth.get_logs(
                {"address": Web3.to_checksum_address(self.address), "fromBlock": first, "toBlock": "latest"}
            )
            return sorted(self._entry(entry) for entry in entries)

    def _entry(self, entry: Any) -> LogEntry:
        invalid = f"contract {self.address} has an invalid event in block {entry['blockNumber']}"
        if not self._is_here(entry):
            raise LogError(f"{invalid}: it is of contract {entry['address']}")
        for name in EVENTS:
            event = encoder().events[name]()
            if entry["topics"] and bytes(entry["topics"][0]) == bytes.fromhex(event.topic.removeprefix("0x")):
                try:
                    args = event.process_log(entry)["args"]
                except (web3_errors.Web3Exception, DecodingError, ValueError) as error:
                    raise LogError(f"{invalid}: {error}") from error
                return LogEntry(
                    block=entry["blockNumber"],
                    index=entry["logIndex"],
                    name=name,
                    transaction="0x" + bytes(entry["transactionHash"]).hex(),
                    round=args.get("round"),
                    node_id=args.get("nodeId"),
                    cid=cid.from_digest(args["hash"]) if "hash" in args else None,
                    account=args.get("account", args.get("header")),
                    members=args.get("members"),
                    code=_rejection_code(args["code"]) if "code" in args else None,
                    evidence=_cid(args["evidence"]) if "evidence" in args else None,
                    key=bytes(args["key"]).hex() if "key" in args else None,
                )
        raise LogError(invalid)

    def _read(self, name: str, *arguments: Any, at: str | None = None) -> Any:
        return self._read_all((name, arguments), at=at)[0]

    def _read_all(self, *calls: Call, at: str | None = None) -> list[Any]:
        return self._results(calls, self.chain.ask(*(self._call(*call, at=at) for call in calls)))

    def _by_node_id(
        self, node_ids: Sequence[int], *mappings: tuple[str, int], at: str | None
    ) -> list[dict[int, bytes]]:
        """Return the nonzero values of mappings, each a function of round and nodeId, with one request."""
        calls: list[Call] = [(name, [round_, node_id]) for name, round_ in mappings for node_id in node_ids]
        values = iter(self._read_all(*calls, at=at))
        by_node_id = [dict(zip(node_ids, values, strict=False)) for _ in mappings]
        return [{node_id: value for node_id, value in mapping.items() if any(value)} for mapping in by_node_id]

    def _call(self, name: str, arguments: Sequence[Any], at: str | None = None) -> Request:
        selector, inputs, _ = signatures()[name]
        data = selector + self.chain.web3.codec.encode(inputs, arguments)
        return "eth_call", [{"to": self.address, "data": "0x" + data.hex()}, _at(at)]

    def _results(self, calls: Sequence[Call], answers: Sequence[str | None]) -> list[Any]:
        results = []
        for (name, _), answer in zip(calls, answers, strict=True):
            if not answer or answer == "0x":
                raise ChainError(f"contract {self.address} did not answer {name}: no result")
            if not isinstance(answer, str):
                raise ChainError(f"contract {self.address} did not answer {name}: the result is not a text")
            outputs = signatures()[name][2]
            try:
                values = self.chain.web3.codec.decode(outputs, bytes.fromhex(answer.removeprefix("0x")))
                results.append(values[0] if len(values) == 1 else values)
            except (DecodingError, ValueError, OverflowError) as error:
                raise ChainError(f"contract {self.address} did not answer {name}: {error}") from error
        return results

    def _transact(
        self, function: ContractFunction, nonce: int, *, simulate: bool = True, gas: int = CALL_GAS
    ) -> Receipt | None:
        with self.chain.errors():
            data = function._encode_transaction_data()
        try:
            # A simulation gives the custom error, and saves a transaction that the contract would refuse.
            try:
                return self.chain.send(self.address, data, gas, nonce, simulate=simulate)
            except Reverted:
                # Another transaction came first in the block; a simulation now gives the reason.
                self._simulate(data)
                return None
        except ContractError as error:
            if error.name in OUTDATED:
                return None
            raise

    def _simulate(self, data: Any) -> None:
        """Call a function without a transaction.

        Raises
        ------
        ContractError
            The contract refuses the call.
        """
        self.chain.ask(("eth_call", [{"from": self.chain.address, "to": self.address, "data": data}, "latest"]))


def _round_calls(round_: int, node_id: int) -> list[Call]:
    """Return the calls for the counters of a round and the local weights that a learner published in it."""
    return [("roundAt", [round_]), ("localWeightAt", [round_, node_id])]


def _at(block: str | None) -> str | dict[str, str]:
    """Return the block parameter of the RPC (EIP-1898): the block with this hash, or the newest."""
    return {"blockHash": block} if block else "latest"


def _cid(digest: bytes) -> str | None:
    return None if digest == cid.EMPTY_DIGEST else cid.from_digest(digest)


def _rejection_code(code: bytes) -> str:
    return code.rstrip(b"\0").decode("ascii", "replace")
