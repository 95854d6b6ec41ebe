"""A Geth node of a private Clique network, as files in a folder and a command line."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from eth_account import Account
from eth_keys import keys

from fl_node.nodes import CHAIN_ID, configuration
from fl_node.runtime import recursion

recursion.restore()


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
        return [str(geth), *self._settings(()).init_arguments, str(genesis_file)]

    def command(self, geth: Path, peers: Sequence[str]) -> list[str]:
        """Write the node's configuration and return the command that runs it.

        Parameters
        ----------
        geth
            The Geth binary.
        peers
            The enode addresses of all other nodes.
        """
        settings = self._settings(peers)
        Path(settings.config_file).write_text(settings.config)
        return [str(geth), *settings.arguments]

    def _settings(self, peers: Sequence[str]) -> configuration.Geth:
        return configuration.Geth(
            folder=str(self.folder),
            config_file=str(self.folder / "config.toml"),
            node_key=str(self._key_file),
            sealer=self.sealer,
            listen=f"127.0.0.1:{self.p2p_port}",
            rpc_port=self.http_port,
            peers=peers,
            chain_id=self.chain_id,
            metrics_port=self.metrics_port,
        )


def _write_secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
