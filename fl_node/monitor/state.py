"""What can be seen of a run at one moment: nodes, rounds, blocks, in values that nothing changes afterwards.

Nothing here asks a node; :mod:`fl_node.monitor.observer` does, and makes these of the answers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import rlp
from eth_abi.exceptions import DecodingError
from eth_keys import keys
from eth_keys.exceptions import BadSignature
from eth_utils import ValidationError, keccak, to_checksum_address
from web3 import Web3

from fl_node.artifacts import cid
from fl_node.artifacts.model_file import GlobalMeta, LocalMeta, Meta
from fl_node.chain.abi import artifact
from fl_node.errors import ChainError
from fl_node.plan.schema import Plan
from fl_node.protocol import impasse
from fl_node.protocol.awaited import awaited
from fl_node.protocol.budget import Budget
from fl_node.protocol.history import History, sitting_out
from fl_node.protocol.names import HEADER, learner_label, learner_name, learners_label
from fl_node.runtime import recursion

recursion.restore()

_SIGNATURE_BYTES = 65
_UNSIGNED = (
    *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"),
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce", "baseFeePerGas"),
)
"""The fields of a header that a Clique sealer signs, in this order; London's is the last."""
_NUMBERS = {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas"}


@dataclass(frozen=True)
class Part:
    """A node's Geth or IPFS as it answered last: since when it answers or doesn't, and what it said.

    Times are seconds since 1970 by the observer's clock. ``peers`` is None where there is no such thing, as in a
    folder of files.
    """

    up: bool
    since: float
    height: int | None = None
    peers: int | None = None
    sealer: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class LastPublication:
    """The last thing that a node published: local weights of a round, or the global weights of one."""

    round: int
    cid: str
    block: int


@dataclass(frozen=True)
class NodeView:
    """A node of the run. Chain and files are None where its addresses are not known here."""

    name: str
    account: str | None = None
    chain: Part | None = None
    files: Part | None = None
    last: LastPublication | None = None
    published: int = 0
    waits_for: str = ""
    says: str = ""
    """The last line of its own log, where that can be read."""


@dataclass(frozen=True)
class FileView:
    """A model file; ``state`` is ``read``, ``coming``, ``missing``, ``large``, ``bad`` or ``pruned``.

    The accuracy is a fraction. A ``large`` file is larger than what is read.
    """

    cid: str
    block: int
    state: str = "coming"
    accuracy: float | None = None
    loss: float | None = None
    samples: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class RoundView:
    """A round, closed or not: local weights by nodeId, and the global weights that it ended with."""

    round: int
    local: Mapping[int, FileView] = field(default_factory=dict)
    result: FileView | None = None
    rejected: Mapping[int, str] = field(default_factory=dict)
    missing_learners: tuple[int, ...] = ()


@dataclass(frozen=True)
class Action:
    """A transaction in words; ``kind`` is for display."""

    kind: str
    text: str
    transaction: str
    gas: int | None = None
    cid: str | None = None
    ok: bool = True


@dataclass(frozen=True)
class BlockView:
    """A block; ``time`` is its own, in seconds since 1970; ``sealer`` is None where nobody signs blocks."""

    number: int
    hash: str
    time: int
    gas: int
    sealer: str | None = None
    in_turn: bool = True
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True)
class RunView:
    """The run itself; ``rounds`` is how many the plan wants, None while the plan is not read."""

    contract: str
    plan_cid: str
    round: int
    started: bool
    name: str = ""
    mode: str = ""
    rounds: int | None = None
    model: str = ""
    data: str = ""
    rule: str = ""
    header: str = ""
    """The node that is the header, if the learners replaced the first one."""
    verdict: str = ""
    """What the learners said of the newest global weights."""
    hidden: str = ""
    """What masks and differential privacy hide, if the plan has them."""
    spent: str = ""
    """What is spent of the privacy budget; empty without differential privacy."""
    budget_over: bool = False
    """Whether the privacy budget has ended the run."""
    unread: str = ""
    """What does not work because the newest global weights are too large to be read."""
    problem: str = ""

    @property
    def ended(self) -> bool:
        """Whether all rounds of the plan are closed, or the privacy budget has ended the run."""
        return self.budget_over or (self.rounds is not None and self.started and self.round >= self.rounds)


@dataclass(frozen=True)
class MonitorState:
    """All of it."""

    run: RunView | None = None
    nodes: tuple[NodeView, ...] = ()
    rounds: tuple[RoundView, ...] = ()
    blocks: tuple[BlockView, ...] = ()
    """The newest first."""
    problem: str = ""
    """Why there is less to be seen than there should be."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of a model file once somebody has tried to read it."""

    state: str
    meta: Meta | None = None
    problem: str = ""


def rounds(
    past: History, files: Mapping[str, FileFacts], accuracies: Mapping[str, float], mode: str, kept: int = 0
) -> tuple[RoundView, ...]:
    """Return the rounds of a history, the last of which is open.

    Parameters
    ----------
    past
        The events.
    files
        What is known of model files, by CID.
    accuracies
        What global weights reach on the test images, by CID, as far as anybody said so.
    mode
        The plan's; in an asynchronous run a round has the updates that its global file took, whenever they came.
    kept
        The first round whose local files hosts keep.
    """

    def view(name: str | None, block: int, unread: str = "coming") -> FileView:
        facts = files.get(str(name))
        file = FileView(str(name), block, unread)
        if facts is not None:
            meta = facts.meta if isinstance(facts.meta, LocalMeta) else None
            file = FileView(
                *(str(name), block, facts.state),
                accuracy=meta.accuracy if meta else accuracies.get(str(name)),
                loss=meta.loss if meta else None,
                samples=meta.samples if meta else None,
                problem=facts.problem,
            )
        elif str(name) in accuracies:
            file = FileView(str(name), block, accuracy=accuracies[str(name)])
        return file

    views = []
    blocks = {(p.node_id, p.cid): p.block for round_ in past.rounds for p in round_.published}
    for number, begun in enumerate(past.rounds):
        closed = past.rounds[number + 1].started if number + 1 < len(past.rounds) else None
        unread = "pruned" if number < kept else "coming"
        local = {node_id: view(p.cid, p.block, unread) for node_id, p in sorted(begun.latest().items())}
        facts = files.get(str(closed.cid)) if closed else None
        meta = facts.meta if facts and isinstance(facts.meta, GlobalMeta) else None
        if meta:
            named = {(i.node_id, i.cid) for i in meta.inputs} | {(r.node_id, r.cid) for r in meta.refused}
            spoken_of = {n: view(name, blocks.get((n, name), 0), unread) for n, name in sorted(named)}
            local = spoken_of if mode == "async" else local | spoken_of
        views.append(
            RoundView(
                number,
                dict(sorted(local.items())),
                view(closed.cid, closed.block) if closed else None,
                {r.node_id: r.reason for r in meta.refused} if meta else {},
                meta.absent if meta else (),
            )
        )
    return tuple(views)


def last_publications(past: History) -> dict[str, tuple[int, LastPublication]]:
    """Return how often each node has published, and what last, by its name."""
    last: dict[str, tuple[int, LastPublication]] = {}
    for round_ in past.rounds:
        count, _ = last.get(HEADER, (0, None))
        last[HEADER] = count + 1, LastPublication(round_.number, str(round_.started.cid), round_.started.block)
        for entry in round_.published:
            if entry.node_id is not None:
                name = learner_name(entry.node_id)
                count, _ = last.get(name, (0, None))
                last[name] = count + 1, LastPublication(round_.number, str(entry.cid), entry.block)
    return last


def spent(plan: Plan, past: History) -> str:
    """Return what a run has spent of its privacy budget, in words; empty without differential privacy."""
    dp = plan.dp
    if dp is None:
        return ""
    limit = "" if dp.limit is None else f" of at most {dp.limit:g}"
    return f"privacy: ε = {Budget.of(plan, past).epsilon:g}{limit} for δ = {dp.delta:g}"


def taken(past: History, files: Mapping[str, FileFacts]) -> dict[int, int] | None:
    """Return how many publications of each learner the newest global file accepts or rejects; None if unknown.

    Parameters
    ----------
    past
        The run's history.
    files
        What is known of model files, by CID.
    """
    facts = files.get(str(past.rounds[-1].started.cid)) if past.rounds else None
    return dict(facts.meta.taken or ()) if facts and isinstance(facts.meta, GlobalMeta) else None


def waits(
    past: History,
    plan: Plan | None,
    files: Mapping[str, FileFacts] = MappingProxyType({}),
    *,
    budget_over: bool = False,
) -> dict[str, str]:
    """Return what each node waits for or has to do, by its name, as far as the chain tells.

    The chain does not tell whether a learner trains or is gone; both have still to publish.

    Parameters
    ----------
    past, plan
        The run's history, and its plan if it is known.
    files
        What is known of model files, by CID.
    budget_over
        Whether the privacy budget has ended the run.
    """
    if not past.rounds:
        who = awaited(plan, past) if plan is not None else ()
        if not who:
            return {HEADER: "should publish the initial weights"}
        return {
            learner_name(n): "should announce a key for its masks" if n in who else "waits for the initial weights"
            for n in past.learners
        } | {HEADER: f"waits for {learners_label(who)} to announce a key"}
    current = past.rounds[-1]
    if plan is not None and (current.number >= plan.rounds or budget_over):
        return dict.fromkeys((HEADER, *map(learner_name, past.learners)), "finished")
    leader = header_node(past)
    done = current.latest()
    spent_ = set(Budget.of(plan, past).spent_learners()) - done.keys() if plan is not None else set()
    spent_waits = dict.fromkeys(
        map(learner_name, sorted(spent_ & past.learners.keys())), "has spent its privacy budget"
    )
    if plan is not None and plan.mode == "async":
        who = awaited(plan, past)
        waiting = {learner_name(n): "trains at its own pace" for n in past.learners} | spent_waits
        return waiting | {leader: f"waits for updates of {learners_label(who)}" if who else "waits for updates"}
    silent = [node_id for node_id in past.learners if node_id not in done and node_id not in spent_]
    missing = (plan.learners - len(past.learners)) if plan is not None else 0
    waiting = {
        learner_name(node_id): f"waits for round {current.number} to close"
        if node_id in done
        else f"should publish in round {current.number}"
        for node_id in past.learners
    }
    waiting |= spent_waits
    for node_id in sitting_out(current):
        waiting[learner_name(node_id)] = f"has no key of round {current.number} and sits it out"
    if leader != HEADER:
        waiting[HEADER] = f"was replaced by {leader}"
    lost = {n for n, entry in done.items() if (file := files.get(str(entry.cid))) and file.state == "missing"}
    if current.closed is not None and plan is not None and lost and (who := awaited(plan, past, lost)):
        what = f"waits for the file of {learners_label(who)}"
        waiting |= {learner_name(n): f"should provide its file of round {current.number}" for n in who}
        waiting |= {name: what for name in (leader, *map(learner_name, done)) if name not in map(learner_name, who)}
    elif current.closed is not None and plan is not None and (who := awaited(plan, past)):
        waiting |= {learner_name(n): f"waits for round {current.number} to end" for n in done if n not in who}
        waiting |= {learner_name(n): f"should open round {current.number}" for n in who}
        if leader == HEADER:
            waiting[HEADER] = f"waits for {learners_label(who)} to open round {current.number}"
    elif current.closed is not None:
        waiting[leader] = f"should publish global weights {current.number + 1}"
    elif leader != HEADER:
        pass  # it has its own part as a learner
    elif silent:
        waiting[HEADER] = f"waits for {learners_label(silent)}"
    elif missing > 0:
        waiting[HEADER] = f"waits for {missing} more to register"
    else:
        waiting[HEADER] = f"should publish global weights {current.number + 1}"
    return waiting


def stuck(past: History, plan: Plan, files: Mapping[str, FileFacts]) -> str:
    """Return why a run with masks can never go on, as far as chain and files tell; empty if it can.

    Parameters
    ----------
    past, plan
        The run's history and plan.
    files
        What is known of model files, by CID.
    """
    if not plan.is_masked or not past.rounds or past.rounds[-1].number >= plan.rounds:
        return ""
    current = past.rounds[-1]
    if current.closed is None:
        facts = files.get(str(current.started.cid))
        keys = facts.meta.keys if facts is not None and isinstance(facts.meta, GlobalMeta) else None
        keyed = None if keys is None else dict(keys).keys()
        found = impasse.of_open_round(plan, current.number, sitting_out(current), keyed)
    else:
        published = {node_id: files.get(str(entry.cid)) for node_id, entry in current.latest().items()}
        bad = {node_id: file.problem for node_id, file in published.items() if file and file.state == "bad"}
        found = impasse.of_files(plan, current.number, published.keys() - bad.keys(), bad, ())
    return "" if found is None else found.text


def header_node(past: History) -> str:
    """Return the name of the node that is the header now."""
    node_id = past.headers[-1].node_id if past.headers else None
    return learner_name(node_id) if node_id else HEADER


def sealer_of(block: Mapping[str, Any]) -> str | None:
    """Return the address that signed a block by Clique's rules (EIP-225), or None where there is no signature."""
    extra = bytes.fromhex(str(block["extraData"]).removeprefix("0x"))
    if len(extra) < 32 + _SIGNATURE_BYTES:
        return None
    values = []
    for name in _UNSIGNED:
        if name not in block:
            continue
        text = str(block[name])
        if name == "extraData":
            values.append(extra[:-_SIGNATURE_BYTES])
        elif name in _NUMBERS:
            values.append(rlp.sedes.big_endian_int.serialize(int(text, 16)))
        else:
            values.append(bytes.fromhex(text.removeprefix("0x")))
    try:
        signature = keys.Signature(extra[-_SIGNATURE_BYTES:])
        public = signature.recover_public_key_from_msg_hash(keccak(rlp.encode(values)))
    except (BadSignature, ValidationError):  # as in the genesis, where there are zeros
        return None
    return str(public.to_checksum_address())


def block_view(
    block: Mapping[str, Any], receipts: Sequence[Mapping[str, Any]], contract: str | None, names: Mapping[str, str]
) -> BlockView:
    """Return a block in words.

    Parameters
    ----------
    block, receipts
        As the RPC gives them, the block with whole transactions.
    contract
        The run's, if there is one.
    names
        What to call accounts, by their address with its checksum.

    Raises
    ------
    ChainError
        They are not what an Ethereum node gives.
    """
    try:
        by_transaction = {str(receipt["transactionHash"]): receipt for receipt in receipts}
        return BlockView(
            number=int(block["number"], 16),
            hash=str(block["hash"]),
            time=int(block["timestamp"], 16),
            gas=int(block["gasUsed"], 16),
            sealer=sealer_of(block),
            in_turn=int(block["difficulty"], 16) != 1,
            actions=tuple(
                action(sent, by_transaction.get(str(sent["hash"])), contract, names) for sent in block["transactions"]
            ),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ChainError(f"invalid block: {error!r}") from error


def action(
    transaction: Mapping[str, Any],
    receipt: Mapping[str, Any] | None,
    contract: str | None,
    names: Mapping[str, str],
) -> Action:
    """Return what a transaction does, for people.

    Parameters
    ----------
    transaction
        The transaction as the RPC returns it.
    receipt
        Its receipt as the RPC returns it; None if not available.
    contract
        The address of the run's contract, with its checksum.
    names
        The name of each known account, by address.
    """
    sender = to_checksum_address(str(transaction["from"]))
    who = names.get(sender, short(sender))
    data = bytes.fromhex(str(transaction["input"]).removeprefix("0x"))
    name = str(transaction["hash"])
    gas = int(receipt["gasUsed"], 16) if receipt else None
    ok = receipt is None or int(receipt["status"], 16) == 1
    words = _Words("other", "")
    if transaction.get("to") is None:
        words = _deployment(who, data, receipt)
    else:
        to = to_checksum_address(str(transaction["to"]))
        if (call := _call(data)) is not None:
            words = _called(who, *call, receipt)
            if to != contract:
                words = _Words(words.kind, f"{words.text} (contract {short(to)}, another run)", words.cid)
        elif data:
            words = _Words("other", f"{who} called {short(to)}")
        else:
            words = _transfer(who, sender, to, int(str(transaction["value"]), 16), names)
    text = words.text if ok else f"{words.text}, which failed"
    return Action(words.kind, text, name, gas, words.cid, ok)


def short(text: str) -> str:
    """Return an address or hash with its middle left out."""
    return text if len(text) <= 14 else f"{text[:6]}…{text[-4:]}"


@dataclass(frozen=True)
class _Words:
    kind: str
    text: str
    cid: str | None = None


@functools.cache
def _calls() -> dict[bytes, tuple[str, list[str]]]:
    """Return name and argument types of the functions that change the contract, by selector."""
    functions = {}
    for entry in artifact()["abi"]:
        if entry["type"] == "function" and entry["stateMutability"] == "nonpayable":
            types = [argument["type"] for argument in entry["inputs"]]
            functions[keccak(text=f"{entry['name']}({','.join(types)})")[:4]] = (str(entry["name"]), types)
    return functions


def _call(data: bytes) -> tuple[str, tuple[Any, ...]] | None:
    known = _calls().get(data[:4])
    if known is None:
        return None
    name, types = known
    try:
        return name, tuple(Web3().codec.decode(types, data[4:]))
    except DecodingError:
        return None


def _called(who: str, name: str, arguments: tuple[Any, ...], receipt: Mapping[str, Any] | None) -> _Words:
    # The round stands in the event; its first topic says which event that is.
    topics = receipt["logs"][0]["topics"] if receipt and receipt["logs"] else []
    registers = name in ("registerLearner", "registerLearners")
    number = int(str(topics[1]), 16) if len(topics) > 1 and not registers else None
    if name == "registerLearner":
        node_id, account = arguments
        return _Words("register", f"{who} registered {short(to_checksum_address(account))} as learner {node_id}")
    if name == "registerLearners":
        return _Words("register", f"{who} registered {learners_label(arguments[0])}")
    if name == "setLocalWeight":
        # The paper's call, or the one that names the weights trained from and attests them.
        node_id, digest, *_ = arguments
        file = cid.from_digest(digest)
        where = f" in round {number}" if number is not None else ""
        speaker = who if who == learner_label(node_id) else f"{who}, as learner {node_id},"
        attested = " and attested global weights" if len(arguments) > 2 and arguments[4] else ""
        return _Words("local", f"{speaker} set local weights {short(file)}{where}{attested}", file)
    if name == "attestGlobalWeight":
        return _Words("attest", f"{who} attested global weights {arguments[0]}", cid.from_digest(arguments[1]))
    if name == "rejectGlobalWeight":
        code = arguments[2].rstrip(b"\0").decode("ascii", "replace")
        text = f"{who} rejected global weights {arguments[0]} ({code})"
        return _Words("reject", text, cid.from_digest(arguments[1]))
    if name == "voteHeader":
        return _Words("vote", f"{who} voted for another header")
    if name == "closeRound":
        return _Words(
            "close", f"{who} closed round {number}" if number is not None else f"{who} tried to close a round"
        )
    if name == "setGlobalWeight":
        file = cid.from_digest(arguments[0])
        if number == 0:
            return _Words("global", f"{who} published the initial weights {short(file)}", file)
        weights = f"global weights {number}" if number is not None else "global weights"
        return _Words("global", f"{who} published {weights}, {short(file)}", file)
    return _Words("other", f"{who} called {name}")


def _deployment(who: str, data: bytes, receipt: Mapping[str, Any] | None) -> _Words:
    code = bytes.fromhex(str(artifact()["bytecode"]).removeprefix("0x"))
    contract = receipt.get("contractAddress") if receipt else None
    where = f" {short(to_checksum_address(contract))}" if contract else ""
    if data.startswith(code) and len(data) >= len(code) + 32:
        plan = cid.from_digest(data[len(code) : len(code) + 32])
        return _Words("deploy", f"{who} deployed the contract{where} for plan {short(plan)}", plan)
    return _Words("deploy", f"{who} deployed another contract{where}")


def _transfer(who: str, sender: str, to: str, wei: int, names: Mapping[str, str]) -> _Words:
    if to == sender and wei == 0:
        return _Words("noop", f"{who} sent a no-op transaction")
    return _Words("transfer", f"{who} sent {wei / 10**18:g} ether to {names.get(to, short(to))}")
