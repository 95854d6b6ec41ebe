"""One run's contract: its functions, and its log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from eth_abi.exceptions import DecodingError
from web3 import Web3
from web3 import exceptions as web3_errors
from web3.contract.contract import ContractFunction

from fl_node.artifacts import cid
from fl_node.chain.abi import artifact, signatures
from fl_node.chain.node import Head
from fl_node.chain.rpc import Request
from fl_node.chain.transactions import Receipt, Sender
from fl_node.errors import ChainError, ContractError, LogError, Reverted
from fl_node.runtime import recursion

recursion.restore()

CALL_GAS = 200_000
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
OUTDATED = frozenset(
    {
        "AlreadyAnnounced",
        "AlreadyJudged",
        "AlreadyOpened",
        "AlreadyVoted",
        "KeysAreMissing",
        "MasksAreClosed",
        "OtherWeights",
        "RoundIsClosed",
        "RoundIsOpen",
        "WrongBallot",
        "WrongRound",
    }
)
"""The custom errors of calls that came too late: somebody else acted first, so the caller reads the state again."""
EVIDENCE_CHARACTERS = 32
"""The most characters of the code of a rejection."""


@dataclass(frozen=True, order=True)
class LogEntry:
    """One event of the contract, in the order of block and log index.

    ``name`` is one of :data:`EVENTS`; what an event does not have is None. ``round`` is that of the local weights or
    of the round that starts from the global weights; ``account`` is a learner's or the new header's; ``code`` is what
    a rejection names, and ``evidence`` the CID of its evidence; ``key`` is a public key that a learner announced.
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
class Terms:
    """The settings of a plan that the contract enforces.

    ``learners`` must publish before a round closes by itself; after ``round_timeout`` seconds (0: never) anyone can
    close it if ``min_learners`` have. The rounds of an asynchronous run never close. With masks, ``threshold``
    members of a closed round must publish what removes them (0: no masks).
    """

    learners: int = 1
    min_learners: int = 1
    round_timeout: int = 0
    asynchronous: bool = False
    threshold: int = 0


@dataclass(frozen=True)
class State:
    """What the contract says now.

    ``closed`` is whether the current round is closed, ``header`` the account that may publish global weights, and
    ``ballot`` the number of the current ballot on it.
    """

    started: bool
    round: int
    global_cid: str | None
    closed: bool = False
    header: str | None = field(default=None, compare=False)
    ballot: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a learner has said last: of the current global weights, and in the current ballot on the header."""

    attested: bool
    rejected: bool
    voted: bool


@dataclass(frozen=True)
class RoundRecord:
    """How a round stands.

    ``published`` learners have published in it; ``members`` were registered when it closed, 0 while it is open;
    ``rejections`` of the global weights that it started from.
    """

    published: int
    members: int
    rejections: int
    opened_at: int
    """In seconds since 1970, by the clock of the block's sealer."""
    closed_at: int
    """Likewise; 0 while it is open."""


@dataclass(frozen=True)
class ClosedRound:
    """A closed round as the contract fixed it.

    ``parent`` is the CID of the global weights that it started from, ``published`` are those of its local weights by
    nodeId, and ``members`` the learners that were registered when it closed. In a run with masks ``openings`` are the
    CIDs of what removes them, and ``keys`` what learners announced on their own for the next round, in hexadecimal
    digits; both are by nodeId.
    """

    parent: str
    published: dict[int, str]
    members: tuple[int, ...]
    openings: dict[int, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What the contract shows an account at one block.

    ``nonce`` is the number of the account's next transaction, ``learners`` are the registered nodeIds in ascending
    order, ``node_id`` is the account's own, if it has one. What else a decision hangs on is to be read at the same
    ``block`` (its hash): sealers replace a block by another now and then, and who reads the number of the next
    transaction in one and misses what it sent before in the other would send that twice.
    """

    head: Head
    nonce: int
    state: State
    learners: tuple[int, ...]
    node_id: int | None

    @property
    def block(self) -> str:
        """The hash of the block."""
        return self.head.hash


Call = tuple[str, Sequence[Any]]
_STATE: Call = ("getState", [])
_PAPER = "setLocalWeight(uint256,bytes32)"
_PUBLISH = "setLocalWeight(uint256,bytes32,uint256,bytes32,bool)"


class Contract:
    """One run's contract; CIDs go in and come out, where the chain has digests."""

    def __init__(self, chain: Sender, address: str) -> None:
        self.chain = chain
        self.address = address
        self._contract = chain.web3.eth.contract(Web3.to_checksum_address(address), abi=artifact()["abi"])
        self._functions = self._contract.functions

    def has_known_code(self) -> bool:
        """Return whether what stands on chain is this version's contract, so that its rules are those promised."""
        with self.chain.errors():
            code = bytearray(self.chain.web3.eth.get_code(Web3.to_checksum_address(self.address)))
        for place in artifact()["immutableReferences"]:
            code[place["start"] : place["start"] + place["length"]] = bytes(place["length"])
        return bytes(code) == bytes.fromhex(artifact()["deployedBytecode"].removeprefix("0x"))

    def header(self) -> str:
        """Return the address of the account that may publish global weights now."""
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
        """Return the current round, its global weights, and who is the header."""
        return self._state(*self._read(_STATE[0]))

    def look(self, account: str) -> View:
        """Return what a role decides by, as it concerns an account.

        What a process sends and its successor, when it was killed, sends again by this is one transaction, or the
        second is refused.
        """
        head = self.chain.head()
        calls: list[Call] = [("learners", []), ("nodeIdOf", [account]), _STATE]
        nonce, *answers = self.chain.ask(
            ("eth_getTransactionCount", [account, _at(head.hash)]),
            *(self._call(*call, at=head.hash) for call in calls),
        )
        learners, node_id, state = self._results(calls, answers)
        return View(
            head, self.chain.quantity(nonce), self._state(*state), tuple(sorted(learners)), int(node_id) or None
        )

    def _state(self, rounds: int, digest: bytes, closed: bool, header: str, ballot: int) -> State:
        return State(rounds > 0, max(rounds - 1, 0), _cid(digest), closed, Web3.to_checksum_address(header), ballot)

    def terms(self) -> Terms:
        """Return the settings that the contract enforces."""
        return Terms(*self._read("getTerms"))

    def verdict_of(self, node_id: int) -> Verdict:
        """Return what a learner has said of the current global weights and in the current ballot."""
        return Verdict(*self._read("verdictOf", node_id))

    def round_at(self, round_: int) -> RoundRecord:
        """Return how a round stands."""
        return RoundRecord(*self._read("roundAt", round_))

    def published_in(self, round_: int, digest: bytes) -> str | None:
        """Return the hash of the block that published the global weights of a round, or None.

        Parameters
        ----------
        round_
            The round that starts from them.
        digest
            The digest of their file.
        """
        event = self._contract.events[GLOBAL_WEIGHT_SET]()
        topics = [event.topic, "0x" + round_.to_bytes(32, "big").hex()]
        with self.chain.errors():
            entries = self.chain.web3.eth.get_logs(
                {
                    "address": Web3.to_checksum_address(self.address),
                    "fromBlock": 0,
                    "toBlock": "latest",
                    "topics": cast("Any", topics),
                }
            )
        wanted = [bytes.fromhex(one.removeprefix("0x")) for one in topics]
        # A chain may ignore topics.
        blocks = [
            bytes(one["blockHash"])
            for one in entries
            if [bytes(topic) for topic in one["topics"]] == wanted and bytes(one["data"]) == digest
        ]
        return "0x" + blocks[-1].hex() if blocks else None

    def attested_by(self, node_ids: Sequence[int]) -> frozenset[int]:
        """Return which of these learners attested the current global weights, from one request."""
        verdicts = self._read_all(*(("verdictOf", [node_id]) for node_id in node_ids))
        return frozenset(n for n, one in zip(node_ids, verdicts, strict=True) if Verdict(*one).attested)

    def members(self, round_: int, block: str | None = None) -> list[int]:
        """Return the nodeIds that were registered when a round closed, in ascending order; all now if it is open.

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

    def closed_round(self, round_: int, ended_with: str) -> ClosedRound | None:
        """Return a closed round as one block shows it; None if the newest block does not show that it ended so.

        Sealers replace a block by another now and then. What is read in two of them may never have been true.

        Parameters
        ----------
        round_
            The round.
        ended_with
            The CID of the global weights that ended it.
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
        openings, keys = self.masks(round_, members, head)
        published = self.local_weights(round_, members, head)
        return ClosedRound(str(_cid(parent)), published, tuple(members), openings, keys)

    def masks(
        self, round_: int, node_ids: Sequence[int], block: str | None = None
    ) -> tuple[dict[int, str], dict[int, str]]:
        """Return what learners published to remove masks, and the keys that they announced for the next round.

        Parameters
        ----------
        round_
            The round.
        node_ids
            The learners.
        block
            The hash of the block whose state counts; the newest if None.
        """
        calls: list[Call] = [("openingAt", [round_, node_id]) for node_id in node_ids]
        calls += [("keyAt", [round_ + 1, node_id]) for node_id in node_ids]
        answers = self._read_all(*calls, at=block) if calls else []
        openings = {n: _cid(one) for n, one in zip(node_ids, answers[: len(node_ids)], strict=True)}
        keys = {n: bytes(one).hex() for n, one in zip(node_ids, answers[len(node_ids) :], strict=True)}
        return (
            {n: name for n, name in openings.items() if name},
            {n: key for n, key in keys.items() if int(key, 16)},
        )

    def opening_at(self, round_: int, node_id: int, block: str | None = None) -> str | None:
        """Return the CID of what a learner published to remove masks from a round, or None.

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

    def key_at(self, round_: int, node_id: int, block: str | None = None) -> str | None:
        """Return the key that a learner announced on its own for a round, in hexadecimal digits, or None.

        Parameters
        ----------
        round_
            The round that the key is for.
        node_id
            The learner's nodeId.
        block
            The hash of the block whose state counts; the newest if None.
        """
        key = bytes(self._read("keyAt", round_, node_id, at=block))
        return key.hex() if any(key) else None

    def first_keys(self, node_ids: Sequence[int], block: str | None = None) -> dict[int, str]:
        """Return the keys that learners announced for round 0, in hexadecimal digits, by nodeId."""
        answers = self._read_all(*(("keyAt", [0, node_id]) for node_id in node_ids), at=block) if node_ids else []
        keys = {n: bytes(one).hex() for n, one in zip(node_ids, answers, strict=True)}
        return {n: key for n, key in keys.items() if int(key, 16)}

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
        """Return the CIDs that these learners published in a round, by nodeId, from one request.

        Parameters
        ----------
        round_
            The round.
        node_ids
            The learners.
        block
            The hash of the block whose state counts; the newest if None.
        """
        digests = self._read_all(*(("localWeightAt", [round_, node_id]) for node_id in node_ids), at=block)
        found = {node_id: _cid(digest) for node_id, digest in zip(node_ids, digests, strict=True)}
        return {node_id: name for node_id, name in found.items() if name}

    def learners(self) -> list[int]:
        """Return the nodeIds that are registered, in ascending order."""
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
            None if no block included the transaction in time, if another transaction with its number came first, or
            if the contract is past this (:data:`OUTDATED`); the caller reads the state again.
        """
        if trained_from is None:
            return self._transact(self._contract.functions[_PAPER](node_id, cid.to_digest(file_cid)), nonce)
        round_, parent = trained_from
        function = self._contract.functions[_PUBLISH]
        return self._transact(
            function(node_id, cid.to_digest(file_cid), round_, cid.to_digest(parent), attests), nonce
        )

    def set_global_weight(self, file_cid: str, nonce: int) -> Receipt | None:
        """Publish global weights; header only. Returns as :meth:`set_local_weight` does."""
        return self._transact(self._functions.setGlobalWeight(cid.to_digest(file_cid)), nonce)

    def close_round(self, nonce: int) -> Receipt | None:
        """Close the current round after its timeout. Returns as :meth:`set_local_weight` does."""
        # A call would be judged by the time of the newest block, which may be old on a chain that is idle.
        return self._transact(self._functions.closeRound(), nonce, tried=False)

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
            What is wrong: the name of a field or of a check; cut to :data:`EVIDENCE_CHARACTERS`.
        evidence
            The CID of the file that should have been published, or that the header lied about.

        Returns
        -------
        Receipt or None
            As for :meth:`set_local_weight`.
        """
        short = code.encode("ascii", "replace")[:EVIDENCE_CHARACTERS].ljust(EVIDENCE_CHARACTERS, b"\0")
        proof = cid.to_digest(evidence) if evidence else cid.EMPTY_DIGEST
        return self._transact(
            self._functions.rejectGlobalWeight(round_, cid.to_digest(global_cid), short, proof), nonce
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
        """Publish what removes masks from a closed round; its members only.

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
        """Return all events of the contract from a block on, in the order in which they came about."""
        with self.chain.errors():
            entries = self.chain.web3.eth.get_logs(
                {"address": Web3.to_checksum_address(self.address), "fromBlock": first, "toBlock": "latest"}
            )
            return sorted(self._entry(entry) for entry in entries)

    def _entry(self, entry: Any) -> LogEntry:
        strange = f"contract {self.address} has an invalid event in block {entry['blockNumber']}"
        for name in EVENTS:
            event = self._contract.events[name]()
            if entry["topics"] and bytes(entry["topics"][0]) == bytes.fromhex(event.topic.removeprefix("0x")):
                try:
                    args = event.process_log(entry)["args"]
                except (web3_errors.Web3Exception, DecodingError, ValueError) as error:
                    raise LogError(f"{strange}: {error}") from error
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
                    code=_text(args["code"]) if "code" in args else None,
                    evidence=_cid(args["evidence"]) if "evidence" in args else None,
                    key=bytes(args["key"]).hex() if "key" in args else None,
                )
        raise LogError(strange)

    def _read(self, name: str, *arguments: Any, at: str | None = None) -> Any:
        return self._read_all((name, arguments), at=at)[0]

    def _read_all(self, *calls: Call, at: str | None = None) -> list[Any]:
        return self._results(calls, self.chain.ask(*(self._call(*call, at=at) for call in calls)))

    def _call(self, name: str, arguments: Sequence[Any], at: str | None = None) -> Request:
        selector, inputs, _ = signatures()[name]
        data = selector + self.chain.web3.codec.encode(inputs, arguments)
        return "eth_call", [{"to": self.address, "data": "0x" + data.hex()}, _at(at)]

    def _results(self, calls: Sequence[Call], answers: Sequence[str | None]) -> list[Any]:
        results = []
        for (name, _), answer in zip(calls, answers, strict=True):
            if not answer or answer == "0x":
                raise ChainError(f"contract {self.address} did not answer {name}: no result")
            outputs = signatures()[name][2]
            try:
                values = self.chain.web3.codec.decode(outputs, bytes.fromhex(answer.removeprefix("0x")))
                results.append(values[0] if len(values) == 1 else values)
            except (DecodingError, ValueError, AttributeError, OverflowError) as error:
                raise ChainError(f"contract {self.address} did not answer {name}: {error}") from error
        return results

    def _transact(self, function: ContractFunction, nonce: int, *, tried: bool = True) -> Receipt | None:
        with self.chain.errors():
            data = function._encode_transaction_data()
        try:
            # A call first: what the contract refuses is not sent, and its custom error is known.
            if tried:
                self._try(data)
            try:
                return self.chain.send(self.address, data, CALL_GAS, nonce)
            except Reverted:
                # Something came first in its block; the reason is what the contract says now.
                self._try(data)
                return None
        except ContractError as error:
            if error.name in OUTDATED:
                return None
            raise

    def _try(self, data: Any) -> None:
        """Call a function without a transaction.

        Raises
        ------
        ContractError
            The contract refuses the call.
        """
        self.chain.ask(("eth_call", [{"from": self.chain.address, "to": self.address, "data": data}, "latest"]))


def _at(block: str | None) -> str | dict[str, str]:
    """Return what the RPC calls a block of this hash (EIP-1898), or the newest."""
    return {"blockHash": block} if block else "latest"


def _cid(digest: bytes) -> str | None:
    return None if digest == cid.EMPTY_DIGEST else cid.from_digest(digest)


def _text(code: bytes) -> str:
    return code.rstrip(b"\0").decode("ascii", "replace")
