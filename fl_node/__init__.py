"""Federated learning on a private Ethereum chain and a private IPFS swarm."""

from fl_node.runtime import lean_imports

__version__ = "0.1.0"

lean_imports.install()
