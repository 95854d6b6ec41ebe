"""Where the nodes of a lab run: an embedded chain, real Geth and IPFS processes, or the user's own chain."""

from __future__ import annotations

import errno
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_node.artifacts.ipfs_store import IpfsStore
from fl_node.chain.client import Chain
from fl_node.chain.keys import load_key
from fl_node.errors import ChainError, ConfigError, FLNodeError, ProcessError
from fl_node.nodes import CHAIN_ID, binaries
from fl_node.nodes.configuration import genesis
from fl_node.nodes.geth import GethNode
from fl_node.nodes.ipfs import IpfsNode, new_swarm_key
from fl_node.nodes.process import Child, python, stop_all
from fl_node.runtime import files
from fl_node.runtime.waiting import wait_until

START_PATIENCE = 300.0
"""Seconds in which a node must be ready, also on a busy machine; one that ends is noticed at once."""
END_PATIENCE = 1.0
PORT_TRIES = 3
ROLE_WEI = 10**18
"""What each role's account gets on the user's own chain: it pays for the contract and some hundred transactions."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Endpoint:
    """Where a role finds its own node: the URL of the RPC and the address of the store."""

    rpc: str
    store: str


@dataclass(frozen=True)
class OwnChain:
    """The user's own chain: the URL of a node's RPC, and the key file of the account that pays."""

    rpc: str
    funder: Path

    def check(self, roles: int) -> None:
        """Check that the account can pay for the roles of a run, before anything is sent.

        Raises
        ------
        ConfigError
            The URL is not one, or the key file of the account that pays can't be used.
        ChainError
            The account owns too little, or the chain does not answer.
        """
        chain = Chain(self.rpc, load_key(self.funder))
        needed = roles * ROLE_WEI
        if (owned := chain.balance(chain.address)) <= needed:
            raise ChainError(
                f"chain at {self.rpc}: {chain.address} owns {owned} wei; the {roles} roles of the run get "
                f"{needed // 10**18} ether in all, so it needs more than {needed} wei"
            )


class Backend(Protocol):
    """A chain and a store for the nodes of a run, kept in one folder."""

    name: str

    def start(self) -> Mapping[str, Endpoint]:
        """Bring all nodes up and return where each finds its own."""

    def check(self) -> None:
        """Bring up again what has ended."""

    def stop(self) -> None:
        """Bring all nodes down."""


def of(
    name: str,
    folder: Path,
    accounts: Mapping[str, str],
    report: Report,
    own_chain: OwnChain | None = None,
    nodes: int | None = None,
) -> Backend:
    """Return a backend by its name, ``embedded`` or ``processes``, or that of the user's own chain.

    Parameters
    ----------
    name
        The backend.
    folder
        What the nodes keep, also between two starts.
    accounts
        The address of each node's role, by the name of the node; they own ether.
    report
        Called with one line a step.
    own_chain
        The user's own chain, if the run is on it.
    nodes
        Geth and IPFS nodes that ``processes`` starts, as for :class:`ProcessBackend`.
    """
    if own_chain is not None:
        return OwnChainBackend(folder, accounts, own_chain, report)
    if name == "embedded":
        return EmbeddedBackend(folder, accounts)
    return ProcessBackend(folder, accounts, report, nodes=nodes)


def to_read(name: str, folder: Path, scratch: Path, accounts: Mapping[str, str], report: Report) -> Backend:
    """Return a backend with the chain and the files of another, read only, for users who may not write there.

    Parameters
    ----------
    name, accounts, report
        As for :func:`of`.
    folder
        The other's, none of whose nodes runs.
    scratch
        An empty folder, for all that the nodes write.

    Raises
    ------
    ConfigError
        What the nodes keep can't be read or copied.
    """
    try:
        if name == "embedded":
            os.scandir(folder / "files").close()
            files.copy(folder / "blocks", scratch / "blocks")
            return EmbeddedBackend(scratch, accounts, folder / "files", folder / "blocks")
        own = [node for node in accounts if (folder / node / "geth").exists()]
        # The first roles have nodes of their own; of these, the last may be gone.
        if not own or own != list(accounts)[: len(own)]:
            missing = folder / next(node for node in accounts if node not in own) / "geth"
            raise ConfigError(f"the run's nodes: {missing}: {os.strerror(errno.ENOENT)}")
        for node in own:
            files.copy_folder(GethNode(folder / node / "geth").chain, GethNode(scratch / node / "geth").chain)
        return ProcessBackend(scratch, accounts, report, folder, nodes=len(own))
    except OSError as error:
        raise ConfigError(f"the run's nodes: {files.described(error)}") from error


class EmbeddedBackend:
    """One py-evm chain and one folder of files, shared by all nodes.

    Parameters
    ----------
    folder
        What the chain keeps, also between two starts.
    accounts
        The address of each node's role, by the name of the node; they own ether.
    store
        The folder of files; one in ``folder`` if None.
    source
        The file of blocks that the chain's file is a copy of, if it is one; error messages name it.
    """

    name = "embedded"

    def __init__(
        self, folder: Path, accounts: Mapping[str, str], store: Path | None = None, source: Path | None = None
    ) -> None:
        self._folder = folder
        self._source = source
        self._accounts = accounts
        self._store = store
        self._child: Child | None = None
        self._port = 0
        self._behind = 0.0

    def start(self) -> Mapping[str, Endpoint]:
        """Bring the chain up."""
        rpc = self._start()
        store = self._store or self._folder / "files"
        if self._store is None:
            store.mkdir(parents=True, exist_ok=True)
        return {node: Endpoint(rpc, str(store.absolute())) for node in self._accounts}

    def check(self) -> None:
        """Bring the chain up again, at the same port, if it has ended."""
        if self._child is not None and not self._child.running:
            self._child.stop()
            self._start()

    def stop(self) -> None:
        """Bring the chain down."""
        if self._child is not None:
            self._child.stop()

    def date_back(self, seconds: float) -> None:
        """Restart the chain with a clock that is behind; a block is still later than its parent."""
        self._behind = seconds
        self.stop()
        self._start()

    @property
    def ended(self) -> str:
        """How the chain ended, if it did by itself."""
        child = self._child
        if child is None:
            return ""
        try:
            child.process.wait(END_PATIENCE)  # it may have closed its connections a moment ago
        except subprocess.TimeoutExpired:
            return ""
        ended = f"the embedded chain ended with exit code {child.process.returncode}"
        return f"{ended}:{tail}" if (tail := child.tail()) else f"{ended}; is the disk full?"

    def _start(self) -> str:
        self._child = Child(
            "embedded chain",
            [
                *python("fl_node.nodes.dev_chain"),
                *("--blocks", str(self._folder / "blocks")),
                *("--accounts", ",".join(self._accounts.values())),
                *("--port", str(self._port)),
                *("--behind", str(self._behind)),
            ],
            self._folder / "logs" / "chain.log",
            capture=True,
        )
        url = self._child.output.readline().decode().strip()
        if not url:
            self._child.stop()
            tail = self._child.tail()
            if self._source is not None:
                tail = tail.replace(str(self._folder / "blocks"), str(self._source))
            raise ProcessError(f"the embedded chain did not start:{tail}")
        self._port = int(url.rpartition(":")[2])
        return url


class OwnChainBackend:
    """A chain that the lab neither starts nor stops, and one folder of files, shared by all nodes."""

    name = "own-chain"

    def __init__(self, folder: Path, accounts: Mapping[str, str], own_chain: OwnChain, report: Report) -> None:
        self._folder = folder
        self._accounts = accounts
        self._own = own_chain
        self._report = report

    def start(self) -> Mapping[str, Endpoint]:
        """Send ether to the accounts of the roles.

        Raises
        ------
        ConfigError
            The key file of the account that pays can't be used.
        ChainError
            The account owns too little, or the chain does not answer.
        """
        chain = Chain(self._own.rpc, load_key(self._own.funder))
        for node, account in self._accounts.items():
            self._report(f"sending {ROLE_WEI // 10**18} ether to {node}")
            chain.transfer(account, ROLE_WEI)
        store = self._folder / "files"
        store.mkdir(parents=True, exist_ok=True)
        return {node: Endpoint(self._own.rpc, str(store.absolute())) for node in self._accounts}

    def check(self) -> None:
        """Do nothing: the chain is the user's."""

    def stop(self) -> None:
        """Do nothing: the chain is the user's."""


def shared(roles: Sequence[str], nodes: int) -> dict[str, str]:
    """Return the node that each role uses: the first roles have their own, the later ones share them in turn.

    The first role, the header, shares its node only if there is no other.

    Parameters
    ----------
    roles
        The names of the roles, the header's first.
    nodes
        The number of nodes, from 1 to that of the roles.
    """
    own = list(roles[:nodes])
    to_share = own[1:] or own
    return {role: own[at] if at < nodes else to_share[(at - nodes) % len(to_share)] for at, role in enumerate(roles)}


class ProcessBackend:
    """Geth and IPFS nodes on free ports of loopback, one of each for every role or for several that share them.

    Parameters
    ----------
    folder
        What the nodes keep, also between two starts.
    accounts
        The address of each role's account, the header's first; they own ether.
    report
        Called with one line a step.
    source
        The folder of another backend, whose files the IPFS nodes get.
    nodes
        The number of nodes, which roles share as :func:`shared` says; one for each role if None.
    """

    name = "processes"

    def __init__(
        self,
        folder: Path,
        accounts: Mapping[str, str],
        report: Report,
        source: Path | None = None,
        *,
        nodes: int | None = None,
    ) -> None:
        self._folder = folder
        self._accounts = accounts
        self._report = report
        self._source = source
        self._node_of = shared(list(accounts), len(accounts) if nodes is None else nodes)
        own = dict.fromkeys(self._node_of.values())
        self.geth = {node: GethNode(folder / node / "geth") for node in own}
        self.ipfs = {node: IpfsNode(folder / node / "ipfs") for node in own}
        self.children: dict[str, Child] = {}
        self._ports = Ports()
        self._start_commands: dict[str, Callable[[], Child]] = {}
        self._alone: str | None = None

    def start(self) -> Mapping[str, Endpoint]:
        """Start all nodes and wait until they seal and see each other.

        Raises
        ------
        ProcessError
            A node does not start, or the nodes do not connect in time.
        """
        geth_binary = binaries.install(binaries.GETH, report=self._report)
        ipfs_binary = binaries.install(binaries.KUBO, report=self._report)
        self._prepare(geth_binary, ipfs_binary)
        for attempt in range(1, PORT_TRIES + 1):
            self._choose_ports()
            self._define(geth_binary, ipfs_binary)
            try:
                for name in self._start_commands:
                    self.restart(name)
                    self._listening(name)
                self._wait()
                break
            except ProcessError:
                self.stop()
                # Another program may have taken a port between its choice and its use.
                taken = any("address already in use" in child.tail().lower() for child in self.children.values())
                if not taken or attempt == PORT_TRIES:
                    raise
        return {role: Endpoint(self.geth[node].rpc, self.ipfs[node].api) for role, node in self._node_of.items()}

    def check(self) -> None:
        """Bring up again what has ended."""
        for name, child in self.children.items():
            if not child.running:
                self._report(f"{name} ended with {child.process.returncode}; restarting it")
                self.restart(name)

    def restart(self, name: str) -> None:
        """Start a node's Geth or IPFS by its name, such as ``learner-1 geth``, ending it first if it runs."""
        if name in self.children:
            self.children[name].stop()
        self.children[name] = self._start_commands[name]()

    def split(self, alone: str | None) -> None:
        """Restart the Geth nodes so that one is connected to no other, or all to one another if None."""
        self._alone = alone
        self._define(binaries.install(binaries.GETH), binaries.install(binaries.KUBO))
        geths = [f"{node} geth" for node in self.geth]
        stop_all([self.children[name] for name in geths])
        for name in geths:
            self.restart(name)
            self._listening(name)

    def _are_peers(self, first: str, second: str) -> bool:
        return first != second and self._alone not in (first, second)

    def stop(self) -> None:
        """Bring all nodes down."""
        stop_all(list(self.children.values()))
        self._ports.close()
        for ipfs in self.ipfs.values():
            ipfs.share()

    def _prepare(self, geth_binary: Path, ipfs_binary: Path) -> None:
        for geth in self.geth.values():
            geth.prepare()
        genesis_file = self._folder / "genesis.json"
        if not genesis_file.exists():
            sealers = [geth.sealer for geth in self.geth.values()]
            files.write(genesis_file, genesis(CHAIN_ID, sealers, list(self._accounts.values())))
        commands: list[tuple[list[str], Mapping[str, str]]] = [
            (geth.init_command(geth_binary, genesis_file), {}) for geth in self.geth.values() if not geth.initialised
        ] + [
            (ipfs.init_command(ipfs_binary), ipfs.environment) for ipfs in self.ipfs.values() if not ipfs.initialised
        ]
        log = self._folder / "logs" / "init.log"
        children = [Child(" ".join(command[:2]), command, log, env) for command, env in commands]
        for child in children:
            try:
                code = child.process.wait(START_PATIENCE)
            except subprocess.TimeoutExpired:
                code = None
            if code != 0:
                stop_all(children)
                raise ProcessError(f"{child.name} failed with {code}:{child.tail()}")
        if self._source is not None:
            for node, ipfs in self.ipfs.items():
                files.copy_folder(self._source / node / "ipfs" / "blocks", ipfs.folder / "blocks")

    def _choose_ports(self) -> None:
        ports = iter(self._ports.take(4 * len(self.geth)))
        for geth in self.geth.values():
            geth.p2p_port, geth.http_port = next(ports), next(ports)
        for ipfs in self.ipfs.values():
            ipfs.swarm_port, ipfs.api_port = next(ports), next(ports)

    def _define(self, geth_binary: Path, ipfs_binary: Path) -> None:
        swarm_key_file = self._folder / "swarm.key"
        if not swarm_key_file.exists():
            swarm_key_file.touch(mode=0o600)
            with files.named(swarm_key_file):
                swarm_key_file.write_text(new_swarm_key())
        swarm_key = swarm_key_file.read_text()
        logs = self._folder / "logs"

        def child(
            name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
        ) -> Callable[[], Child]:
            return lambda: Child(name, command, logs / f"{name.replace(' ', '-')}.log", environment)

        for node, geth in self.geth.items():
            peers = [peer.enode for name, peer in self.geth.items() if self._are_peers(name, node)]
            self._start_commands[f"{node} geth"] = child(f"{node} geth", geth.command(geth_binary, peers))
        for node, ipfs in self.ipfs.items():
            swarm = [peer for name, peer in self.ipfs.items() if name != node]
            command = ipfs.command(ipfs_binary, swarm_key, swarm)
            self._start_commands[f"{node} ipfs"] = child(f"{node} ipfs", command, ipfs.environment)

    def _listening(self, name: str) -> None:
        """Wait until a Geth accepts peers: one that dials another too early tries again after half a minute."""
        node, kind = name.split()
        if kind != "geth":
            return
        port, child = self.geth[node].p2p_port, self.children[name]

        def answer() -> bool:
            with socket.socket() as probe:
                return not child.running or probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answer, START_PATIENCE, 0.02)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_PATIENCE
        peers = len(self.geth) - 1

        def ready(name: str, wanted: str, what: Callable[[], bool]) -> None:
            child = self.children[name]

            def answer() -> bool:
                if not child.running:
                    raise ProcessError(f"{name} ended with {child.process.returncode}:{child.tail()}")
                try:
                    return what()
                except FLNodeError:
                    return False

            if not wait_until(answer, deadline - time.monotonic()):
                raise ProcessError(f"{name} is not {wanted} after {START_PATIENCE:g} s:{child.tail()}")

        chains = {node: Chain(geth.rpc) for node, geth in self.geth.items()}
        stores = {node: IpfsStore(ipfs.api) for node, ipfs in self.ipfs.items()}
        for node, store in stores.items():
            ready(f"{node} ipfs", "up", functools.partial(_answers, store))
        # The daemons' own peering takes its time at start.
        for node, store in stores.items():
            for name in self.ipfs:
                if name > node:
                    store.connect_peer(self.ipfs[name].address)
        for node, store in stores.items():
            ready(f"{node} ipfs", "connected to its peers", functools.partial(_connected, store, peers))
        for node, chain in chains.items():
            ready(f"{node} geth", "sealing with its peers", functools.partial(_seals, chain, peers))


def _answers(store: IpfsStore) -> bool:
    return bool(store.version())


def _connected(store: IpfsStore, peers: int) -> bool:
    return len(store.peers()) == peers


def _seals(chain: Chain, peers: int) -> bool:
    return chain.is_ready() and chain.peers() == peers


class Ports:
    """Free ports of loopback that the system gives to no other program until :meth:`close`, where it can do that.

    A node that starts on such a port listens beside the socket that holds it; the port stays held while the node is
    away.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, count: int) -> list[int]:
        """Return ports that nobody listens on."""
        sockets = [socket.socket() for _ in range(count)]
        self._held += sockets
        for one in sockets:
            one.bind(("127.0.0.1", 0))
            # Only from now on: the system would give it to others that set this option before.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ports = [int(one.getsockname()[1]) for one in sockets]
        if sys.platform != "linux":  # elsewhere this option lets no two sockets have the same port
            self.close()
        return ports

    def close(self) -> None:
        """Hold the ports no longer."""
        for one in self._held:
            one.close()
        self._held.clear()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now, and that nobody holds."""
    ports = Ports()
    try:
        return ports.take(count)
    finally:
        ports.close()
