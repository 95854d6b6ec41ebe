"""Watches a run from outside: asks its nodes now and then, reads what is new, and keeps the newest state.

It holds no key, sends no transaction and stores nothing. What it costs a node while nothing happens is one request of
three short questions a second to Geth, and one to IPFS every five.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from web3 import Web3

from fl_node import events
from fl_node.artifacts.address import connect
from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.chain import earlier
from fl_node.chain.client import Chain
from fl_node.errors import ChainError, JsonError, StoreError
from fl_node.monitor import state as views
from fl_node.monitor.reading import Newest, Reading
from fl_node.monitor.state import BlockView, MonitorState, NodeView, Part, RunView
from fl_node.nodes.backends import Endpoint
from fl_node.protocol import history
from fl_node.protocol.budget import Budget
from fl_node.protocol.hidden import hidden
from fl_node.protocol.history import History
from fl_node.protocol.names import HEADER, learner_label, learner_name
from fl_node.protocol.retention import first_kept
from fl_node.protocol.verdicts import verdicts
from fl_node.runtime import logs, recursion, strict_json

recursion.restore()

BUSY_PAUSE = 0.5
IDLE_PAUSE = 1.0
"""Seconds between two looks at a chain: while something happens, and else. A new block is seen that late at most."""
BUSY = 30.0
"""Seconds after its last block for which a chain counts as busy."""
FILES_PAUSE = 5.0
PROBE_TIMEOUT = 2.0
"""Seconds in which a node has to answer; a slower node counts as down."""
READ_TIMEOUT = 5.0
LOOK_AGAIN = 2.0
BLOCKS = 40
"""Blocks kept."""
REORGANISED = 32
"""Blocks that are read again whenever there is a new one, since another branch may have taken their place."""
_TAIL_BYTES = 4096

_log = logging.getLogger("fl_node")


class Observer:
    """Watches in threads of its own from ``with`` to the end of the block.

    Parameters
    ----------
    nodes
        Where chain and files of the nodes are that can be asked from here, by name.
    contract
        Returns the address of the run's contract, which may become another; None while there is no run.
    folder
        For model files while they are read.
    logs
        Folder with a log of each node's role, if there is one.
    report
        A ``report.json`` that tells accuracies, if there is one.
    """

    def __init__(
        self,
        nodes: Mapping[str, Endpoint],
        contract: Callable[[], str | None],
        folder: Path,
        *,
        logs: Path | None = None,
        report: Path | None = None,
    ) -> None:
        self._nodes = dict(nodes)
        self._address = contract
        self._folder = folder
        self._logs = logs
        self._lock = threading.RLock()
        self._state = MonitorState()
        self._listeners: list[Callable[[], None]] = []
        self._ending = threading.Event()
        self._news = threading.Event()
        self._files_wanted = threading.Event()
        self._threads: list[threading.Thread] = []
        self._chains = {name: Chain(end.rpc, timeout=READ_TIMEOUT) for name, end in self._nodes.items()}
        self._stores = {name: connect(end.store) for name, end in self._nodes.items()}
        self._chain_parts: dict[str, Part] = {}
        self._file_parts: dict[str, Part] = {}
        self._says: dict[str, str] = {}
        self._accuracies: dict[str, float] = _reported(report) if report else {}
        self._reading = Reading()
        self._problem = ""

    def __enter__(self) -> Self:
        work: list[Callable[[], None]] = [self._follow, self._read_files]
        for name in self._nodes:
            work += [_bound(self._watch_chain, name), _bound(self._watch_files, name)]
        if self._logs:
            work.append(self._listen)
        for task in work:
            self._threads.append(threading.Thread(target=self._kept_going(task), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._news.set()
        self._files_wanted.set()
        for thread in self._threads:
            thread.join(PROBE_TIMEOUT)

    @property
    def state(self) -> MonitorState:
        """What is seen now."""
        return self._state

    @property
    def newest(self) -> Newest | None:
        """The newest global weights that were read."""
        return self._reading.newest

    @property
    def unread(self) -> str:
        """What does not work because the newest global weights are too large to be read; empty if they are not."""
        return self._reading.unread

    @contextlib.contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call ``listener``, from some thread, whenever there is another state."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def measured(self, file_cid: str, accuracy: float) -> None:
        """Take note of what global weights reach on the test images."""
        with self._lock:
            self._accuracies[file_cid] = accuracy
            self._arrange()
        self._show()

    # Threads

    def _kept_going(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the work, begun again should it ever fail: a page that stands still tells nobody why."""

        def keep() -> None:
            while not self._ending.is_set():
                try:
                    work()
                except Exception:
                    _log.exception("the observer failed and retries")
                    self._ending.wait(LOOK_AGAIN)

        return keep

    def _watch_chain(self, name: str) -> None:
        chain = Chain(self._nodes[name].rpc, timeout=PROBE_TIMEOUT)
        sealer: str | None = None
        changed = 0.0
        while not self._ending.is_set():
            try:
                height, peers = chain.ask(("eth_blockNumber", []), ("net_peerCount", []))
                if sealer is None:
                    sealer = _sealer(chain)
                part = Part(True, time.time(), chain.quantity(height), chain.quantity(peers), sealer)
            except ChainError as error:
                part = Part(False, time.time(), problem=str(error), sealer=sealer)
            before = self._chain_parts.get(name)
            if before and not part.up:
                part = replace(part, height=before.height)
            if before is None or part.height != before.height or part.up != before.up:
                changed = time.monotonic()
                self._news.set()
            self._note(self._chain_parts, name, part)
            self._ending.wait(BUSY_PAUSE if time.monotonic() - changed < BUSY else IDLE_PAUSE)

    def _watch_files(self, name: str) -> None:
        store = self._stores[name]
        address = store.address
        probe = IpfsStore(address, PROBE_TIMEOUT) if isinstance(store, IpfsStore) else None
        while not self._ending.is_set():
            try:
                if probe is not None:
                    # Two nodes that dialled each other at once have two connections.
                    peers = len({peer.rpartition("/")[2] for peer in probe.peers()})
                    part = Part(True, time.time(), peers=peers)
                elif Path(address).is_dir():
                    part = Part(True, time.time())
                else:
                    part = Part(False, time.time(), problem=f"store folder {address} does not exist")
            except StoreError as error:
                part = Part(False, time.time(), problem=str(error))
            if part.up:
                self._files_wanted.set()
            self._note(self._file_parts, name, part)
            self._ending.wait(FILES_PAUSE if part.up else IDLE_PAUSE)

    def _note(self, parts: dict[str, Part], name: str, part: Part) -> None:
        with self._lock:
            before = parts.get(name)
            if before is not None and before.up == part.up:
                part = replace(part, since=before.since)
            if part == before:
                return
            parts[name] = part
        self._show()

    def _follow(self) -> None:
        while not self._ending.is_set():
            self._news.wait(LOOK_AGAIN)
            self._news.clear()
            try:
                self._look()
                problem = ""
            except ChainError as error:
                problem = str(error)
            if problem != self._problem:
                self._problem = problem
                self._show()

    def _look(self) -> None:
        """Read what is new on the chain, from the node with the most blocks.

        Raises
        ------
        ChainError
            No node of the chain answers.
        """
        address = self._address()
        if address != self._reading.address:
            with self._lock:
                self._reading = Reading(address)
            self._show()
        up = [(part.height or 0, name) for name, part in list(self._chain_parts.items()) if part.up]
        if not up:
            raise ChainError("can't reach the chain of any node")
        chain = self._chains[max(up, key=lambda part: part[0])[1]]
        reading = self._reading
        head = chain.block_number()
        if head == reading.head:
            return
        if head < reading.head:
            # This node lags behind one that is down now; or the chain was reset, as by reset.yml.
            known = reading.blocks.get(head)
            (block,) = chain.ask(("eth_getBlockByNumber", [hex(head), False]))
            if known is not None and block is not None and block["hash"] == known.hash:
                return
            reading = self._reading = Reading(address)
        past = reading.past
        log = reading.log
        if address is not None:
            contract = reading.kind(chain, address) if past else earlier.reading(chain.contract(address))
            reading.kind = type(contract)
            plan_cid, header = (past.plan_cid, past.deployer) if past else (contract.plan(), contract.deployer())
            first = max(reading.head - REORGANISED, 0)
            log = [entry for entry in log if entry.block < first] + contract.log(first)
            past = history.arrange(plan_cid, header, log)
        blocks = self._blocks(chain, head, reading, past)
        with self._lock:
            reading.log, reading.past, reading.head, reading.blocks = log, past, head, blocks
            self._problem = ""
            self._arrange()
        self._show()
        self._files_wanted.set()

    def _blocks(self, chain: Chain, head: int, reading: Reading, past: History | None) -> dict[int, BlockView]:
        lowest = max(head - BLOCKS + 1, 0)
        # The last few again: another branch may have taken their place.
        first = max(lowest, min(reading.head - 2, head - 2)) if reading.head >= 0 else lowest
        names = self._names(past)
        numbers = list(range(first, head + 1))
        answers = chain.ask(
            *(("eth_getBlockByNumber", [hex(number), True]) for number in numbers),
            *(("eth_getBlockReceipts", [hex(number)]) for number in numbers),
        )
        kept = {number: view for number, view in reading.blocks.items() if lowest <= number < first}
        for number, block, receipts in zip(numbers, answers, answers[len(numbers) :], strict=False):
            if block is not None:
                kept[number] = views.block_view(block, receipts or [], reading.address, names)
        return kept

    def _names(self, past: History | None) -> dict[str, str]:
        if past is None:
            return {}
        learners = {str(entry.account): learner_label(node_id) for node_id, entry in past.learners.items()}
        return {past.deployer: HEADER} | learners

    def _read_files(self) -> None:
        while not self._ending.is_set():
            self._files_wanted.wait(LOOK_AGAIN)
            self._files_wanted.clear()
            while not self._ending.is_set() and self._read_next():
                pass

    def _read_next(self) -> bool:
        """Read the file that is wanted most; return whether there was one."""
        reading = self._reading
        up = [name for name, part in list(self._file_parts.items()) if part.up]
        name = reading.wanted()
        if name is None or not up:
            return False
        path = self._folder / f"{name}.part"
        facts = reading.read(name, self._stores[up[0]], path)
        with self._lock:
            reading.take_in(name, path, facts)
            self._arrange()
        self._show()
        return True

    def _listen(self) -> None:
        """Read what roles say in their logs: their last words, and the accuracy that the header measured."""
        places: dict[Path, int] = {}
        while not self._ending.is_set():
            changed = False
            for path in sorted(self._logs.glob("*.log")) if self._logs else []:
                with contextlib.suppress(OSError):
                    size = path.stat().st_size
                    start = places.get(path, 0 if path.stem == HEADER else max(size - _TAIL_BYTES, 0))
                    if size > start:
                        end = self._heard(path, start)
                        changed |= end > start
                        places[path] = end
            if changed:
                with self._lock:
                    self._arrange()
                self._show()
            self._ending.wait(BUSY_PAUSE)

    def _heard(self, path: Path, start: int) -> int:
        """Read the whole lines from a place in a log on, and return the place after them."""
        with path.open("rb") as file:
            file.seek(start)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        for line in text.decode(errors="replace").splitlines():
            event = logs.parse(line)
            if event is None:
                continue
            self._says[path.stem] = str(event.get("message", ""))[:200]
            if event["event"] == events.GlobalWeightsEvaluated.name:
                name, accuracy = event.get("cid"), event.get("accuracy")
                if isinstance(name, str) and isinstance(accuracy, float) and 0 <= accuracy <= 1:
                    self._accuracies.setdefault(name, accuracy)  # a measurement counts more
        return start + len(text)

    # State

    def _arrange(self) -> None:
        """Put what is known of the rounds in order; the lock is held."""
        reading = self._reading
        if reading.past is None:
            return
        mode = reading.plan.mode if reading.plan else "sync"
        kept = first_kept(reading.plan, reading.past) if reading.plan else 0
        reading.rounds = views.rounds(reading.past, reading.files, self._accuracies, mode, kept)

    def _show(self) -> None:
        with self._lock:
            state = self._build()
            if state == self._state:
                return
            self._state = state
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _build(self) -> MonitorState:
        reading = self._reading
        past, plan = reading.past, reading.plan
        run, budget_over = None, False
        accounts: dict[str, str] = {}
        published: dict[str, tuple[int, views.LastPublication]] = {}
        waits: dict[str, str] = {}
        if past is not None and reading.address is not None:
            run = RunView(
                contract=reading.address,
                plan_cid=past.plan_cid,
                round=max(len(past.rounds) - 1, 0),
                started=bool(past.rounds),
                header=leader if (leader := views.header_node(past)) != HEADER else "",
                verdict=_verdict(past),
                unread=reading.unread,
                problem=reading.plan_problem,
            )
            if plan is not None:
                budget_over = Budget.of(plan, past, views.taken(past, reading.files)).is_over()
                run = replace(
                    run,
                    name=plan.name,
                    mode=plan.mode,
                    rounds=plan.rounds,
                    model=plan.model.name,
                    data=plan.data.name,
                    rule=plan.aggregation.rule,
                    hidden=hidden(plan) if plan.is_masked or plan.dp is not None else "",
                    spent=views.spent(plan, past),
                    budget_over=budget_over,
                    problem=reading.plan_problem or views.stuck(past, plan, reading.files),
                )
            accounts = {HEADER: past.deployer} | {
                learner_name(node_id): str(entry.account) for node_id, entry in past.learners.items()
            }
            published, waits = (
                views.last_publications(past),
                views.waits(past, plan, reading.files, budget_over=budget_over),
            )
        names = [*self._nodes, *(name for name in accounts if name not in self._nodes)]
        nodes = []
        for name in names:
            count, last = published.get(name, (0, None))
            nodes.append(
                NodeView(
                    name=name,
                    account=accounts.get(name),
                    chain=self._chain_parts.get(name),
                    files=self._file_parts.get(name),
                    last=last,
                    published=count,
                    waits_for=waits.get(name, ""),
                    says=self._says.get(name, ""),
                )
            )
        return MonitorState(
            run,
            tuple(nodes),
            reading.rounds,
            tuple(view for _, view in sorted(reading.blocks.items(), reverse=True)),
            self._problem,
        )


def _bound(work: Callable[[str], None], name: str) -> Callable[[], None]:
    return lambda: work(name)


def _sealer(chain: Chain) -> str | None:
    """Return the account that a node seals with, or None where it doesn't say so."""
    try:
        (answer,) = chain.ask(("eth_coinbase", []))
    except ChainError:
        return None
    return Web3.to_checksum_address(str(answer)) if Web3.is_address(answer) else None


def _reported(path: Path) -> dict[str, float]:
    """Return the accuracies of global weights, by CID, that a run's report names, if there is a report."""
    try:
        content: dict[str, Any] = strict_json.read(path)
        entries = [content["initial"], *(closed["result"] for closed in content["rounds"])]
        return {
            str(entry["cid"]): entry["accuracy"] for entry in entries if entry and _is_fraction(entry["accuracy"])
        }
    except (OSError, JsonError, KeyError, TypeError):
        return {}


def _is_fraction(value: object) -> bool:
    return strict_json.is_number(value) and 0 <= value <= 1


def _verdict(past: History) -> str:
    """Return what the learners said of the newest global weights that any of them spoke of."""
    spoken = [verdict for verdict in verdicts(past) if verdict.attested or verdict.rejected]
    return f"global weights {spoken[-1].round}: {spoken[-1].words(len(past.learners))}" if spoken else ""
