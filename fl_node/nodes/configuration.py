"""The configuration of Geth and IPFS: the one source for a lab's nodes and for hosts (``fl-node node-config``).

What keeps a small Clique network from stalling stands in ``templates/geth.toml.j2`` and in :meth:`Geth.arguments`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_node.nodes import CHAIN_ID
from fl_node.runtime.templating import render

IPFS_ENVIRONMENT: Mapping[str, str] = {
    "LIBP2P_FORCE_PNET": "1",
    "IPFS_TELEMETRY": "off",
    "GOGC": "400",
    "GOMEMLIMIT": "512MiB",
}
"""A daemon without a swarm key refuses to start, and no daemon reports to anybody.

Little is live in a daemon and much passes through it, so Go collects garbage less often, unless memory gets short.
"""


def genesis(chain_id: int, sealers: Sequence[str], accounts: Sequence[str]) -> str:
    """Return the genesis of a Clique network.

    It depends on nothing but the arguments, so that every node makes the same.

    Parameters
    ----------
    chain_id
        The number of the chain and of the network.
    sealers
        Addresses that may seal blocks. They have code from the start, so no node takes a transaction from them
        (EIP-3607): nobody who reaches the RPC can spend from an unlocked account.
    accounts
        Addresses that own 10^6 ether from the start, to pay for transactions.

    Raises
    ------
    ValueError
        An address is given twice. An account that seals could send nothing, so it can't be a role's too.
    """
    members = [address.lower() for address in (*sealers, *accounts)]
    for address in members:
        if members.count(address) > 1:
            raise ValueError(f"{address} is given twice; all sealers and accounts should be different")
    return render("genesis.json.j2", chain_id=chain_id, sealers=sealers, accounts=accounts)


@dataclass(frozen=True)
class Geth:
    """A Geth node that seals."""

    folder: str
    """Its data directory, with the keystore and the password of the sealing account."""
    config_file: str
    node_key: str
    sealer: str
    """The address of the account that seals."""
    listen: str
    """Address and TCP port for peers."""
    rpc_port: int
    """The RPC's port, on loopback."""
    peers: Sequence[str]
    """The enode addresses of all other nodes."""
    chain_id: int = CHAIN_ID
    authrpc_port: int = 0
    """The Engine API's port, on loopback; 0 means a free one. Geth always opens it."""
    metrics_port: int = 0
    """The port of the metrics for Prometheus, on loopback; 0 means none."""
    ipc: str = ""
    """The socket of Geth's console; without one there is no console."""

    @property
    def config(self) -> str:
        """The text of the configuration file."""
        return render("geth.toml.j2", chain_id=self.chain_id, listen=self.listen, peers=self.peers)

    @property
    def init_arguments(self) -> list[str]:
        """The arguments that start the chain, before the name of the genesis file."""
        # As in arguments: without it the database is made for another layout than the one that keeps all states.
        return ["init", "--datadir", self.folder, "--state.scheme", "hash"]

    @property
    def arguments(self) -> list[str]:
        """The arguments that run the node."""
        return [
            *("--config", self.config_file),
            *("--datadir", self.folder),
            *("--nodekey", self.node_key),
            *("--nat", "none"),
            *(("--ipcpath", self.ipc) if self.ipc else ("--ipcdisable",)),
            *("--authrpc.addr", "127.0.0.1"),
            *("--authrpc.port", str(self.authrpc_port)),
            "--http",
            *("--http.addr", "127.0.0.1"),
            *("--http.port", str(self.rpc_port)),
            *("--http.api", "eth,net,web3"),
            # On the same port, for subscriptions.
            "--ws",
            *("--ws.addr", "127.0.0.1"),
            *("--ws.port", str(self.rpc_port)),
            *("--ws.api", "eth,net,web3"),
            # Every state is written as its block is sealed, so that a killed node comes back with all blocks.
            *("--gcmode", "archive"),
            *("--state.scheme", "hash"),
            *("--history.transactions", "0"),
            *("--cache", "64"),
            "--mine",
            *("--miner.etherbase", self.sealer),
            *("--miner.gasprice", "1"),
            *("--unlock", self.sealer),
            *("--password", f"{self.folder}/password"),
            # Refused otherwise once there is HTTP; the RPC is on loopback, and the account can't be spent.
            "--allow-insecure-unlock",
            *("--verbosity", "3"),
            *(
                ("--metrics", "--metrics.addr", "127.0.0.1", "--metrics.port", str(self.metrics_port))
                if self.metrics_port
                else ()
            ),
        ]


@dataclass(frozen=True)
class Ipfs:
    """A Kubo node of a private swarm."""

    folder: str
    """Its repository."""
    listen: str
    """The multiaddress on which it listens for peers. TCP alone: a private network has neither QUIC nor WebRTC."""
    address: str
    """The multiaddress that peers dial, with the node's identity."""
    api_port: int
    """The API's port, on loopback."""
    peers: Sequence[str]
    """The addresses of all other nodes."""
    small_block: int = 0
    """Size in bytes up to which a node sends a block to a peer that asks whether it has it; 0: Kubo's default.

    It saves a file of one block a round trip, and the 20 ms that Kubo waits between two messages to a peer. But a
    node that asks several peers gets the block from each that has it.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """What the repository's configuration has in addition to the node's identity."""
        api = f"/ip4/127.0.0.1/tcp/{self.api_port}"
        text = render(
            "ipfs.json.j2",
            api=api,
            swarm=self.listen,
            address=self.address,
            peers=self.peers,
            small_block=self.small_block,
        )
        settings: dict[str, Any] = json.loads(text)
        return settings

    @property
    def arguments(self) -> list[str]:
        """The arguments that run the node."""
        return ["daemon", "--migrate=false"]

    @property
    def environment(self) -> dict[str, str]:
        """What the ``ipfs`` command needs in its environment to speak of this node."""
        return ipfs_environment(self.folder)


def ipfs_environment(folder: str) -> dict[str, str]:
    """Return the environment of a node by its repository's folder."""
    return {"IPFS_PATH": folder, **IPFS_ENVIRONMENT}


def merged(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a repository's configuration with the settings in it: a section keeps what they don't name."""
    return {
        **config,
        **{
            section: {**(config.get(section) or {}), **values} if isinstance(values, dict) else values
            for section, values in settings.items()
        },
    }
