"""A Geth node of a private Clique network, as files in a folder and a command line.

What keeps a small Clique network from stalling stands in ``templates/geth.toml.j2`` and in :meth:`GethNode.command`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from eth_account import Account
from eth_keys import keys

from fl_node.nodes import CHAIN_ID
from fl_node.runtime import recursion
from fl_node.runtime.templating import render

recursion.restore()


def genesis(chain_id: int, sealers: Sequence[str], accounts: Sequence[str]) -> str:
    """Return the genesis of a Clique network.

    It depends on nothing but the arguments, so that every node makes the same.

    Parameters
    ----------
    chain_id
        The number of the chain and of the network.
    sealers
        Addresses that may seal blocks. They have code from the start, so no node takes a transaction from them
        (EIP-3607): an unlocked account can't be spent by whoever reaches the RPC.
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
            raise ValueError(f"{address} is given twice: sealing and other accounts are all different")
    return render("genesis.json.j2", chain_id=chain_id, sealers=sealers, accounts=accounts)


class GethNode:
    """One Geth node in a folder of its own.

    The account that seals is not the account of the node's role: it is unlocked in Geth, but has code in the genesis,
    so that no block has a transaction from it.
    """

    def __init__(self, folder: Path, chain_id: int = CHAIN_ID) -> None:
        self.folder = folder
        self.chain_id = chain_id
        self._key_file = folder / "node.key"
        self._password_file = folder / "password"
        self.p2p_port = 0
        self.http_port = 0
        self.metrics_port = 0
        """Where Geth serves its metrics for Prometheus; 0 means nowhere."""

    def prepare(self) -> None:
        """Make the node's keys, unless it has them."""
        (self.folder / "keystore").mkdir(parents=True, exist_ok=True)
        # Geth would make it for its owner alone, and the chain is for everybody to read; the secrets have modes of
        # their own.
        self.chain.parent.mkdir(exist_ok=True)
        if not self._key_file.exists():
            _write_secret(self._key_file, secrets.token_hex(32))
        if not self._password_file.exists():
            password = secrets.token_hex(16)
            sealer = Account.create()
            # The password lies beside the key file, so a slow key derivation would protect nothing.
            encrypted = Account.encrypt(sealer.key, password, kdf="scrypt", iterations=2)
            name = f"UTC--sealer--{sealer.address[2:].lower()}"
            _write_secret(self.folder / "keystore" / name, json.dumps(encrypted))
            _write_secret(self._password_file, password)

    @property
    def chain(self) -> Path:
        """The folder of the chain's database."""
        return self.folder / "geth" / "chaindata"

    @property
    def sealer(self) -> str:
        """The address of the account that seals."""
        (path,) = (self.folder / "keystore").glob("UTC--sealer--*")
        return "0x" + path.name.rpartition("--")[2]

    @property
    def enode(self) -> str:
        """The node's address for its peers."""
        public = keys.PrivateKey(bytes.fromhex(self._key_file.read_text())).public_key
        return f"enode://{public.to_hex()[2:]}@127.0.0.1:{self.p2p_port}?discport=0"

    @property
    def rpc(self) -> str:
        """The URL of the node's RPC."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def initialised(self) -> bool:
        """Whether the node has a chain."""
        return self.chain.exists()

    def init_command(self, geth: Path, genesis_file: Path) -> list[str]:
        """Return the command that starts the node's chain from the genesis."""
        # As in command(): without it the database is made for another layout than the one that keeps all states.
        return [str(geth), "init", "--datadir", str(self.folder), "--state.scheme", "hash", str(genesis_file)]

    def command(self, geth: Path, peers: Sequence[str]) -> list[str]:
        """Write the node's configuration and return the command that runs it.

        Parameters
        ----------
        geth
            The Geth binary.
        peers
            The enode addresses of all other nodes.
        """
        config = self.folder / "config.toml"
        listen = f"127.0.0.1:{self.p2p_port}"
        config.write_text(render("geth.toml.j2", chain_id=self.chain_id, listen=listen, peers=peers))
        return [
            str(geth),
            *("--config", str(config)),
            *("--datadir", str(self.folder)),
            *("--nodekey", str(self._key_file)),
            *("--nat", "none"),
            "--ipcdisable",
            *("--authrpc.port", "0"),
            "--http",
            *("--http.addr", "127.0.0.1"),
            *("--http.port", str(self.http_port)),
            *("--http.api", "eth,net,web3"),
            # Every state is written as its block is sealed, so that a killed node comes back with all blocks.
            *("--gcmode", "archive"),
            *("--state.scheme", "hash"),
            *("--history.transactions", "0"),
            *("--cache", "64"),
            "--mine",
            *("--miner.etherbase", self.sealer),
            *("--miner.gasprice", "1"),
            *("--unlock", self.sealer),
            *("--password", str(self._password_file)),
            # Refused otherwise once there is HTTP; the RPC is on loopback, and the account can't be spent.
            "--allow-insecure-unlock",
            *("--verbosity", "3"),
            *(
                ("--metrics", "--metrics.addr", "127.0.0.1", "--metrics.port", str(self.metrics_port))
                if self.metrics_port
                else ()
            ),
        ]


def _write_secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
