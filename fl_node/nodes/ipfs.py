"""A Kubo node of a private IPFS swarm, as files in a folder and a command line."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_node.errors import ConfigError, JsonError
from fl_node.nodes import configuration
from fl_node.runtime import strict_json

MAX_CONFIG_BYTES = 1024**2
FEW_PEERS = 3
"""With at most so many peers, nodes send files of one block at once: few can have a block that another asks for."""
SMALL_BLOCK = 1024**2
"""Less than a block of a file that has several, with its frame."""


def new_swarm_key() -> str:
    """Return the text of a new swarm key file (the key of a private libp2p network)."""
    return f"/key/swarm/psk/1.0.0/\n/base16/\n{secrets.token_hex(32)}\n"


class IpfsNode:
    """One Kubo node in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.swarm_port = 0
        self.api_port = 0

    @property
    def environment(self) -> dict[str, str]:
        """What the ``ipfs`` command needs in its environment to speak of this node."""
        return configuration.ipfs_environment(str(self.folder))

    @property
    def initialised(self) -> bool:
        """Whether the node has its identity and an empty repository."""
        return (self.folder / "config").exists()

    @property
    def peer_id(self) -> str:
        """The node's identity in the swarm."""
        return str(self._config()["Identity"]["PeerID"])

    @property
    def api(self) -> str:
        """The multiaddress of the node's API."""
        return f"/ip4/127.0.0.1/tcp/{self.api_port}"

    @property
    def address(self) -> str:
        """The multiaddress of the node for its peers."""
        return f"/ip4/127.0.0.1/tcp/{self.swarm_port}/p2p/{self.peer_id}"

    def init_command(self, ipfs: Path) -> list[str]:
        """Return the command that makes the node's identity and repository."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return [str(ipfs), "init", "--empty-repo"]

    def command(self, ipfs: Path, swarm_key: str, peers: Sequence[IpfsNode]) -> list[str]:
        """Write the node's configuration and return the command that runs it.

        Parameters
        ----------
        ipfs
            The Kubo binary.
        swarm_key
            The text of the swarm key file that all nodes share.
        peers
            All other nodes.
        """
        key_file = self.folder / "swarm.key"
        handle = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(swarm_key)
        settings = configuration.Ipfs(
            folder=str(self.folder),
            listen=f"/ip4/127.0.0.1/tcp/{self.swarm_port}",
            address=self.address,
            api_port=self.api_port,
            peers=[peer.address for peer in peers],
            small_block=SMALL_BLOCK if len(peers) <= FEW_PEERS else 0,
        )
        config = configuration.merged(self._config(), settings.settings)
        (self.folder / "config").write_text(json.dumps(config, indent=2))
        return [str(ipfs), *settings.arguments]

    def share(self) -> None:
        """Let those read the blocks who may read their folder; IPFS writes them for its user alone."""
        for block in (self.folder / "blocks").glob("*/*.data"):
            with contextlib.suppress(OSError):
                block.chmod(stat.S_IMODE(block.stat().st_mode) | block.parent.stat().st_mode & 0o044)

    def _config(self) -> dict[str, Any]:
        path = self.folder / "config"
        try:
            config: dict[str, Any] = strict_json.read(path, max_bytes=MAX_CONFIG_BYTES)
        except (OSError, JsonError) as error:
            raise ConfigError(f"IPFS configuration: {error}") from error
        return config
